"""What a person types wrongly gets one readable line and the right exit code; what he types rightly, one result.

Most commands run inside this process, with standard output and error caught as the terminal would get them.
"""

import csv
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vesalius.cli.main import main

SIDE = 96
QUICK = [
    "--device",
    "cpu",
    "--set",
    "optim.max_steps=4",
    "--set",
    "model.width=4",
    "--set",
    "optim.batch_size=8",
    "--set",
    "preprocess.size=[24,24]",
    "--set",
    "validate.every=2",
]


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vesalius(capfd):
    """Call the command line: (exit code, standard output, standard error)."""

    def call(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    return call


def texture(seed):
    """A smooth random picture: different from every other, and recognisable when saved again."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 24), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    return coarse.filter(ImageFilter.GaussianBlur(1))


def folder(root, count=24, broken=()):
    """Class folders of textures; the classes differ in brightness."""
    for index in range(count):
        name = "dark" if index % 2 else "light"
        path = root / name / f"p{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        texture(index).point(lambda v, shift=name == "light": v // 2 + 100 * shift).save(path)
        if index in broken:
            path.write_bytes(b"no picture")
    return root


def listed(root, rows):
    """A manifest with columns path, label, patient_id, split, and its pictures."""
    root.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "patient_id", "split"])
    for path, label, patient, split, picture in rows:
        if path.endswith("jpg"):
            picture.save(root / path, quality=75)
        else:
            picture.save(root / path)
        writer.writerow([path, label, patient, split])
    (root / "manifest.csv").write_text(text.getvalue(), encoding="utf-8")
    return root


def honest(count=24):
    """Rows without any leak: a patient per picture, a third of them for the test."""
    splits = ["train", "train", "train", "train", "val", "val", "test", "test"]
    return [(f"p{k:02d}.png", "no" if k % 2 else "yes", f"P{k:02d}", splits[k % 8], texture(k)) for k in range(count)]


def one_line(err):
    """The message: exactly one line of the command itself, no traceback."""
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("vesalius: ")]
    assert len(said) == 1, err
    assert "unexpected" not in said[0]
    return said[0]


WRONG = [
    (["trian", "x"], ["trian", "train"]),
    (["train", "x", "--out", "r", "--budgt", "5m"], ["--budgt", "did you mean --budget"]),
    (["predict", "m", "x", "--out", "r", "--formt", "csv"], ["--formt", "did you mean --format"]),
    (["inspect", "x", "--zzzzzzzzzz"], ["--zzzzzzzzzz"]),
    (["train", "x"], ["--out"]),
    (["train", "x", "--out", "r", "--seed", "-3"], ["--seed", "-3", "at least 0"]),
    (["train", "x", "--out", "r", "--workers", "0"], ["--workers", "at least 1"]),
    (["train", "x", "--out", "r", "--precision", "fp8"], ["--precision", "fp8", "bf16"]),
    (["train", "x", "--out", "r", "--budget"], ["--budget"]),
    (["predict", "m", "--out", "r"], ["INPUT"]),
    (["demo", "segmnt"], ["segmnt", "classify"]),
]


@pytest.mark.parametrize(("words", "parts"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_word(words, parts):
    done = subprocess.run(
        [sys.executable, "-m", "vesalius.cli.main", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    line = one_line(done.stderr)
    assert done.stderr.count("\n") == 1
    assert all(part in line for part in parts), line


def test_no_word_at_all_shows_the_verbs(vesalius):
    code, out, _ = vesalius()
    assert code == 2
    for verb in ("inspect", "plan", "train", "evaluate", "predict", "demo"):
        assert re.search(rf"^\s+{verb}\s", out, re.MULTILINE)


SETTINGS = [
    (["--budget", "soon"], ["soon", "10m"]),
    (["--budget=-5m"], ["-5m"]),
    (["--memory", "lots"], ["lots", "8G"]),
    (["--set", "model.nmae=lean"], ["model.nmae", "model.name"]),
    (["--set", "optim.lr"], ["optim.lr", "has no value"]),
    (["--set", "optim.lr=fast"], ["optim.lr", "number"]),
    (["--set", "model.name=resnet81"], ["resnet81", "resnet18"]),
    (["--set", "optim.epochs=2", "--set", "optim.max_steps=3"], ["optim.epochs", "optim.max_steps"]),
    (["--device", "gpu"], ["--device", "gpu"]),
    (["--task", "segmnt"], ["segmnt"]),
    (["--plan", "none.yaml"], ["none.yaml"]),
]


@pytest.mark.parametrize(("words", "parts"), SETTINGS, ids=[" ".join(words) for words, _ in SETTINGS])
def test_a_wrong_setting(vesalius, tmp_path, words, parts):
    code, out, err = vesalius("train", folder(tmp_path / "data", 8), "--out", "r", *QUICK, *words)
    assert code == 2
    assert out == ""
    line = one_line(err)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("verb", [["train", "none", "--out", "r"], ["inspect", "none"], ["plan", "none"]])
def test_data_that_are_not_there(vesalius, verb):
    code, _, err = vesalius(*verb)
    assert code in (2, 3)
    assert "none" in one_line(err)


def test_data_that_cannot_be_read(vesalius, tmp_path):
    root = folder(tmp_path / "data", 8, broken=range(8))
    code, _, err = vesalius("train", root, "--out", "r", *QUICK)
    assert code == 3
    assert "p00" in one_line(err)
    (tmp_path / "empty").mkdir()
    code, _, err = vesalius("train", tmp_path / "empty", "--out", "r2", *QUICK)
    assert code == 3
    assert "empty" in one_line(err)


def test_a_folder_in_use_is_not_overwritten(vesalius, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine.txt").write_text("precious", encoding="utf-8")
    data = folder(tmp_path / "data", 8)
    code, _, err = vesalius("train", data, "--out", "r", *QUICK)
    assert code == 2
    line = one_line(err)
    assert "--force" in line
    assert "--resume" in line
    assert (tmp_path / "r" / "mine.txt").read_text(encoding="utf-8") == "precious"
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["mine.txt"]


def test_resume_without_a_run(vesalius):
    code, _, err = vesalius("train", "--resume", "--out", "r")
    assert code == 2
    assert "no run to resume" in one_line(err)
    code, _, err = vesalius("train", "--out", "r")
    assert code == 2
    assert "DATA" in one_line(err)


@pytest.mark.parametrize("verb", [["predict", "nowhere", "x.png", "--out", "p"], ["evaluate", "nowhere"]])
def test_a_model_that_is_not_there(vesalius, verb):
    code, out, err = vesalius(*verb)
    assert code == 3
    assert out == ""
    assert "nowhere" in one_line(err)
    assert "vesalius train" in one_line(err)


def test_too_little_memory(vesalius, tmp_path):
    code, _, err = vesalius("train", folder(tmp_path / "data", 8), "--out", "r", *QUICK, "--memory", "100M")
    assert code == 5
    assert "--memory" in one_line(err)


def test_one_patient_in_two_splits(vesalius, tmp_path):
    rows = honest()
    rows[6] = (*rows[6][:2], rows[0][2], *rows[6][3:])
    data = listed(tmp_path / "data", rows)
    code, _, err = vesalius("train", data, "--out", "r", *QUICK)
    assert code == 4
    line = one_line(err)
    assert all(part in line for part in ("P00", "train and test", "--allow-leakage"))
    assert not (tmp_path / "r" / "bundle").exists()


@pytest.mark.slow
def test_a_picture_saved_again_in_another_split(vesalius, tmp_path):
    rows = honest()
    rows[6] = ("again.jpg", *rows[0][1:2], "P99", "test", rows[0][4])
    data = listed(tmp_path / "data", rows)
    code, _, err = vesalius("train", data, "--out", "r", *QUICK)
    assert code == 4
    line = one_line(err)
    assert "p00" in line
    assert "again" in line
    code, _, err = vesalius("train", data, "--out", "r2", "--allow-leakage", "--json", *QUICK)
    assert code == 0, err
    metrics = json.loads((tmp_path / "r2" / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["leakage"]["allowed"] is True
    assert metrics["leakage"]["near_duplicates"] == 1
    assert metrics["leakage"]["patients_shared"] == 0
    page = (tmp_path / "r2" / "report" / "index.html").read_text(encoding="utf-8").lower()
    assert "leak" in page
    assert (
        json.loads((tmp_path / "r2" / "bundle" / "bundle.json").read_text(encoding="utf-8"))["facts"]["leakage_allowed"]
        is True
    )


def only_json(out):
    assert out.count("\n") == 1
    data = json.loads(out)
    assert isinstance(data, dict)
    return data


@pytest.mark.slow
def test_the_whole_journey(vesalius, tmp_path):
    data = folder(tmp_path / "data", 40, broken=(7,))
    code, out, err = vesalius("inspect", data, "--json")
    assert code == 0, err
    seen = only_json(out)
    assert seen["images"] == 40
    assert list(seen["unreadable"]) == ["dark/p007.png"]
    code, out, err = vesalius("plan", data, "--out", "my.yaml", "--json", *QUICK)
    assert code == 0, err
    assert only_json(out)["plan"]["optim"]["max_steps"]["value"] == 4
    code, out, err = vesalius("train", data, "--plan", "my.yaml", "--out", "r", "--json", "--device", "cpu")
    assert code == 0, err
    done = only_json(out)
    assert done["split"] == "test"
    report = json.loads((tmp_path / "r" / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert done["metrics"]["auroc"]["value"] == report["metrics"]["auroc"]["value"]
    assert report["leakage"]["patients_shared"] == report["leakage"]["near_duplicates"] == 0
    assert report["leakage"]["allowed"] is False
    assert sum(1 for line in err.splitlines() if "p007.png" in line or "cannot be read" in line) >= 1
    for name in (
        "plan.yaml",
        "cohort.parquet",
        "metrics.csv",
        "cases.parquet",
        "provenance.json",
        "report/index.html",
        "bundle/card.md",
    ):
        assert (tmp_path / "r" / name).is_file(), name
    predict_from(vesalius, tmp_path)
    evaluate_again(vesalius, tmp_path, report)
    replaced(vesalius, tmp_path, data)


def predict_from(vesalius, tmp_path):
    pictures = [tmp_path / "data" / "dark" / "p001.png", tmp_path / "data" / "light" / "p002.png"]
    code, out, err = vesalius("predict", "r", *pictures, "--out", "p", "--json", "--device", "cpu")
    assert code == 0, err
    found = only_json(out)
    assert (found["written"], found["skipped"], found["failed"]) == (2, 0, {})
    assert all(sum(entry["probabilities"].values()) == pytest.approx(1) for entry in found["predictions"])
    code, out, _ = vesalius("predict", "r/bundle", *pictures, "--out", "p", "--json", "--device", "cpu")
    assert (only_json(out)["written"], only_json(out)["skipped"], code) == (0, 2, 0)
    code, out, err = vesalius(
        "predict", "r", *pictures, tmp_path / "data" / "dark" / "p007.png", "--out", "p", "--json", "--device", "cpu"
    )
    assert code == 3
    assert "p007" in one_line(err)
    assert list(only_json(out)["failed"]) == ["p007"]
    code, out, err = vesalius("predict", "r", pictures[0], "--out", "p2", "--format", "tiff")
    assert code == 2
    assert "tiff" in one_line(err)
    weights = tmp_path / "r" / "bundle" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, err = vesalius("predict", "r", *pictures, "--out", "p3")
    assert (code, out) == (6, "")
    assert "model.safetensors" in one_line(err)
    weights.write_bytes(data)


def evaluate_again(vesalius, tmp_path, report):
    code, out, err = vesalius("evaluate", "r", "--json")
    assert code == 0, err
    assert only_json(out)["metrics"] == report["metrics"]


def replaced(vesalius, tmp_path, data):
    (tmp_path / "r" / "mine.txt").write_text("precious", encoding="utf-8")
    before = (tmp_path / "r" / "bundle" / "model.safetensors").read_bytes()
    code, _, err = vesalius("train", data, "--out", "r", *QUICK)
    assert code == 2
    code, out, err = vesalius("train", data, "--out", "r", "--force", *QUICK, "--seed", "5")
    assert code == 0, err
    assert "auroc" in out
    assert (tmp_path / "r" / "bundle" / "model.safetensors").read_bytes() != before
    assert (tmp_path / "r" / "mine.txt").read_text(encoding="utf-8") == "precious"


def test_a_traceback_is_shown_when_asked_for(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vesalius", "train", "x", "--out", "r", "--budgt", "1", "-v"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_a_defect_is_one_line_too(vesalius, monkeypatch):
    from vesalius.cli import verbs

    def broken(*args):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(verbs, "inspect", broken)
    code, _, err = vesalius("inspect", "x")
    assert code == 1
    assert err.count("\n") == 1
    assert "ZeroDivisionError: two lines" in err
    assert "-v" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 5),
        (OSError(28, "No space left on device", "f"), 5),
        (PermissionError(13, "Permission denied", "f"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_trouble_of_the_machine_has_its_code(vesalius, monkeypatch, error, code):
    from vesalius.cli import verbs

    def broken(*args):
        raise error

    monkeypatch.setattr(verbs, "inspect", broken)
    got, out, err = vesalius("inspect", "x")
    assert got == code
    assert out == ""
    assert one_line(err)
