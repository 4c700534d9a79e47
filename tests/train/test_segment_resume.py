"""A segmentation that is killed ends with the same bytes as one that is not: weights, masks, tables."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from vesalius.phantoms.layouts import write_tree

pytestmark = pytest.mark.slow

STEPS = 24
COMMON = [
    f"optim.max_steps={STEPS}",
    "validate.every=4",
    "optim.batch_size=2",
    "optim.precision=fp32",
    "optim.ema=0.9",
    "model.features=[4,8]",
    "model.dropout=0.2",
    "predict.views=[[]]",
    "predict.backend=torch",
]
KINDS = {
    "volumes": ("solid", "nnunet", {"size": 24}, ["model.patch=[16,16,16]", "model.strides=[[1,1,1],[2,2,2]]"]),
    "objects": (
        "smear",
        "paired-folders",
        {"size": 64, "cells": 8, "instances": True},
        ["model.patch=[32,32]", "model.strides=[[1,1],[2,2]]"],
    ),
}
PATIENCE_S = 120.0


class Run:
    """A run folder with its own cache, and the processes that work on it."""

    def __init__(self, home, settings):
        self.out, self.cache, self.errors = home / "run", home / "cache", home / "stderr.txt"
        self.settings = settings

    def start(self, *words):
        world = {**os.environ, "VESALIUS_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "vesalius.cli.main", "train", *map(str, words), "--out", str(self.out)],
                env=world,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def first(self, data):
        chosen = [word for setting in self.settings for word in ("--set", setting)]
        return self.start(data, "--device", "cpu", "--workers", "1", *chosen)

    def resumed(self):
        return self.start("--resume")

    def finish(self, process):
        process.wait(timeout=PATIENCE_S)
        assert process.returncode == 0, self.errors.read_text(encoding="utf-8")

    def kill_when(self, process, moment):
        """Kill as soon as `moment` has come; the process must not have ended before."""
        end = time.monotonic() + PATIENCE_S
        while not moment():
            time.sleep(0.0005)
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(f"the moment never came: {self.errors.read_text(encoding='utf-8')}")
        process.kill()
        process.wait(timeout=PATIENCE_S)
        assert process.returncode == -signal.SIGKILL

    def newest(self):
        folder = self.out / "checkpoints" / "member-0"
        names = os.listdir(folder) if folder.is_dir() else []
        return max((int(name[5:14]) for name in names if name.startswith("step-")), default=-1)

    def preparing(self):
        """Some case is prepared, and the store is not."""
        return next(self.cache.glob("cases/.*.part/arrays/*.json"), None) is not None

    def judging(self):
        """Some held-out case is predicted."""
        return next(self.out.glob("predictions/*"), None) is not None

    def files(self):
        """What must be equal to the byte."""
        names = ["bundle/model.safetensors", "plan.yaml", "seen.npy"]
        found = {name: (self.out / name).read_bytes() for name in names}
        return found | {path.name: path.read_bytes() for path in sorted(self.out.glob("predictions/*"))}

    def curves(self):
        with (self.out / "metrics.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def metrics(self):
        found = json.loads((self.out / "report" / "metrics.json").read_text(encoding="utf-8"))
        found.pop("timing")
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_preparing_training_and_judging(kind, tmp_path):
    phantom, layout, options, settings = KINDS[kind]
    data = write_tree(phantom, tmp_path / "data", layout=layout, cases=10, seed=1, **options)
    (tmp_path / "straight").mkdir()
    (tmp_path / "killed").mkdir()
    straight, killed = (Run(tmp_path / name, COMMON + settings) for name in ("straight", "killed"))
    straight.finish(straight.first(data))
    curve = straight.curves()
    assert [int(row["step"]) for row in curve] == list(range(4, STEPS + 1, 4))
    assert float(curve[-1]["train_loss"]) < float(curve[0]["train_loss"])

    killed.kill_when(killed.first(data), killed.preparing)
    killed.kill_when(killed.resumed(), lambda: killed.newest() >= 8)
    assert 8 <= killed.newest() < STEPS
    killed.kill_when(killed.resumed(), killed.judging)
    assert not (killed.out / "bundle").exists()
    killed.finish(killed.resumed())

    assert killed.curves() == curve
    assert killed.files() == straight.files()
    assert killed.metrics() == straight.metrics()
    tables = [pd.read_parquet(run.out / "cases.parquet") for run in (killed, straight)]
    pd.testing.assert_frame_equal(*tables)
    assert [path for path in killed.out.rglob("*") if path.name.endswith(".part")] == []
