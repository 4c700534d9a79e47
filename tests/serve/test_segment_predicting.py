"""From a data set to a run and from files to masks: headers, formats, failures, and a process that is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image as Picture
from scipy import ndimage
from segment_material import QUICK

from vesalius.core.errors import DataError, UsageError
from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.data.manifest import Manifest
from vesalius.measure.boundary_band import fit_band
from vesalius.phantoms.layouts import write_tree
from vesalius.phantoms.registry import make
from vesalius.predict.bundle import Bundle
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs
from vesalius.serve.segment_predicting import gather_cases, predict_segments, sizes
from vesalius.tasks.segment import Segment

ORGANS = Labels(("background", "liver", "spleen"))
BRATS = Labels(("whole", "core", "enhancing"), multilabel=True, regions=((1, 2, 4), (1, 4), (4,)))
CELLS = Labels(("background", "cell"), instances=True)


class Heard(Silent):
    """A progress that keeps the warnings."""

    def __init__(self):
        self.lines = []

    def warn(self, line):
        self.lines.append(line)


def bundle(folder, labels, *, dims=3, channels=1, side=16, **inference):
    """A bundle of one random network, saved."""
    model = {"name": "unet", "features": [4, 8], "strides": [[1] * dims, [2] * dims], "patch": [side] * dims}
    task = Segment(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = task.network(model, dims=dims, inputs=channels, size=model["patch"]).eval()
    spec = {"dims": dims, "channels": channels, "orient": True, "crop": "none", "spacing_mm": None, "scale": 1.0,
            "window": None, "normalise": {"kind": "body" if dims == 3 else "percentile"}}  # fmt: skip
    tile = {"patch": model["patch"], "overlap": 0.5, "batch": 2}
    made = Bundle("segment", labels, spec, model, [network.state_dict()],
                  inference={"tile": tile, "backend": "torch", **inference})  # fmt: skip
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return bundle(tmp_path_factory.mktemp("organs") / "bundle", ORGANS)


def scan(path, seed=0, shape=(20, 18, 16), affine=None, change=None):
    """A float volume, x first, as nibabel stores it."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 2) * 900 + 100
    values = values.astype(np.float32) if change is None else change(values.astype(np.float32))
    made = nib.Nifti1Image(values, np.diag([1.5, 1.5, 2.0, 1.0]) if affine is None else affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(made, path)
    return path


BAD = {
    "nan": (lambda v: np.where(v > v.max() - 1, np.nan, v), "not finite"),
    "constant": (lambda v: np.full_like(v, 7), "every pixel has the value 7"),
    "slice": (lambda v: v[:, :, :1], "slice|dimensions"),
    "volumes": (lambda v: np.stack([v, v + 1, v, v], axis=-1), "channels|volumes"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_tree("solid", tmp_path_factory.mktemp("run") / "data", layout="nnunet", cases=16, seed=1, size=24)
    name = "imagesTr/solid0000{}_0000.nii.gz"
    good = nib.load(root / name.format(0))
    for case, (change, _) in enumerate(BAD.values()):
        values = change(np.asarray(good.dataobj).astype(np.float32))
        nib.save(nib.Nifti1Image(values, good.affine), root / name.format(case))
    moved = good.affine.copy()
    moved[:3, 3] += 4.2
    mask = nib.load(root / "labelsTr/solid00004.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), moved), root / "labelsTr/solid00004.nii.gz")
    wrong = np.asarray(nib.load(root / "labelsTr/solid00005.nii.gz").dataobj) * 9
    nib.save(nib.Nifti1Image(wrong.astype(np.uint8), good.affine), root / "labelsTr/solid00005.nii.gz")
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    heard = Heard()
    out = tmp_path_factory.mktemp("trained") / "run"
    done = jobs.train(data, out=out, settings=QUICK, device="cpu", workers=1, seed=2, progress=heard)
    return done, heard


class TestRun:
    """One training on volumes of which some cannot be learnt from."""

    def test_bad_cases_are_left_out_with_a_line_each(self, trained):
        done, heard = trained
        kept = set(pd.read_parquet(done.run / "cohort.parquet")["case_id"])
        assert kept == {f"solid{k:05d}" for k in range(6, 16)}
        words = [*(pattern for _, pattern in BAD.values()), "another place", "the value 9"]
        said = [str(problem) for problem in Manifest.from_parquet(done.run / "cohort.parquet").problems]
        for case, pattern in enumerate(words):
            lines = [line for line in said if f"solid{case:05d}" in line]
            assert any(re.search(pattern, line) for line in lines), (case, pattern, said)
            assert all("\n" not in line for line in lines)
        assert any("6 of 16 images cannot be read and were left out; the first: " in note for note in done.notes)
        page = done.report.read_text(encoding="utf-8")
        assert "solid00001_0000.nii.gz" in page
        assert any("solid00004" in line for line in heard.lines)  # the survey opens masks: told before training

    def test_the_loss_falls(self, trained):
        curve = pd.read_csv(trained[0].run / "metrics.csv")
        assert curve["step"].tolist() == [4, 8, 12, 16]
        assert curve["train_loss"].iloc[-1] < curve["train_loss"].iloc[0] - 0.1
        assert curve["val_dice"].between(0, 1).all()

    def test_a_run_is_whole(self, trained):
        done, _ = trained
        assert done.report.is_file()
        metrics = json.loads((done.run / "report" / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["task"] == "segment"
        assert metrics["split"] == "test"
        assert set(metrics["per_class"]) == {"body"}
        bundle = Bundle.load(done.run)
        assert bundle.task == "segment"
        assert bundle.labels.names == ("background", "body")
        trust = metrics["calibration"]
        assert trust["temperature"] == bundle.temperature
        assert trust["cases"] == metrics["cases"]
        assert trust["ece"]["after"] <= trust["ece"]["before"] + 0.02
        assert sum(one["cases"] for one in trust["reliability"]) > 1000
        assert "Can the probabilities be believed?" in done.report.read_text(encoding="utf-8")

    def test_what_was_judged_is_what_predict_writes(self, trained, data, tmp_path):
        """Masks of the test cases in the run, their Dice in the tables, and a prediction of the file agree."""
        done, _ = trained
        table = pd.read_parquet(done.run / "cases.parquet")
        case = table.loc[table["split"] == "test", "case_id"].iloc[0]
        jobs.predict(done.run, data / f"imagesTr/{case}_0000.nii.gz", out=tmp_path, device="cpu")
        mine = np.asarray(nib.load(next(tmp_path.glob("*.nii.gz"))).dataobj)
        kept = np.asarray(nib.load(done.run / f"predictions/{case}.nii.gz").dataobj)
        np.testing.assert_array_equal(mine, kept)
        truth = np.asarray(nib.load(data / f"labelsTr/{case}.nii.gz").dataobj)
        dice = 2 * ((mine == 1) & (truth == 1)).sum() / ((mine == 1).sum() + (truth == 1).sum())
        row = table[(table["case_id"] == case)]
        assert row["dice"].iloc[0] == pytest.approx(dice)

    def test_nothing_readable_is_an_error_of_the_data(self, tmp_path):
        root = write_tree("solid", tmp_path / "data", layout="nnunet", cases=4, seed=1, size=16)
        for path in (root / "imagesTr").iterdir():
            values = np.full((16, 16, 16), np.nan, dtype=np.float32)
            nib.save(nib.Nifti1Image(values, np.eye(4)), path)
        with pytest.raises(DataError, match="solid0000") as caught:
            jobs.train(root, out=tmp_path / "run", settings=QUICK, device="cpu", workers=1)
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)


class TestFiles:
    def test_the_header_is_that_of_the_input(self, organs, tmp_path):
        turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag([-1.1, 1.3, 2.7])
        affine[:3, 3] = (12.3456, -7.89, 1001.25)
        path = scan(tmp_path / "in" / "scan.nii.gz", affine=affine)
        made = nib.load(path)
        other = affine.copy()
        other[:3, 3] += 0.5
        made.header.set_qform(other, code=2)  # two transforms that differ, as registration tools leave them
        made.header.set_sform(affine, code=4)
        made.header.set_xyzt_units("mm", "sec")
        nib.save(made, path)
        jobs.predict(organs, path, out=tmp_path / "out", device="cpu")
        before, after = nib.load(path).header, nib.load(tmp_path / "out" / "scan.nii.gz").header
        for name in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                     "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):  # fmt: skip
            assert before[name].tobytes() == after[name].tobytes(), name
        assert before["pixdim"][:4].tobytes() == after["pixdim"][:4].tobytes()
        assert before.get_data_shape() == after.get_data_shape()
        assert after.get_data_dtype() == np.uint8

    def test_pictures_become_pictures(self, tmp_path):
        cells = bundle(tmp_path / "bundle", Labels(("background", "a", "b")), dims=2, channels=3)
        phantom = make("smear", seed=0, index=0, size=64, cells=8)
        Picture.fromarray(np.moveaxis(phantom.case.image().pixels, 0, -1)).save(tmp_path / "film.png")
        done = jobs.predict(cells, tmp_path / "film.png", out=tmp_path / "out", device="cpu")
        mask = np.asarray(Picture.open(tmp_path / "out" / "film.png"))
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) <= {0, 1, 2}
        sizes = done.predictions[0]["structures"]
        assert [sizes[name]["pixels"] for name in ("a", "b")] == [int((mask == k).sum()) for k in (1, 2)]
        with_nifti = jobs.predict(
            cells, tmp_path / "film.png", out=tmp_path / "both", device="cpu", formats=("nifti", "overlay")
        )
        assert with_nifti.predictions[0]["files"] == ["film.nii.gz", "film-overlay.png"]
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "both" / "film.nii.gz").dataobj).squeeze().T, mask)

    def test_single_objects(self, tmp_path):
        cells = bundle(tmp_path / "bundle", CELLS, dims=2, channels=3)
        phantom = make("smear", seed=0, index=0, size=64, cells=8)
        Picture.fromarray(np.moveaxis(phantom.case.image().pixels, 0, -1)).save(tmp_path / "film.png")
        done = jobs.predict(cells, tmp_path / "film.png", out=tmp_path / "out", device="cpu")
        mask = np.asarray(Picture.open(tmp_path / "out" / "film.png"))
        assert done.predictions[0]["structures"]["cell"]["objects"] == len(np.unique(mask[mask > 0]))

    def test_every_format_can_be_read(self, organs, tmp_path):
        path = scan(tmp_path / "scan.nii.gz")
        formats = ("nifti", "png", "overlay", "dicomseg", "rtstruct", "mesh", "probabilities", "uncertainty", "json")
        done = jobs.predict(organs, path, out=tmp_path / "out", device="cpu", formats=formats)
        out = tmp_path / "out"
        files = done.predictions[0]["files"]
        assert all((out / name).stat().st_size > 0 for name in files)
        mask = np.asarray(nib.load(out / "scan.nii.gz").dataobj)
        p = np.asarray(nib.load(out / "scan-probabilities.nii.gz").dataobj).squeeze()
        assert p.shape == (*mask.shape, 3)
        np.testing.assert_allclose(p.sum(axis=-1), 1, atol=4e-3)
        clear = np.sort(p, axis=-1)[..., -1] - np.sort(p, axis=-1)[..., -2] > 2e-3
        np.testing.assert_array_equal(p.argmax(axis=-1)[clear], mask[clear])
        entropy = np.asarray(nib.load(out / "scan-uncertainty.nii.gz").dataobj)
        assert entropy.shape == mask.shape
        assert 0 <= entropy.min() <= entropy.max() <= 1
        assert Picture.open(out / "scan-overlay.png").size[0] > 0
        seg = pydicom.dcmread(out / "scan.dcm")
        assert seg.Modality == "SEG"
        present = {name for k, name in enumerate(ORGANS.names) if k and (mask == k).any()}
        assert present <= {str(one.SegmentLabel) for one in seg.SegmentSequence} <= {"liver", "spleen"}
        contours = [pydicom.dcmread(out / name) for name in files if name.startswith("contours")]
        assert [c.Modality for c in contours] == ["RTSTRUCT"]
        meshes = [name for name in files if name.endswith(".stl")]
        assert len(meshes) == sum(int((mask == k).any()) for k in (1, 2))

    def test_one_network_with_one_view_cannot_disagree(self, organs, tmp_path):
        path = scan(tmp_path / "scan.nii.gz")
        with pytest.raises(UsageError, match=r"cannot disagree with itself; train with --set split.folds=5"):
            jobs.predict(organs, path, out=tmp_path / "out", device="cpu", formats=("disagreement",))
        model = Bundle.load(organs)
        model.views = [[], [2]]
        model.save(tmp_path / "two" / "bundle")
        done = jobs.predict(tmp_path / "two" / "bundle", path, out=tmp_path / "out", device="cpu",
                            formats=("nifti", "disagreement"))  # fmt: skip
        assert done.predictions[0]["files"] == ["scan.nii.gz", "scan-disagreement.nii.gz"]
        values = np.asarray(nib.load(tmp_path / "out" / "scan-disagreement.nii.gz").dataobj)
        assert values.shape == (20, 18, 16)
        assert 0 < values.max() <= 0.5

    def test_a_band_needs_validation_cases(self, organs, tmp_path):
        done = jobs.predict(organs, scan(tmp_path / "scan.nii.gz"), out=tmp_path / "out", device="cpu",
                            formats=("nifti", "band"))  # fmt: skip
        assert done.predictions[0]["files"] == ["scan.nii.gz"]
        assert done.predictions[0]["notes"] == ["the model has no boundary band: too few validation cases"]

    def test_a_band_lies_around_the_mask(self, tmp_path):
        truth = np.zeros((20, 20, 20), dtype=np.uint8)
        truth[4:16, 4:16, 4:10], truth[4:16, 4:16, 10:16] = 1, 2
        pairs = [(np.roll(truth, step, axis), truth, (2.0, 1.5, 1.5), f"p{axis}{step}{again}")
                 for axis in range(3) for step in (-1, 1) for again in range(4)]  # fmt: skip
        model = bundle(tmp_path / "bundle", ORGANS, band=fit_band(pairs).to_json())
        done = jobs.predict(model, scan(tmp_path / "scan.nii.gz"), out=tmp_path / "out", device="cpu",
                            formats=("nifti", "band"))  # fmt: skip
        mask = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
        zones = 0
        for number, name in enumerate(("liver", "spleen"), 1):
            path = tmp_path / "out" / f"scan-band-{name}.nii.gz"
            if path.exists():
                values = np.asarray(nib.load(path).dataobj)
                assert set(np.unique(values)) <= {0, 1, 2}
                assert (values[mask == number] > 0).all()  # the outer surface encloses the mask
                assert (mask[values == 2] == number).all()  # and the mask the inner one
                zones += 1
        assert zones + len(done.predictions[0].get("notes", ())) == 2
        assert zones > 0

    def test_regions_are_written_as_layers(self, tmp_path):
        model = bundle(tmp_path / "bundle", BRATS, channels=2)
        paths = [scan(tmp_path / "in" / f"case_{channel:04d}.nii.gz", seed=channel) for channel in range(2)]
        done = jobs.predict(model, *paths, out=tmp_path / "out", device="cpu", formats=("nifti", "overlay"))
        assert [entry["case_id"] for entry in done.predictions] == ["case"]
        layers = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj).squeeze()
        assert layers.shape == (20, 18, 16, 3)
        said = done.predictions[0]["structures"]
        assert [said[name]["voxels"] for name in BRATS.names] == layers.sum(axis=(0, 1, 2)).tolist()
        assert said["whole"]["volume_ml"] == pytest.approx(said["whole"]["voxels"] * 4.5 / 1000, abs=1e-4)

    def test_an_unknown_format_is_refused_before_anything_is_done(self, organs, tmp_path):
        with pytest.raises(UsageError, match="segmentation writes json, csv, nifti") as caught:
            jobs.predict(organs, scan(tmp_path / "a.nii.gz"), out=tmp_path / "out", device="cpu", formats=("dicom",))
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out").exists()


