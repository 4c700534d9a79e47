"""A model on other data: what it was trained on is recognised there, and unknown classes are refused."""

import json

import pytest

from vesalius.core.errors import DataError
from vesalius.io.raster_out import write_png
from vesalius.serve import jobs


def test_images_the_model_was_trained_on_are_recognised_in_other_data(tiny_run, tmp_path):
    done = jobs.evaluate(tiny_run.run, data=tiny_run.films, out=tmp_path / "same", device="cpu")
    used = done.metrics["leakage"]["exact_duplicates"]
    split = tiny_run.done.metrics["cases"]
    assert used == 120 - split  # everything but the test part
    assert done.metrics["leakage"]["allowed"] is True
    assert any("very images" in note for note in done.notes)
    assert json.loads((tmp_path / "same" / "metrics.json").read_text())["cases"] == 120


def test_a_class_the_model_does_not_know_is_refused(tiny_run, tmp_path):
    import numpy as np

    for name in ("normal", "fracture"):
        (tmp_path / "other" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 255, (32, 32)).astype(np.uint8)
            write_png(tmp_path / "other" / name / f"{index}.png", pixels)
    with pytest.raises(DataError, match="fracture"):
        jobs.evaluate(tiny_run.run, data=tmp_path / "other", out=tmp_path / "out", device="cpu")
