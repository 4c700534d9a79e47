"""What every test may ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# A busy machine is no defect: examples have no time limit of their own. The same examples every time, so that a failure
# is the work of a change; VESALIUS_EXPLORE=1 looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=not os.environ.get("VESALIUS_EXPLORE"))
settings.load_profile("steady")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    named = os.environ.get("VESALIUS_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set VESALIUS_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Prepared data of tests never land in a person's cache; commands that tests start inherit this."""
    before = os.environ.get("VESALIUS_CACHE")
    os.environ["VESALIUS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield Path(os.environ["VESALIUS_CACHE"])
    if before is None:
        os.environ.pop("VESALIUS_CACHE")
    else:
        os.environ["VESALIUS_CACHE"] = before


@dataclass(frozen=True)
class TinyRun:
    """A finished run on pictures that anyone could tell apart."""

    films: Path
    run: Path
    done: Any
    """What `vesalius.serve.jobs.train` returned."""


@pytest.fixture(scope="session")
def tiny_films(tmp_path_factory) -> Path:
    """60 patients with one picture of each class, 32 x 32: noise, and noise with a bright square."""
    from vesalius.io.raster_out import write_png

    root, draw = tmp_path_factory.mktemp("tiny") / "films", np.random.default_rng(7)
    for name in ("normal", "spot"):
        (root / name).mkdir(parents=True)
        for patient in range(60):
            pixels = draw.normal(90, 25, (32, 32))
            if name == "spot":
                y, x = draw.integers(4, 20, 2)
                pixels[y : y + 8, x : x + 8] += 80
            write_png(root / name / f"p{patient:03d}-{name}.png", pixels.clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_films) -> TinyRun:
    """A run of eight steps; read it, do not write into it."""
    from vesalius.serve import jobs

    out = tmp_path_factory.mktemp("tiny-run") / "run"
    reading, typed = jobs.Reading(patient_pattern=r"(p\d+)"), ["vesalius", "train", "films", "--out", "run"]
    settings = {"optim.max_steps": 8, "optim.batch_size": 16, "preprocess.size": [32, 32], "model.width": 8}
    done = jobs.train(tiny_films, out=out, settings=settings, device="cpu", seed=3, workers=1, reading=reading,
                      command=typed)  # fmt: skip
    return TinyRun(tiny_films, out, done)