class TestCohort:
    def test_failures_stop_nothing_else(self, organs, tmp_path):
        scan(tmp_path / "in" / "good.nii.gz")
        for name, (change, _) in BAD.items():
            scan(tmp_path / "in" / f"{name}.nii.gz", change=change)
        (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no volume")
        heard = Heard()
        done = jobs.predict(organs, tmp_path / "in", out=tmp_path / "out", device="cpu", progress=heard)
        assert done.written == ["good"]
        failed = json.loads((tmp_path / "out" / "failed.json").read_text(encoding="utf-8"))
        assert failed == done.failed
        assert set(failed) == {*BAD, "broken"}
        for name, (_, words) in BAD.items():
            assert re.search(words, failed[name])
            assert f"{name}.nii.gz" in failed[name]
            assert "\n" not in failed[name]
        assert sorted(heard.lines) == sorted(failed.values())
        shutil.rmtree(tmp_path / "in")
        scan(tmp_path / "in" / "good.nii.gz")
        jobs.predict(organs, tmp_path / "in", out=tmp_path / "out", device="cpu")
        assert not (tmp_path / "out" / "failed.json").exists()

    def test_what_is_done_is_not_done_again(self, organs, tmp_path):
        for k in range(2):
            scan(tmp_path / "in" / f"s{k}.nii.gz", seed=k)
        model, out = SegmentPredictor.load(organs, device="cpu"), tmp_path / "out"
        first = predict_segments(model, [tmp_path / "in"], out)
        assert first.written == ["s0", "s1"]
        again = predict_segments(model, [tmp_path / "in"], out)
        assert (again.written, again.skipped) == ([], ["s0", "s1"])
        assert again.predictions == first.predictions
        (out / "s1.nii.gz").unlink()
        assert predict_segments(model, [tmp_path / "in"], out).written == ["s1"]
        assert predict_segments(model, [tmp_path / "in"], out, formats=("nifti", "uncertainty")).written == ["s0", "s1"]
        assert predict_segments(model, [tmp_path / "in"], out, force=True).written == ["s0", "s1"]
        model.bundle.checksum = "0" * 64  # other weights
        assert predict_segments(model, [tmp_path / "in"], out).written == ["s0", "s1"]

    def test_equal_names_do_not_overwrite_each_other(self, organs, tmp_path):
        for k, name in enumerate("ab"):
            scan(tmp_path / name / "scan.nii.gz", seed=k)
        done = jobs.predict(
            organs, tmp_path / "a" / "scan.nii.gz", tmp_path / "b" / "scan.nii.gz", out=tmp_path / "out", device="cpu"
        )
        assert len(done.written) == 2
        assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("when", [1, 2, 4])
    def test_killed_and_started_again_the_files_are_the_same(self, organs, tmp_path, when):
        for k in range(4):
            scan(tmp_path / "in" / f"s{k}.nii.gz", seed=k)
        words = [str(organs), str(tmp_path / "in"), str(tmp_path / "out"), str(when)]
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *words],
            check=False,
            capture_output=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list((tmp_path / "out").glob("*.json"))) == when - 1
        torch_threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            again = jobs.predict(organs, tmp_path / "in", out=tmp_path / "out", device="cpu", formats=("nifti", "png"))
            jobs.predict(organs, tmp_path / "in", out=tmp_path / "whole", device="cpu", formats=("nifti", "png"))
        finally:
            torch.set_num_threads(torch_threads)
        assert len(again.skipped) == when - 1
        one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("out", "whole"))
        assert one == two
        files = [f"s{k}{end}" for k in range(4) for end in (".json", ".nii.gz", "-overlay.png")]
        assert sorted(one) == sorted([*files, "predictions.csv"])


