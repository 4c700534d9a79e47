"""`vesalius compress`: lighter forms of a run that work as bundles, compared with it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vesalius.core.errors import FileError, PlanError, UsageError
from vesalius.core.plan import Plan
from vesalius.data.manifest import Manifest
from vesalius.phantoms.layouts import write_tree
from vesalius.predict.bundle import Bundle
from vesalius.serve import jobs
from vesalius.train.run import RunFolder

QUICK = {"optim.max_steps": 6, "validate.every": 6}


def learned(bundle):
    return sum(
        v.numel() for m in bundle.members for name, v in m.items() if "running" not in name and "num_" not in name
    )


def checked(found, run, name):
    """What every variant must bring."""
    record = json.loads((run / "compressed" / "variants.json").read_text(encoding="utf-8"))
    assert record["variants"][0]["name"] == "original"
    variant = next(one for one in record["variants"] if one["name"] == name)
    change = variant["comparison"]["metrics"][record["metric"]]
    assert change["difference"]["low"] <= change["difference"]["value"] <= change["difference"]["high"]
    assert change["second"] - change["first"] == pytest.approx(change["difference"]["value"], abs=1e-9)
    for key in ("latency_ms", "memory_bytes", "bytes", "operations", "parameters"):
        assert variant[key] > 0
    page = (run / "compressed" / "index.html").read_text(encoding="utf-8")
    assert name in page
    assert "<svg" in page
    return variant


@pytest.fixture(scope="module")
def films(tiny_films, tmp_path_factory):
    """A run wide enough to become narrower."""
    run = tmp_path_factory.mktemp("compress") / "run"
    settings = {"optim.max_steps": 8, "optim.batch_size": 16, "preprocess.size": [32, 32], "model.width": 24}
    jobs.train(tiny_films, out=run, settings=settings, device="cpu", seed=3, workers=1,
               reading=jobs.Reading(patient_pattern=r"(p\d+)"))  # fmt: skip
    return run


def test_a_student_has_a_quarter_of_the_values_and_learns_from_the_run(films, tiny_films):
    found = jobs.compress(films, to="student", settings=QUICK, device="cpu", workers=1)
    small, whole = Bundle.load(films / "compressed" / "student"), Bundle.load(films)
    assert learned(small) <= learned(whole) / 4
    cohorts = [
        Manifest.from_parquet(RunFolder(root).cohort).frame for root in (films, films / "compressed" / "student")
    ]
    splits = [dict(zip(cohort["case_id"], cohort["split"], strict=True)) for cohort in cohorts]
    assert splits[0] == splits[1]  # no test case of the run is one that the student learned from
    assert set(splits[0].values()) >= {"train", "val", "test"}
    plan = Plan.read(films / "compressed" / "student" / "plan.yaml")
    assert plan["distill.teacher"] == str(films / "bundle")
    variant = checked(found, films, "student")
    assert variant["parameters"] == learned(small)
    assert variant["bytes"] < found["original"]["bytes"]
    one = next(tiny_films.rglob("*.png"))
    out = films.parent / "predictions"
    assert not jobs.predict(films / "compressed" / "student", one, out=out, device="cpu", workers=1).failed
    with pytest.raises(UsageError, match="--force"):
        jobs.compress(films, to="student", settings=QUICK, device="cpu", workers=1)


def test_a_pruned_network_has_half_of_the_operations(films):
    pytest.importorskip("torch_pruning")
    found = jobs.compress(films, to="pruned", settings=QUICK, device="cpu", workers=1)
    variant = checked(found, films, "pruned")
    assert variant["operations"] <= 0.5 * found["original"]["operations"]
    again = Bundle.load(films / "compressed" / "pruned")
    assert again.model["widths"]
    assert not again.same_as(Bundle.load(films / "compressed" / "pruned" / "start"))  # it was trained again


def test_int8_is_a_bundle_like_any_other(films, tiny_films, tmp_path):
    pytest.importorskip("nncf")
    found = jobs.compress(films, to="int8", device="cpu", workers=1)
    variant = checked(found, films, "int8")
    assert variant["parameters"] == found["original"]["parameters"]
    home = films / "compressed" / "int8"
    assert Bundle.load(home).arithmetic == "int8"
    metrics = json.loads((home / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["auroc"]["value"] == pytest.approx(variant["metrics"]["auroc"])
    assert json.loads((home / "sensitivity.json").read_text(encoding="utf-8"))["deviation"][1] < 0.5
    one = next(tiny_films.rglob("*.png"))
    assert not jobs.predict(home, one, out=tmp_path / "said", device="cpu", workers=1).failed
    record = jobs.export(home, out=tmp_path / "model.onnx", cases=5)
    assert record["accepted"]
    assert record["arithmetic"] == "int8"


def test_what_cannot_be_compressed_gets_one_line(films, tmp_path):
    with pytest.raises(UsageError, match="int8, pruned, student"):
        jobs.compress(films, to="tiny")
    with pytest.raises(FileError, match="a finished run"):
        jobs.compress(films / "bundle", to="student")
    with pytest.raises(UsageError, match="part of the learned values"):
        jobs.compress(films, to="student", keep=2.0, out=tmp_path / "a")
    with pytest.raises(UsageError, match="is the run itself"):
        jobs.compress(films, to="student", out=films)
    with pytest.raises(PlanError, match="did you mean"):
        jobs.compress(films, to="student", settings={"model.widht": 4}, out=tmp_path / "b")


def test_a_segmentation_becomes_a_student_and_a_pruned_one(tmp_path):
    from segment_material import QUICK as SMALL

    data = write_tree("solid", tmp_path / "data", layout="nnunet", cases=10, seed=3, size=24)
    run = tmp_path / "run"
    settings = {**SMALL, "model.features": [8, 16], "split.test": 0.3, "split.val": 0.2}
    jobs.train(data, out=run, settings=settings, device="cpu", workers=1, seed=1)
    few = {"optim.max_steps": 4, "validate.every": 4}
    found = jobs.compress(run, to="student", settings=few, device="cpu", workers=1)
    small, whole = Bundle.load(run / "compressed" / "student"), Bundle.load(run)
    assert learned(small) <= learned(whole) / 4
    assert checked(found, run, "student")["comparison"]["metrics"]["dice"]["first"] is not None
    pytest.importorskip("torch_pruning")
    found = jobs.compress(run, to="pruned", settings=few, device="cpu", workers=1)
    assert checked(found, run, "pruned")["operations"] <= 0.5 * found["original"]["operations"]


@pytest.mark.slow
def test_a_student_that_is_killed_ends_with_the_same_weights(films, tmp_path):
    words = [sys.executable, "-m", "vesalius.cli.main", "compress", films, "--to", "student", "--device", "cpu"]
    few = ["--workers", "1", "--set", "optim.max_steps=40", "--set", "validate.every=4"]
    world = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out, *more):
        return subprocess.Popen([*words, *few, "--out", out, *more], env=world, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(300) == 0
    process, home = start(tmp_path / "cut"), tmp_path / "cut" / "checkpoints" / "member-0"
    end = time.monotonic() + 120
    while not any(path.name >= "step-000000012" for path in home.glob("step-*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "cut" / "bundle").exists()
    assert start(tmp_path / "cut", "--resume").wait(300) == 0
    for name in ("bundle/model.safetensors", "plan.yaml"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
