"""Exported files give the bundle's answers, run by the stand-alone runner from raw files; changed ones are refused."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from deploy_material import CUTS, dicom
from PIL import Image as Picture
from scipy import ndimage
from scipy.spatial.transform import Rotation

from vesalius.core.errors import AcceptanceError, UsageError
from vesalius.core.labels import Labels
from vesalius.deploy import run_masks, runner
from vesalius.deploy.artefact import Artefact
from vesalius.deploy.contract import SEAL_KEY
from vesalius.deploy.graphs import AnySize
from vesalius.deploy.onnx_out import write_onnx
from vesalius.deploy.seal import BLANK, sealed
from vesalius.io.open import open_image
from vesalius.predict.bundle import Bundle
from vesalius.predict.predictor import Predictor
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs

ORGANS = Labels(("background", "liver", "spleen"))
BRATS = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)))

FITS = CUTS | {
    "window": {"window": [20.0, 180.0], "scale": {"low": 20.0, "high": 180.0}},
    "per image": {"normalise": {"kind": "per_image"}, "storage": "float32"},
}


@pytest.mark.parametrize("name", FITS)
def test_preprocessing_of_any_size_is_in_the_graph(name, make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle", temperature=1.4, **FITS[name])
    artefact = Artefact(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    model = Predictor.load(folder, device="cpu")
    for k, shape in enumerate([(18, 18), (40, 31), (17, 64), (9, 12), (150, 90)]):
        path = tmp_path / f"p{k}.png"
        Picture.fromarray(smooth(shape, seed=k).astype(np.uint8)).save(path)
        found = runner.classify(artefact.call, artefact.contract, runner.read(path))
        wanted = model(path)
        said = [found["probabilities"][label] for label in wanted.labels.names]
        np.testing.assert_allclose(said, wanted.probabilities, atol=1e-4)
        assert found["class"] == wanted.top


@pytest.mark.parametrize(
    ("options", "channels", "dims"),
    [
        ({"members": 2, "views": [[], [1]]}, 1, 2),
        ({"channels": 3}, 3, 2),
        ({"labels": Labels(("a", "b", "c"), multilabel=True)}, 1, 2),
        ({"names": ("no", "yes"), "threshold": 0.2}, 1, 2),
        ({"dims": 3, "views": [[], [2]]}, 1, 3),
        ({"dims": 3, "spacing_mm": [3.0, 2.0, 2.0], "fit": "place"}, 1, 3),
    ],
    ids=["ensemble", "colour", "several classes", "threshold", "volume", "spacing"],
)
def test_questions_of_all_kinds(options, channels, dims, make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle", **options)
    artefact = Artefact(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    model = Predictor.load(folder, device="cpu")
    for k in range(4):
        if dims == 3:
            path = tmp_path / f"p{k}.nii.gz"
            nib.save(
                nib.Nifti1Image(smooth((20 + k, 17, 12), seed=k).astype(np.float32), np.diag([2, 2, 3, 1.0])), path
            )
        else:
            path = tmp_path / f"p{k}.png"
            shape = (30, 25) if channels == 1 else (30, 25, 3)
            Picture.fromarray(smooth(shape, seed=k).astype(np.uint8)).save(path)
        found = runner.classify(artefact.call, artefact.contract, runner.read(path))
        wanted = model(path)
        np.testing.assert_allclose(list(found["probabilities"].values()), wanted.probabilities, atol=1e-4)
        said = wanted.to_json()
        assert found.get("class") == said.get("class")
        assert found.get("classes") == said.get("classes")


def test_halves_are_rounded_the_same_way_everywhere(make_classifier, tmp_path):
    """Sides of 42 shrink to 18 by 7 / 3: many new pixels lie exactly between two levels."""
    folder = make_classifier(tmp_path / "bundle")
    graph = AnySize.from_spec(dict(Bundle.load(folder).preprocess))
    model = Predictor.load(folder, device="cpu")
    halves = 0
    for seed in range(20):
        pixels = np.random.default_rng(seed).integers(0, 256, (42, 42)).astype(np.uint8)
        sized = graph._sized(torch.from_numpy(pixels.astype(np.float32))[None, None])
        halves += int(((sized - sized.floor() - 0.5).abs() < 1e-4).sum())
        Picture.fromarray(pixels).save(tmp_path / "p.png")
        np.testing.assert_array_equal(graph._ranged(sized)[0], model.stored(open_image(tmp_path / "p.png")))
    assert halves > 10


def test_a_batch_is_as_good_as_one(make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    artefact = Artefact(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    images = np.stack([smooth((1, 25, 33), seed=k) for k in range(5)]).astype(np.float32)
    whole = artefact.call({"image": images})[0]
    for k in range(5):
        np.testing.assert_allclose(artefact.call({"image": images[k : k + 1]})[0][0], whole[k], atol=1e-6)


ROTATED = np.eye(4)
ROTATED[:3, :3] = Rotation.from_euler("xyz", [10, -20, 95], degrees=True).as_matrix() * [1.5, 1.5, 2.5]
ROTATED[:3, 3] = [5, -20, 30]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (ORGANS, {"views": [[], [2]], "members": 2}),
        (ORGANS, {"spec": {"spacing_mm": [2.0, 2.0, 2.0], "crop": "border"}}),
        (ORGANS, {"spec": {"window": [-100.0, 500.0], "normalise": {"kind": "fixed", "mean": [90.0], "std": [200.0]}}}),
        (BRATS, {"norm": "instance"}),
    ],
    ids=["ensemble", "resampled", "window", "regions"],
)
def test_volumes_come_back_on_the_grid_of_the_file(kind, labels, options, make_segmenter, smooth, tmp_path):
    folder = make_segmenter(tmp_path / "bundle", labels, **options)
    values = smooth((30, 26, 20), seed=3, low=-200, high=900)
    values[:3] = values[:, :, :2] = -200
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), ROTATED), path)
    record = jobs.export(
        folder, to=kind, out=tmp_path / f"m{'.onnx' if kind == 'onnx' else '.xml'}", data=_data(tmp_path, path)
    )
    assert record["accepted"]
    artefact = Artefact(record["path"])
    scan = runner.read(path)
    mask = run_masks.segment(artefact.call, artefact.contract, scan)
    wanted = SegmentPredictor.load(folder, device="cpu", backend="torch")(path).values
    assert mask.shape == wanted.shape
    assert (mask == wanted).mean() > 0.999
    assert len(np.unique(wanted)) > 1
    runner.write_nifti(tmp_path / "out.nii.gz", mask, scan)
    back = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(back.affine, ROTATED, atol=1e-5)
    stored = np.asarray(back.dataobj).squeeze()
    np.testing.assert_array_equal(
        stored.T if mask.ndim == 3 else np.moveaxis(stored, -1, 0).transpose(0, 3, 2, 1), mask
    )


def _data(tmp_path, path):
    """A folder of one case with a mask of zeros, in the layout images + labels."""
    root = tmp_path / "data"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "images" / path.name).write_bytes(path.read_bytes())
    image = nib.load(path)
    empty = np.zeros(image.shape, np.uint8)
    empty[4:8, 4:8, 4:8] = 1
    nib.save(nib.Nifti1Image(empty, image.affine), root / "labels" / path.name)
    return root


def test_post_processing_of_the_runner(smooth):
    draw = np.random.default_rng(0)
    from vesalius.measure.components import apply_steps

    for shape in ((20, 22, 18), (40, 50)):
        mask = (ndimage.gaussian_filter(draw.normal(0, 1, shape), 1.2) > 0.05).astype(np.uint8)
        mask[(mask > 0) & (draw.random(shape) < 0.3)] = 2
        near = [26, 18, 6] if len(shape) == 3 else [8, 4]
        for step in (
            *({"label": 1, "keep": "largest", "connectivity": one} for one in near),
            {"label": 1, "min_volume": 20.0},
            {"label": 2, "fill_holes": True},
            {"label": None, "keep": "largest"},
        ):
            mine = mask.copy()
            run_masks.clean(mine, step, 1.5)
            np.testing.assert_array_equal(mine, apply_steps(mask, [step], np.array([1.5, 1, 1])[: len(shape)]))


class TestReading:
    """The runner's readers against the real ones."""

    @pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
    def test_png(self, mode, tmp_path):
        draw = np.random.default_rng(0)
        ramp = np.add.outer(np.arange(37), np.arange(29))
        if mode == "I;16":
            picture = Picture.fromarray((ramp * 900).astype(np.uint16))
        elif mode == "P":
            picture = Picture.fromarray((ramp * 3).astype(np.uint8)).convert("RGB").quantize(40)
        else:
            planes = draw.integers(0, 255, (37, 29, len(mode))).astype(np.uint8) // 2 + (ramp[..., None] % 128).astype(
                np.uint8
            )
            picture = Picture.fromarray(planes.squeeze(), mode=mode)
        path = tmp_path / "p.png"
        picture.save(path)
        wanted = open_image(path).pixels
        np.testing.assert_allclose(runner.read(path).values, wanted, atol=1)

    def test_nifti_with_scale_qform_and_big_endian(self, tmp_path):
        values = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(np.int16)
        for endian in "<>":
            head = nib.Nifti1Header(endianness=endian)
            image = nib.Nifti1Image(values, None, head)
            image.set_qform(ROTATED, code=1)
            image.header.set_slope_inter(0.5, 10)
            path = tmp_path / f"v{ord(endian)}.nii"
            nib.save(image, path)
            mine, wanted = runner.read(path), open_image(path)
            np.testing.assert_allclose(mine.values, wanted.pixels, atol=1e-4)
            np.testing.assert_allclose(mine.affine, wanted.grid.affine, atol=1e-4)

    @pytest.mark.parametrize("unit", ["meter", "mm", "micron", "unknown"])
    @pytest.mark.parametrize("shape", [(4, 5, 6), (7, 9)])
    @pytest.mark.parametrize("posed", [True, False])
    def test_nifti_units_and_axes(self, unit, shape, posed, tmp_path):
        image = nib.Nifti1Image(np.ones(shape, np.float32), None)
        image.header.set_zooms([0.5, 0.7, 2.0][: len(shape)])
        image.header.set_xyzt_units(unit)
        if posed:
            image.set_sform(np.diag([-0.5, 0.7, 2.0, 1.0]), code=1)
        path = tmp_path / "v.nii.gz"
        nib.save(image, path)
        mine, wanted = runner.read(path), open_image(path)
        assert mine.spacing == pytest.approx(wanted.grid.spacing_mm) if wanted.grid.spacing_mm else mine.spacing is None
        if posed:
            np.testing.assert_allclose(mine.affine, wanted.grid.affine)

    @pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
    def test_dicom(self, kind, tmp_path):
        values = np.random.default_rng(0).integers(0, 4095, (7, 9)).astype(np.uint16)
        path = dicom(tmp_path / "x.dcm", values, light=kind, PixelSpacing=[0.5, 0.7])
        wanted = open_image(path).pixels
        np.testing.assert_allclose(runner.read(path).values.reshape(wanted.shape), wanted)

    def test_what_cannot_be_read_is_one_line(self, tmp_path):
        picture, volume = tmp_path / "p.png", tmp_path / "v.nii.gz"
        Picture.fromarray(np.zeros((20, 30), np.uint8)).save(picture)
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), volume)
        film = dicom(tmp_path / "x.dcm", np.zeros((7, 9), np.uint16))
        for path in (picture, volume, film):
            path.write_bytes(path.read_bytes()[:-30])
            with pytest.raises(SystemExit, match=rf"{path.name}: is damaged or cut off \(.*\); write it again"):
                runner.read(path)
        with pytest.raises(SystemExit, match=r"none\.png: cannot be opened \(No such file or directory\)"):
            runner.read(tmp_path / "none.png")
        (tmp_path / "a.txt").write_text("hello")
        with pytest.raises(SystemExit, match="expected a PNG, a NIfTI-1 file or an uncompressed DICOM file"):
            runner.read(tmp_path / "a.txt")


