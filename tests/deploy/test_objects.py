"""The runner tells single objects apart as the bundle does."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Picture
from scipy import ndimage

from vesalius.core.labels import Labels
from vesalius.deploy import run_objects, runner
from vesalius.deploy.artefact import Artefact
from vesalius.deploy.onnx_out import write_onnx
from vesalius.measure.instances import instance_scores
from vesalius.predict.bundle import Bundle
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs
from vesalius.tasks.instances import decode_instances

CELLS = Labels(("background", "cell"), instances=True)


def maps_of(shape, seed, scale=3.0):
    draw = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(draw.normal(0, 1, shape), scale) for _ in range(3)]
    fields = [(one - one.min()) / (one.max() - one.min()) for one in fields]
    return np.stack(fields).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(60, 71), (14, 20, 17)])
def test_objects_are_those_of_the_compiled_decoder(shape, seed):
    maps = maps_of(shape, seed, scale=3.0 if len(shape) == 2 else 2.0)
    draw = np.random.default_rng(seed + 100)
    rule = {
        "threshold": float(draw.uniform(0.3, 0.6)),
        "seed_threshold": float(draw.choice([0.02, 0.05, 0.1, 0.3])),
        "min_size": float(draw.choice([0, 5, 20])),
        "smooth": float(draw.choice([0, 1, 2])),
    }
    mine = run_objects.decode(maps, rule)
    wanted = decode_instances(*maps, **rule)
    assert mine.max() == wanted.max()
    # The Gaussians differ in the last bits; a step of 1 / 4095 may order two voxels otherwise.
    assert (mine == wanted).mean() > 0.999


def test_holes_of_one_object_are_filled_and_those_between_two_are_not():
    labels = np.zeros((12, 24), np.int32)
    labels[1:9, 1:9], labels[3:6, 3:6] = 1, 0
    labels[1:9, 11:15], labels[1:9, 15:19], labels[4:6, 14:16] = 2, 3, 0
    labels[10:12, 20:24], labels[11, 21:23] = 4, 0  # open to the edge of the picture
    filled = run_objects.filled(labels)
    assert (filled[3:6, 3:6] == 1).all()
    assert (filled[4:6, 14:16] == 0).all()
    assert (filled[11, 21:23] == 0).all()


@pytest.mark.parametrize("diameters", [None, [9.0, 10.0, 11.0]])
def test_exported_models_of_objects_give_the_bundles_objects(diameters, make_segmenter, smooth, tmp_path):
    inference = {"decode": {"seed_threshold": 0.05, "min_size": 4.0}}
    folder = make_segmenter(
        tmp_path / "bundle", CELLS, dims=2, **inference, **({"diameters": diameters} if diameters else {})
    )
    artefact = Artefact(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    model = SegmentPredictor.load(folder, device="cpu", backend="torch")
    many = 0
    for k, shape in enumerate([(50, 64), (33, 90)]):
        path = tmp_path / f"p{k}.png"
        Picture.fromarray(smooth(shape, seed=k).astype(np.uint8)).save(path)
        found, wanted = run_objects.find(artefact.call, artefact.contract, runner.read(path)), model(path).values
        many += int(wanted.max())
        assert found.shape == wanted.shape == shape
        assert ((found > 0) == (wanted > 0)).mean() > 0.999
        assert instance_scores(found, wanted)["panoptic_quality"] > 0.97
    assert many > 3


def test_the_files_run_alone(make_segmenter, smooth, tmp_path):
    folder = make_segmenter(tmp_path / "bundle", CELLS, dims=2)
    data = tmp_path / "data"
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    Picture.fromarray(smooth((40, 48)).astype(np.uint8)).save(data / "images" / "a.png")
    truth = np.zeros((40, 48), np.uint16)
    truth[4:10, 4:10], truth[4:10, 12:20] = 1, 2
    Picture.fromarray(truth).save(data / "labels" / "a.png")
    record = jobs.export(folder, out=tmp_path / "out" / "model.onnx", data=data)
    assert record["accepted"]
    done = subprocess.run(
        [sys.executable, tmp_path / "out" / "run.py", tmp_path / "out" / "model.onnx", data / "images" / "a.png",
         "--out", tmp_path / "masks"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    wanted = SegmentPredictor.load(folder, device="cpu", backend="torch")(data / "images" / "a.png").values
    assert said["objects"] == wanted.max()
    assert said["voxels"]["cell"] == int((wanted > 0).sum())
