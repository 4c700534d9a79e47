"""Segmentation on the command line: one readable line and the right exit code for what is wrong, a result for the rest.

Commands run inside this process, with standard output and error caught as the terminal would get them.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from vesalius.cli.main import main
from vesalius.phantoms.layouts import write_tree

SIDE = 24
SETTINGS = [
    "optim.max_steps=4",
    "optim.batch_size=2",
    "model.patch=[16,16,16]",
    "model.features=[4,8]",
    "model.strides=[[1,1,1],[2,2,2]]",
    "predict.views=[[]]",
    "predict.backend=torch",
]
QUICK = ["--device", "cpu", "--workers", "1", *(word for one in SETTINGS for word in ("--set", one))]


def call(capfd, *words):
    capfd.readouterr()
    code = main([str(word) for word in words])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def solids(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "data"
    return write_tree("solid", root, layout="nnunet", cases=10, seed=1, size=SIDE)


@pytest.fixture(scope="module")
def run(solids, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli-run") / "run"
    assert main(["train", str(solids), "--out", str(out), *QUICK]) == 0
    return out


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def one_line(err, *words):
    """The last line of an error says all of `words`; nothing looks like a crash."""
    assert "Traceback" not in err
    line = [text for text in err.splitlines() if text.strip()][-1]
    for word in words:
        assert word in line, line
    return line


class TestRight:
    def test_inspect_finds_the_question(self, solids, capfd):
        code, out, _ = call(capfd, "inspect", solids)
        assert code == 0
        assert "layout nnunet, task segment" in out
        assert "10 images" in out

    def test_plan_writes_reasons_and_the_task(self, solids, capfd):
        code, out, _ = call(capfd, "plan", solids, "--out", "plan.yaml", *QUICK)
        assert code == 0
        plan = yaml.safe_load(Path("plan.yaml").read_text(encoding="utf-8"))
        assert plan["task"] == "segment"
        assert plan["model"]["patch"] == {"value": [16, 16, 16], "because": "set by the user"}
        assert all(entry["because"] for name, part in plan.items() if isinstance(part, dict) for entry in part.values())
        assert "conform.normalise" in out

    def test_predict_then_again(self, run, solids, capfd):
        words = ("predict", run, solids / "imagesTr", "--out", "masks", "--device", "cpu")
        code, out, _ = call(capfd, *words)
        assert code == 0
        assert "10 predicted, 0 were there, 0 failed" in out
        assert "body" in out
        code, out, _ = call(capfd, *words, "--json")
        assert code == 0
        found = json.loads(out)
        assert (found["written"], found["skipped"]) == (0, 10)
        assert {entry["kind"] for entry in found["predictions"]} == {"mask"}

    def test_evaluate_gives_the_same_numbers(self, run, capfd):
        before = json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))
        code, out, _ = call(capfd, "evaluate", run)
        assert code == 0
        assert "dice" in out
        after = json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))
        assert before["metrics"] == after["metrics"]

    def test_evaluate_on_other_data(self, run, tmp_path, capfd):
        other = write_tree("solid", tmp_path / "other", layout="nnunet", cases=3, seed=9, size=SIDE)
        code, out, _ = call(capfd, "evaluate", run, "--data", other, "--out", "elsewhere", "--json")
        assert code == 0
        found = json.loads(out)
        assert found["cases"] == 3
        assert 0 <= found["metrics"]["dice"]["value"] <= 1


class TestWrong:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (["model.pach=[16,16,16]"], ["model.pach", "model.patch"]),
            (["model.patch=[16,16]"], ["model.patch", "conform.dims"]),
            (["model.patch=[15,16,16]", "model.strides=[[1,1,1],[2,2,2]]"], ["model.patch", "model.strides"]),
            (["model.strides=[[1,1],[2,2]]"], ["model.strides"]),
            (["model.strides=[[2,2,2],[2,2,2]]", "model.patch=[16,16,16]"], ["stride"]),
            (["model.name=vnet"], ["vnet"]),
            (["loss.name=hinge"], ["loss.name", "dice_ce"]),
            (["loss.class_weights=[1,2,3]", *SETTINGS[2:5]], ["class_weights"]),
            (["conform.normalise={kind: fixed}"], ["mean and std"]),
            (["conform.window=[100, -100]"], ["conform.window"]),
            (["conform.normalise={kind: zscore}"], ["zscore"]),
            (["conform.spacing_mm=[0,1,1]"], ["conform.spacing_mm"]),
            (["augment.change={mixup: {p: 0.5}}", "model.patch=[16,16,16]"], ["mixup"]),
            (["post.steps=[{kind: largest}]"], ["post.steps"]),
        ],
        ids=lambda v: " ".join(v) if isinstance(v, list) else "",
    )
    def test_settings(self, solids, capfd, settings, words):
        chosen = [word for one in settings for word in ("--set", one)]
        code, _, err = call(capfd, "plan", solids, "--device", "cpu", "--set", "optim.max_steps=4", *chosen)
        one_line(err, *words)
        assert code == 2

    def test_task(self, solids, capfd):
        code, _, err = call(capfd, "train", solids, "--out", "run", "--task", "segmentation", *QUICK)
        assert code == 2
        one_line(err, "--task", "classify, segment")
        code, _, err = call(capfd, "train", solids, "--out", "run2", "--task", "classify", *QUICK)
        assert code in (2, 3)
        one_line(err)

    def test_format(self, run, solids, capfd):
        code, _, err = call(capfd, "predict", run, solids / "imagesTr", "--out", "out", "--format", "nrrd")
        assert code == 2
        one_line(err, "--format nrrd", "nifti", "dicomseg")

    def test_backend(self, run, solids, capfd):
        code, _, err = call(capfd, "predict", run, solids / "imagesTr", "--out", "out", "--backend", "caffe")
        assert code == 2
        one_line(err, "--backend", "caffe", "openvino")

    def test_memory(self, solids, capfd):
        code, _, err = call(capfd, "plan", solids, "--memory", "100M", *QUICK)
        assert code == 5
        one_line(err, "--memory", "model.patch")

    def test_paths(self, run, capfd):
        code, _, err = call(capfd, "predict", run, "nowhere.nii.gz", "--out", "out")
        assert code == 2
        one_line(err, "nowhere.nii.gz")
        code, _, err = call(capfd, "predict", "no-run", "nowhere.nii.gz", "--out", "out")
        assert code == 3
        one_line(err, "no-run")

    def test_failing_files_are_listed_and_the_others_done(self, run, solids, capfd, tmp_path):
        good = nib.load(solids / "imagesTr" / "solid00000_0000.nii.gz")
        folder = tmp_path / "in"
        folder.mkdir()
        nib.save(good, folder / "good.nii.gz")
        values = np.asarray(good.dataobj).astype(np.float32)
        values[3, 4, 5] = np.nan
        nib.save(nib.Nifti1Image(values, good.affine), folder / "nan.nii.gz")
        code, out, err = call(capfd, "predict", run, folder, "--out", "out", "--device", "cpu")
        assert code == 3
        assert "1 predicted" in out
        one_line(err, "1 of 2 cases failed", "nan.nii.gz", "not finite")
        assert (tmp_path / "out" / "good.nii.gz").exists()
        assert list(json.loads((tmp_path / "out" / "failed.json").read_text(encoding="utf-8"))) == ["nan"]

    def test_all_cases_bad(self, tmp_path, capfd):
        root = write_tree("solid", tmp_path / "bad", layout="nnunet", cases=4, seed=1, size=16)
        for path in (root / "labelsTr").iterdir():
            mask = nib.load(path)
            moved = mask.affine.copy()
            moved[:3, 3] += 9
            nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), moved), path)
        code, _, err = call(capfd, "train", root, "--out", "run", *QUICK)
        assert code == 3
        one_line(err, "labelsTr", "another place")
        assert not (tmp_path / "run" / "bundle").exists()

    def test_other_data_with_other_structures(self, run, tmp_path, capfd):
        other = write_tree("ct", tmp_path / "ct", layout="nnunet", cases=2, seed=1, shape=(16, 24, 24),
                           spacing_mm=(10.0, 14.0, 14.0))  # fmt: skip
        code, _, err = call(capfd, "evaluate", run, "--data", other)
        assert code == 3
        one_line(err, "lung", "body")

    def test_a_plan_without_a_patch(self, solids, capfd, tmp_path):
        (tmp_path / "plan.yaml").write_text("schema: 1\ntask: segment\nmodel:\n  name: unet\n", encoding="utf-8")
        code, _, err = call(capfd, "train", solids, "--out", "run", "--plan", "plan.yaml")
        assert code == 2
        one_line(err, "plan.yaml", "model.patch is not set")