def test_one_changed_weight_is_refused(make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    data = tmp_path / "data"
    for name in ("no", "yes", "maybe"):
        (data / name).mkdir(parents=True)
        for k in range(3):
            Picture.fromarray(smooth((30, 40), seed=k + len(name)).astype(np.uint8)).save(data / name / f"{k}.png")
    record = jobs.export(folder, out=tmp_path / "model.onnx", data=data)
    assert record["accepted"]
    assert record["worst"] < 1e-4
    assert len(record["cases"]) == 9
    again = jobs.export(folder, accept=tmp_path / "model.onnx", data=data)
    assert again["worst"] == record["worst"]
    changed = onnx.load(tmp_path / "model.onnx")
    weight = next(one for one in changed.graph.initializer if len(one.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[len(values.flat) // 2] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(changed, tmp_path / "model.onnx")
    with pytest.raises(AcceptanceError, match="is not the file that was accepted") as caught:
        jobs.export(folder, accept=tmp_path / "model.onnx", data=data)
    assert caught.value.exit_code == 6
    (tmp_path / "model.onnx.accepted.json").unlink()  # without its record the seal inside gives it away
    with pytest.raises(AcceptanceError, match="was changed after it was exported"):
        jobs.export(folder, accept=tmp_path / "model.onnx", data=data)


def test_another_bundle_is_refused(make_classifier, smooth, tmp_path):
    one = make_classifier(tmp_path / "one")
    two = make_classifier(tmp_path / "two", members=2)
    write_onnx(Bundle.load(one), tmp_path / "model.onnx")
    for name in ("no", "yes"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Picture.fromarray(smooth((30, 40)).astype(np.uint8)).save(tmp_path / "data" / name / "a.png")
    with pytest.raises(AcceptanceError, match="other weights"):
        jobs.export(two, accept=tmp_path / "model.onnx", data=tmp_path / "data")


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_smallest_change_is_seen_without_the_record(to, make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    for name in ("no", "yes"):
        (tmp_path / "data" / name).mkdir(parents=True)
        film = tmp_path / "data" / name / "a.png"
        Picture.fromarray(smooth((30, 40)).astype(np.uint8)).save(film)
    path = tmp_path / "out" / ("model.onnx" if to == "onnx" else "model.xml")
    jobs.export(folder, to=to, out=path, data=tmp_path / "data")
    path.with_name(f"{path.name}.accepted.json").unlink()
    assert jobs.export(folder, accept=path, data=tmp_path / "data")["accepted"]
    weights = path if to == "onnx" else path.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    weights.write_bytes(content)
    with pytest.raises(AcceptanceError, match="was changed after it was exported") as caught:
        jobs.export(folder, accept=path, data=tmp_path / "data")
    assert caught.value.exit_code == 6
    if to == "onnx":
        command = [sys.executable, path.with_name("run.py"), path, film]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 6
        assert "was changed after it was exported" in done.stderr
        assert done.stdout == ""


def test_answers_give_away_who_computes_the_digest_anew(make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    for name in ("no", "yes"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Picture.fromarray(smooth((30, 40)).astype(np.uint8)).save(tmp_path / "data" / name / "a.png")
    model = onnx.load(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    next(entry for entry in model.metadata_props if entry.key == SEAL_KEY).value = BLANK
    (tmp_path / "model.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(AcceptanceError, match="differs from its bundle"):
        jobs.export(folder, accept=tmp_path / "model.onnx", data=tmp_path / "data")


def test_without_cases_nothing_is_exported(make_classifier, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    with pytest.raises(UsageError, match="give --data"):
        jobs.export(folder, out=tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


ALONE = """
import builtins, runpy, sys
real = builtins.__import__
def guarded(name, *rest, **more):
    if name.split(".")[0] in ("vesalius", "torch", "scipy", "nibabel", "pydicom", "PIL", "pandas"):
        raise ImportError(f"{name} is not on this machine")
    return real(name, *rest, **more)
builtins.__import__ = guarded
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_runner_needs_numpy_and_onnxruntime_only(make_segmenter, smooth, tmp_path):
    folder = make_segmenter(tmp_path / "bundle", ORGANS)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(smooth((24, 22, 18)).astype(np.float32), ROTATED), path)
    jobs.export(folder, out=tmp_path / "out" / "model.onnx", data=_data(tmp_path, path))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "out" / "run.py", tmp_path / "out" / "model.onnx", path,
         "--out", tmp_path / "masks"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    mask = np.asarray(nib.load(said["mask"]).dataobj)
    wanted = SegmentPredictor.load(folder, device="cpu", backend="torch")(path).values
    assert (wanted == mask.T).mean() > 0.999
    assert said["voxels"] == {name: int((mask == k).sum()) for k, name in ((1, "liver"), (2, "spleen"))}


NETWORKS = {
    "dynunet": {"features": [8, 16, 16], "strides": [[1, 1], [2, 2], [2, 2]]},
    "segresnet": {"width": 8},
    "swinunetr": {"width": 12},
    "deeplabv3plus:lean": {"width": 8},
    "unet:resnet18": {"width": 8},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_leave_as_well(name, make_segmenter, smooth, tmp_path):
    if name in ("dynunet", "segresnet", "swinunetr"):
        pytest.importorskip("monai")
    model = {"name": name, "patch": [64, 64], **NETWORKS[name]}
    folder = make_segmenter(tmp_path / "bundle", ORGANS, dims=2, model=model)
    artefact = Artefact(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    path = tmp_path / "p.png"
    Picture.fromarray(smooth((70, 90)).astype(np.uint8)).save(path)
    found = run_masks.segment(artefact.call, artefact.contract, runner.read(path))
    wanted = SegmentPredictor.load(folder, device="cpu", backend="torch")(path).values
    assert len(np.unique(wanted)) > 1
    assert (found == wanted).mean() > 0.999


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_in_their_own_size(channels, make_segmenter, smooth, tmp_path):
    folder = make_segmenter(tmp_path / "bundle", ORGANS, dims=2, channels=channels, spec={"scale": 0.8})
    artefact = Artefact(write_onnx(Bundle.load(folder), tmp_path / "model.onnx"))
    model = SegmentPredictor.load(folder, device="cpu", backend="torch")
    for k, shape in enumerate([(40, 52), (17, 33)]):
        path = tmp_path / f"p{k}.png"
        Picture.fromarray(smooth(shape if channels == 1 else (*shape, 3), seed=k).astype(np.uint8)).save(path)
        found = run_masks.segment(artefact.call, artefact.contract, runner.read(path))
        wanted = model(path).values
        assert found.shape == wanted.shape == shape
        assert (found == wanted).mean() > 0.999
