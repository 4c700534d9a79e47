"""A run that is killed, at any moment and many times, ends with the same bytes as one that is not."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SIDE, COUNT, STEPS = 32, 160, 60
SETTINGS = [
    f"optim.max_steps={STEPS}",
    "validate.every=10",
    "model.width=4",
    "model.dropout=0.2",
    "optim.batch_size=8",
    f"preprocess.size=[{SIDE},{SIDE}]",
    "optim.precision=fp32",
    "validate.keep=best",
    "optim.ema=0.9",
]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Discs and bars in noise, in class folders."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for index in range(COUNT):
        radius, (cy, cx) = draw.uniform(5, 9), draw.uniform(12, 20, 2)
        disc = np.hypot(y - cy, x - cx) < radius
        bar = (abs(y - cy) < radius / 2) & (abs(x - cx) < radius * 1.2)
        picture = 60 + draw.normal(0, 25, (SIDE, SIDE)) + 60 * (disc if index % 2 else bar)
        path = root / ("disc" if index % 2 else "bar") / f"p{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return root


class Run:
    """A run folder with its own cache, and the processes that work on it."""

    def __init__(self, home):
        self.out, self.cache, self.errors = home / "run", home / "cache", home / "stderr.txt"

    def start(self, *words):
        # One thread by default, as on a shared machine: a resumed run must choose its threads as the first one did.
        world = {**os.environ, "VESALIUS_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "vesalius.cli.main", "train", *map(str, words), "--out", str(self.out)],
                env=world,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def first(self, data):
        return self.start(data, "--device", "cpu", *(word for setting in SETTINGS for word in ("--set", setting)))

    def resumed(self):
        return self.start("--resume")

    def finish(self, process):
        process.wait(timeout=PATIENCE_S)
        assert process.returncode == 0, self.errors.read_text(encoding="utf-8")

    def stop_when(self, process, moment, number=signal.SIGKILL, wait_s=0.0):
        """Send a signal as soon as `moment` has come; the process must not have ended before."""
        end = time.monotonic() + PATIENCE_S
        while not moment():
            time.sleep(0.0005)
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                pytest.fail(
                    f"the moment never came (exit {process.returncode}): {self.errors.read_text(encoding='utf-8')}"
                )
        time.sleep(wait_s)
        process.send_signal(number)
        process.wait(timeout=PATIENCE_S)
        return process.returncode

    def names(self, folder):
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    @property
    def checkpoints(self):
        return self.out / "checkpoints" / "member-0"

    def newest(self):
        steps = [int(name[5:14]) for name in self.names(self.checkpoints) if name.startswith("step-")]
        return max(steps, default=-1)

    def weights(self):
        return (self.out / "bundle" / "model.safetensors").read_bytes()

    def curves(self):
        with (self.out / "metrics.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The uninterrupted run."""
    run = Run(tmp_path_factory.mktemp("straight"))
    run.finish(run.first(data))
    return run


def same_result(one, two):
    assert one.weights() == two.weights()
    assert one.curves() == two.curves()
    assert one.out.joinpath("plan.yaml").read_bytes() == two.out.joinpath("plan.yaml").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_parquet(one.out / "cases.parquet"), pd.read_parquet(two.out / "cases.parquet")
    )
    judged = [json.loads((run.out / "report" / "metrics.json").read_text(encoding="utf-8")) for run in (one, two)]
    for metrics in judged:
        metrics.pop("timing")
    assert judged[0] == judged[1]
    threads = [json.loads((run.out / "provenance.json").read_text(encoding="utf-8"))["threads"] for run in (one, two)]
    assert threads[0] == threads[1]


def test_the_uninterrupted_run_learns_something(straight):
    rows = straight.curves()
    assert [int(row["step"]) for row in rows] == list(range(10, STEPS + 1, 10))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_killed_again_and_again_the_bytes_are_the_same(data, straight, tmp_path):
    run = Run(tmp_path)
    store = run.cache / "store"

    def preparing():
        return any(name.endswith(".part") for name in run.names(store))

    def writing():
        return any(name.endswith(".part") for name in run.names(run.checkpoints))

    assert run.stop_when(run.first(data), preparing) == -signal.SIGKILL
    assert run.stop_when(run.resumed(), lambda: run.newest() >= 10) == -signal.SIGKILL
    assert run.stop_when(run.resumed(), writing) == -signal.SIGKILL
    reached = run.newest()
    assert run.stop_when(run.resumed(), lambda: run.newest() >= max(30, reached + 10), wait_s=0.05) == -signal.SIGKILL
    assert 30 <= run.newest() < STEPS
    assert run.stop_when(run.resumed(), lambda: run.newest() >= STEPS) == -signal.SIGKILL
    assert not (run.out / "bundle").exists()
    assert run.stop_when(run.resumed(), (run.out / "cases.parquet").exists) == -signal.SIGKILL
    run.finish(run.resumed())
    same_result(run, straight)


def test_killed_when_the_plan_is_written(data, straight, tmp_path):
    run = Run(tmp_path)
    assert run.stop_when(run.first(data), (run.out / "plan.yaml").exists) == -signal.SIGKILL
    run.finish(run.resumed())
    same_result(run, straight)


def test_asked_to_stop_the_state_is_saved(data, straight, tmp_path):
    run, moments = Run(tmp_path), [(10, signal.SIGTERM), (30, signal.SIGINT)]
    process = run.first(data)
    for step, number in moments:
        assert run.stop_when(process, lambda step=step: run.newest() >= step, number) == 130
        assert run.newest() >= step
        said = run.errors.read_text(encoding="utf-8")
        assert f"stopped at step {run.newest()}, state saved" in said
        assert "--resume" in said
        assert "Traceback" not in said
        process = run.resumed()
    run.finish(process)
    same_result(run, straight)


def test_a_finished_run_is_not_begun_again(straight):
    before = straight.weights()
    straight.finish(straight.resumed())
    assert straight.weights() == before
    assert [int(row["step"]) for row in straight.curves()] == list(range(10, STEPS + 1, 10))


def test_a_broken_newest_checkpoint_costs_only_its_steps(data, straight, tmp_path):
    run = Run(tmp_path)
    assert run.stop_when(run.first(data), lambda: run.newest() >= 30) == -signal.SIGKILL
    newest = run.checkpoints / f"step-{run.newest():09d}.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    run.finish(run.resumed())
    same_result(run, straight)


def test_the_rest_of_killed_writes_is_not_mistaken_for_something(straight):
    rest = [path for path in Path(straight.out).rglob("*") if path.name.endswith(".part")]
    assert rest == []