KILLED = """
import os, signal, sys
import vesalius.serve.segment_predicting as room
from vesalius.serve import jobs
calls, real = [], room.write_json
def write_json(path, data):
    calls.append(path)
    if len(calls) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, data)
room.write_json = write_json
jobs.predict(sys.argv[1], sys.argv[2], out=sys.argv[3], device="cpu", formats=("nifti", "png"))
"""


class TestGathering:
    def test_channels_by_name(self, tmp_path):
        for case in ("one", "two"):
            for channel in (1, 0):
                scan(tmp_path / f"{case}_{channel:04d}.nii.gz", seed=channel)
        for inputs in ([tmp_path], sorted(tmp_path.iterdir()), sorted(tmp_path.iterdir(), reverse=True)):
            found = {item.case_id: item.sources for item in gather_cases(inputs, 2)}
            assert found == {
                case: tuple(str(tmp_path / f"{case}_{channel:04d}.nii.gz") for channel in range(2))
                for case in ("one", "two")
            }

    def test_the_files_of_one_case_in_the_order_given(self, tmp_path):
        paths = [scan(tmp_path / name) for name in ("t2.nii.gz", "adc.nii.gz")]
        (item,) = gather_cases(paths, 2)
        assert item.sources == tuple(map(str, paths))
        assert item.source == f"{paths[0]}|{paths[1]}"

    def test_a_known_layout(self, tmp_path):
        root = write_tree("solid", tmp_path / "data", layout="brats", cases=2, seed=1, size=16)
        found = gather_cases([root], 4)
        assert len(found) == 2
        for item in found:
            ends = [path.rpartition("_")[2] for path in item.sources]
            assert ends == ["flair.nii.gz", "t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz"]

    def test_a_missing_channel_is_a_failure_of_that_case(self, tmp_path):
        model = SegmentPredictor.load(bundle(tmp_path / "bundle", BRATS, channels=2), device="cpu")
        for name in ("one_0000", "one_0001", "two_0000"):
            scan(tmp_path / "in" / f"{name}.nii.gz")
        done = predict_segments(model, [tmp_path / "in"], tmp_path / "out")
        assert done.written == ["one"]
        assert "1 channels, the model needs 2" in done.failed["two"]

    def test_a_fourth_axis_of_channels_is_one_case(self, tmp_path):
        model = SegmentPredictor.load(bundle(tmp_path / "bundle", BRATS, channels=2), device="cpu")
        for name in ("one", "two"):
            scan(tmp_path / "in" / f"{name}.nii.gz", change=lambda v: np.stack([v, 1000 - v], axis=-1))
        for inputs in ([tmp_path / "in"], sorted((tmp_path / "in").iterdir())):
            done = predict_segments(model, inputs, tmp_path / f"out{len(inputs)}")
            assert sorted(done.written) == ["one", "two"]
            assert not done.failed
        image, name = model.open(tmp_path / "in" / "one.nii.gz")
        assert (image.pixels.shape, name) == ((2, 16, 18, 20), "one")

    def test_a_path_that_is_not_there(self, tmp_path):
        for channels in (1, 2):
            with pytest.raises(UsageError, match="nowhere"):
                gather_cases([tmp_path / "nowhere"], channels)


def test_sizes_of_structures():
    from vesalius.core.geometry import Grid

    grid = Grid((2, 3, 4), spacing=(2.0, 1.0, 0.5))
    values = np.zeros((2, 3, 4), dtype=np.uint8)
    values[0], values[1, 0] = 1, 2
    assert sizes(values, grid, ORGANS) == {
        "liver": {"voxels": 12, "volume_ml": 0.012},
        "spleen": {"voxels": 4, "volume_ml": 0.004},
    }
    flat = Grid((3, 4))
    assert sizes(values[0] * 5, flat, CELLS) == {"cell": {"pixels": 12, "objects": 1}}
