"""The page in the browser: its readers against ours, its answers against the bundle's, and nothing asked of anybody."""

import base64
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import struct
import subprocess
import tarfile
import threading
import zlib

import imagecodecs
import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from deploy_material import dicom
from PIL import Image as Picture
from scipy import ndimage

from vesalius.cli.main import main
from vesalius.core.errors import AcceptanceError, FileError, UsageError, VesaliusError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.deploy import run_masks, runner, web_check, web_out, web_runtime
from vesalius.deploy.chromium import Browser, find_browser
from vesalius.deploy.contract import SEAL_KEY
from vesalius.deploy.onnx_out import write_onnx
from vesalius.deploy.seal import BLANK, sealed
from vesalius.deploy.web_check import WebPage
from vesalius.io.nifti_out import write_nifti
from vesalius.io.open import open_image
from vesalius.predict.bundle import Bundle
from vesalius.predict.predictor import Predictor
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs
from vesalius.transforms.preprocess import Preprocess

TEMPLATES = web_out.Path(web_out.__file__).with_name("web")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")

READ = """
const Reading = require(process.argv[1]);
const fs = require("fs");
(async () => {
  const found = [];
  for (const path of process.argv.slice(3)) {
    try {
      const scan = await Reading.read(new Uint8Array(fs.readFileSync(path)));
      const given = process.argv[2] === "null" ? scan : Reading.prepared(scan, JSON.parse(process.argv[2]));
      found.push({ ...scan, ...given, values: Array.from(given.values, Number) });
    } catch (error) {
      if (!(error instanceof Reading.Refused)) throw error;
      found.push({ error: error.message });
    }
  }
  process.stdout.write(JSON.stringify(found));
})();
"""


def read(*paths, contract=None):
    """What the page's reader says about files: values as an array, or the line of its refusal."""
    done = subprocess.run(
        [NODE, "-e", READ, TEMPLATES / "read.js", json.dumps(contract), *paths],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for one in found:
        if "error" not in one:
            one["values"] = np.array(one["values"]).reshape(one["shape"])
    return found


# --- PNG -------------------------------------------------------------------------------------------------------------


def ramp(shape, top, seed=0):
    """Slopes with noise, so that every filter of PNG has its lines."""
    draw = np.random.default_rng(seed)
    values = np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1])) * (top / 200)
    values = values.reshape(*values.shape, *(1,) * (len(shape) - 2)) + draw.integers(0, top // 9 + 2, shape)
    return (values % (top + 1)).astype(np.uint16 if top > 255 else np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values, depth, kind, *, extra=b"", interlaced=False):
    """A PNG written by hand: samples ``(Y, X, S)`` of `depth` bits without filters."""
    height, width = values.shape[:2]
    raw = b""
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    for x0, y0, dx, dy in passes:
        part = values[y0::dy, x0::dx]
        for line in part.reshape(len(part), -1) if part.size else []:
            if depth == 16:
                raw += b"\0" + line.astype(">u2").tobytes()
            else:
                bits = (line[:, None] >> np.arange(depth)[::-1]) & 1
                raw += b"\0" + np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    packed = zlib.compress(raw)
    whole = chunk(b"IHDR", head) + extra
    for at in range(0, len(packed), 100):  # several IDAT chunks are one stream
        whole += chunk(b"IDAT", packed[at : at + 100])
    return b"\x89PNG\r\n\x1a\n" + whole + chunk(b"IEND", b"")


def pictures(folder):
    """PNG files of every kind, by name."""
    rgba = ramp((37, 29, 4), 255)
    colours = Picture.fromarray(rgba[..., :3])
    made = {}

    def add(name, data):
        made[name] = folder / f"{name}.png"
        if isinstance(data, bytes):
            made[name].write_bytes(data)
        else:
            picture, options = data
            picture.save(made[name], **options)

    add("grey", (Picture.fromarray(rgba[..., 0]), {}))
    add("grey alpha", (Picture.fromarray(rgba[..., :2], mode="LA"), {}))
    add("colour", (colours, {}))
    add("colour alpha", (Picture.fromarray(rgba), {}))
    add("opaque", (Picture.merge("RGBA", [*colours.split(), Picture.new("L", colours.size, 255)]), {}))
    add("palette", (colours.quantize(40), {}))
    add("palette of 4 bit", (colours.quantize(16), {"bits": 4}))
    add("palette of greys", (Picture.fromarray(rgba[..., 0] // 8).convert("P"), {}))
    add("palette transparent", (colours.quantize(40), {"transparency": 3}))
    add("grey transparent", (Picture.fromarray(rgba[..., 0] // 16), {"transparency": 5}))
    add("colour transparent", (Picture.fromarray(rgba[..., :3] // 128), {"transparency": (1, 0, 1)}))
    add("gamma", png(rgba[..., :1], 8, 0, extra=chunk(b"gAMA", struct.pack(">I", 100000))))
    for depth in (1, 2, 4):
        add(f"{depth} bit", png(ramp((13, 21, 1), 2**depth - 1), depth, 0))
    deep = ramp((31, 18, 4), 65535)
    add("grey of 16 bit", imagecodecs.png_encode(deep[..., 0].copy()))
    add("grey alpha of 16 bit", imagecodecs.png_encode(deep[..., :2].copy()))
    add("colour of 16 bit", imagecodecs.png_encode(deep[..., :3].copy()))
    add("colour alpha of 16 bit", imagecodecs.png_encode(deep))
    for name, values, depth, kind in (
        ("interlaced", rgba[..., :1], 8, 0),
        ("interlaced colour", rgba[..., :3], 8, 2),
        ("interlaced of 16 bit", deep[..., :1], 16, 0),
        ("interlaced of 2 bit", ramp((13, 21, 1), 3), 2, 0),
        ("interlaced and small", rgba[:3, :2, :1], 8, 0),
    ):
        add(name, png(values, depth, kind, interlaced=True))
    return made


@needs_node
def test_png_of_every_kind_equals_our_reader(tmp_path):
    made = pictures(tmp_path)
    for (name, path), mine in zip(made.items(), read(*made.values()), strict=True):
        wanted = open_image(path).pixels
        assert "error" not in mine, f"{name}: {mine}"
        assert mine["shape"] == list(wanted.shape), name
        np.testing.assert_array_equal(mine["values"], wanted, err_msg=name)
        assert mine["exact"]
        assert mine["spacing"] is None


@needs_node
def test_broken_pictures_are_refused_in_one_line(tmp_path):
    whole = png(ramp((20, 30, 1), 255), 8, 0)
    turned = chunk(b"eXIf", b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 274, 3, 1, 6, 0, 0))
    files = {
        "truncated": whole[:-40],
        "checksum": whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:],
        "damaged": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"nothing of zlib") + chunk(b"IEND", b""),
        "few pixels": png(ramp((20, 30, 1), 255), 8, 0).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 8, 0, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 40, 8, 0, 0, 0, 0)),
        ),
        "too large": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 0, 0, 0, 0)),
        "no such header": png(ramp((20, 30, 1), 255), 8, 5),
        "animation": png(ramp((20, 30, 1), 255), 8, 0, extra=chunk(b"acTL", struct.pack(">II", 3, 0))),
        "turned": png(ramp((20, 30, 1), 255), 8, 0, extra=turned),
        "text": b"not an image at all, but some text",
        "empty": b"",
        "gzip": b"\x1f\x8b\x08nothing",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name, mine in zip(files, read(*(tmp_path / name for name in files)), strict=True):
        assert "\n" not in mine.get("error", "\n"), name


# --- DICOM and NIfTI -------------------------------------------------------------------------------------------------


@needs_node
def test_dicom_equals_our_reader(tmp_path):
    draw = np.random.default_rng(0)
    whole = draw.integers(0, 4095, (7, 9)).astype(np.uint16)
    signed = draw.integers(-2048, 2047, (7, 9)).astype(np.int16)
    colour = draw.integers(0, 255, (7, 9, 3)).astype(np.uint8)
    implicit = "1.2.840.10008.1.2"
    files = [
        dicom(tmp_path / "plain.dcm", whole, PixelSpacing=[0.5, 0.7]),
        dicom(tmp_path / "implicit.dcm", whole, syntax=implicit, ImagerPixelSpacing=[0.2, 0.1]),
        dicom(tmp_path / "reversed.dcm", whole, light="MONOCHROME1"),
        dicom(tmp_path / "signed.dcm", signed, RescaleSlope="0.5", RescaleIntercept="-1000"),
        dicom(tmp_path / "signed reversed.dcm", signed, light="MONOCHROME1", syntax=implicit),
        dicom(tmp_path / "eight.dcm", colour[..., 0], stored=8),
        dicom(tmp_path / "colour.dcm", colour, light="RGB", stored=8),
        dicom(tmp_path / "planes.dcm", colour, light="RGB", stored=8, planar=1),
    ]
    for path, mine in zip(files, read(*files), strict=True):
        image = open_image(path)
        assert "error" not in mine, f"{path}: {mine}"
        np.testing.assert_allclose(mine["values"].reshape(image.pixels.shape), image.pixels, rtol=1e-6, err_msg=path)
        if image.grid.spacing_mm is not None:
            np.testing.assert_allclose(mine["spacing"], image.grid.spacing_mm[-2:])


@needs_node
def test_dicom_that_is_not_read_is_refused(tmp_path):
    whole = np.zeros((7, 9), np.uint16)
    files = [
        dicom(tmp_path / "series.dcm", whole, NumberOfFrames="2"),
        dicom(tmp_path / "palette.dcm", whole, light="PALETTE COLOR"),
        dicom(tmp_path / "short.dcm", whole),
    ]
    files[2].write_bytes(files[2].read_bytes()[:-60])
    packed = dicom(tmp_path / "packed.dcm", whole)
    packed.write_bytes(packed.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    for mine in read(*files, packed):
        assert mine["error"]


ROTATED = np.array([[0, -1.5, 0, 5], [1.2, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]], float)


@needs_node
def test_nifti_equals_our_reader(tmp_path):
    draw = np.random.default_rng(1)
    files = []
    for kind in ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"):
        files.append(tmp_path / f"{kind}.nii.gz")
        values = draw.integers(0, 100, (4, 5, 6)).astype(kind)
        nib.save(nib.Nifti1Image(values, ROTATED, dtype=values.dtype), files[-1])
    for endian in "<>":
        image = nib.Nifti1Image(
            draw.integers(-99, 99, (4, 5, 6)).astype(np.int16), None, nib.Nifti1Header(endianness=endian)
        )
        image.set_qform(ROTATED, code=1)
        image.header.set_slope_inter(0.5, 10)
        files.append(tmp_path / f"q{ord(endian)}.nii")
        nib.save(image, files[-1])
    metres = nib.Nifti1Image(draw.random((4, 5, 6)).astype(np.float32), np.diag([0.001, 0.002, 0.003, 1]))
    metres.header.set_xyzt_units("meter")
    files.append(tmp_path / "metres.nii")
    nib.save(metres, files[-1])
    for name, image in {
        "picture": Image(Grid((7, 9), spacing=(0.5, 0.25)), draw.integers(0, 9, (1, 7, 9)).astype(np.uint8)),
        "colours": Image(Grid((7, 9)), draw.integers(0, 9, (3, 7, 9)).astype(np.uint8), unit=Unit.RED_GREEN_BLUE),
        "deep colours": Image(Grid((7, 9)), draw.integers(0, 9, (3, 7, 9)).astype(np.uint16)),
        "volume": Image(Grid((4, 7, 9), spacing=(2, 0.5, 0.25)), draw.random((2, 4, 7, 9)).astype(np.float32)),
    }.items():
        files.append(write_nifti(image, tmp_path / f"{name}.nii"))
    for path, mine in zip(files, read(*files), strict=True):
        image = open_image(path)
        assert "error" not in mine, f"{path}: {mine}"
        np.testing.assert_allclose(
            mine["values"].reshape(image.pixels.shape), image.pixels, rtol=1e-6, atol=1e-6, err_msg=str(path)
        )
        if image.grid.affine is not None:
            np.testing.assert_allclose(mine["affine"], image.grid.affine, atol=1e-5)
        if image.grid.spacing_mm is not None:
            np.testing.assert_allclose(mine["spacing"][-image.grid.ndim :], image.grid.spacing_mm, rtol=1e-5)


@needs_node
def test_nifti_that_is_not_read_is_refused(tmp_path):
    complex_ = tmp_path / "complex.nii"
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)), complex_)
    short = tmp_path / "short.nii"
    nib.save(nib.Nifti1Image(np.zeros((30, 4, 5), np.float32), np.eye(4)), short)
    short.write_bytes(short.read_bytes()[:-9])
    newer = tmp_path / "newer.nii"
    nib.save(nib.Nifti2Image(np.zeros((3, 4, 5), np.float32), np.eye(4)), newer)
    series = tmp_path / "series.nii"
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.float32), np.eye(4)), series)
    for mine in read(complex_, short, newer, series):
        assert mine["error"]


# --- channels and spacing --------------------------------------------------------------------------------------------


@needs_node
def test_colour_becomes_grey_with_the_bits_of_training(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Picture.fromarray(colour).save(tmp_path / "colour.png")
    grey = {"channels": 1, "dims": 2, "spacing_mm": None}
    (mine,) = read(tmp_path / "colour.png", contract=grey)
    spec = {"dims": 2, "size": [40, 50], "channels": 1, "storage": "float32", "normalise": {"kind": "none"}}
    planes = torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1)))
    wanted = Preprocess.from_spec(spec).store(planes)[0].numpy()
    np.testing.assert_array_equal(mine["values"][0].astype(np.float32), wanted)
    (three,) = read(tmp_path / "colour.png", contract={**grey, "channels": 3})
    np.testing.assert_array_equal(three["values"], planes.numpy())


@needs_node
def test_spacing_is_that_of_the_runner(tmp_path, smooth):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(smooth((20, 17, 12)).astype(np.float32), np.diag([2, 1.5, 3, 1.0])), path)
    contract = {"channels": 1, "dims": 3, "spacing_mm": [2.0, 2.0, 3.1]}
    (mine,) = read(path, contract=contract)
    scan = runner.read(path)
    sides = [
        round(n * a / b) for n, a, b in zip(scan.values.shape[1:], scan.spacing, contract["spacing_mm"], strict=True)
    ]
    assert mine["shape"] == [1, *sides]
    np.testing.assert_allclose(mine["values"], runner.resample(scan.values, sides), atol=1e-3, rtol=1e-6)


@needs_node
def test_what_does_not_fit_the_model_is_refused(tmp_path):
    path = tmp_path / "scan.nii"
    values = np.zeros((5, 6, 7), np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    (mine,) = read(path, contract={"channels": 1, "dims": 2, "spacing_mm": None})
    assert "2 dimensions" in mine["error"]
    (mine,) = read(path, contract={"channels": 4, "dims": 3, "spacing_mm": None})
    assert "4 channels" in mine["error"]
    values[2, 2, 2] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    (mine,) = read(path, contract={"channels": 1, "dims": 3, "spacing_mm": None})
    assert "not finite" in mine["error"]


# --- the folder ------------------------------------------------------------------------------------------------------


needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")


def cases(root, smooth, *, colour=False, dims=2, count=3, suffix=".png"):
    """A folder of classes with images of several sizes."""
    for number, name in enumerate(("no", "maybe", "yes")):
        (root / name).mkdir(parents=True)
        for k in range(count):
            shape = (30 + 7 * k, 25 + 3 * k) if dims == 2 else (20 + k, 17, 12 + k)
            values = smooth((*shape, 3) if colour else shape, seed=10 * number + k)
            path = root / name / f"{name}{k}{suffix}"
            if dims == 3:
                nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([2, 2, 3, 1.0])), path)
            else:
                Picture.fromarray(values.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def exported(make_classifier, smooth, runtime, tmp_path_factory):
    """Bundle, cases, folder and record of one export of a model of grey pictures."""
    if find_browser() is None:
        pytest.skip("no Chromium is installed")
    root = tmp_path_factory.mktemp("web")
    bundle = make_classifier(root / "bundle", temperature=1.3)
    data = cases(root / "data", smooth)
    record = jobs.export(bundle, to="web", out=root / "page", data=data, runtime=runtime)
    return bundle, data, root / "page", record


def test_a_model_of_grey_pictures_answers_in_the_browser(exported, runtime):
    bundle, data, folder, record = exported
    assert record["accepted"]
    assert record["worst"] < 1e-4
    assert "Chrom" in record["browser"]
    assert record["runtime"] == "onnxruntime-web 1.30.0"
    assert [case["read_by"] for case in record["cases"]] == ["page"] * 9
    assert json.loads((folder / "accepted.json").read_text()) == {
        key: value for key, value in record.items() if key not in ("path", "record")
    }
    assert {path.name for path in folder.iterdir()} == {*web_out.NAMES, "accepted.json"}
    assert jobs.export(bundle, accept=folder, data=data, cases=2)["accepted"]
    (folder / "note.txt").write_text("mine")  # a second export replaces its own files only
    assert jobs.export(bundle, to="web", out=folder, data=data, cases=2, runtime=runtime)["accepted"]
    assert (folder / "note.txt").read_text() == "mine"
    (folder / "note.txt").unlink()


def test_the_model_inside_is_the_exported_file(exported, tmp_path):
    bundle, _, folder, record = exported
    model = web_out.WebFolder(folder).model()
    assert model == write_onnx(Bundle.load(bundle), tmp_path / "model.onnx").read_bytes()
    assert record["sha256"].keys() == set(web_out.NAMES)


@needs_browser
@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"channels": 3, "names": ("no", "yes"), "threshold": 0.3}, {"colour": True}),
        ({"channels": 1, "labels": Labels(("a", "b", "c"), multilabel=True)}, {"colour": True}),
        ({"dims": 3, "views": [[], [2]]}, {"dims": 3, "suffix": ".nii.gz"}),
        ({"dims": 3, "spacing_mm": [3.0, 2.0, 2.5], "fit": "place"}, {"dims": 3, "suffix": ".nii"}),
        ({"channels": 3}, {"colour": True, "suffix": ".jpg"}),
    ],
    ids=["colour", "colour as grey", "volume", "spacing", "jpeg"],
)
def test_models_of_all_kinds_answer_in_the_browser(options, given, make_classifier, smooth, runtime, tmp_path):
    bundle = make_classifier(tmp_path / "bundle", **options)
    data = cases(tmp_path / "data", smooth, count=1, **given)
    record = jobs.export(bundle, to="web", out=tmp_path / "page", data=data, runtime=runtime)
    assert record["worst"] < 1e-4
    by = "vesalius" if given.get("suffix") == ".jpg" else "page"
    assert [case["read_by"] for case in record["cases"]] == [by] * 3


ORGANS = Labels(("background", "liver", "spleen"))
REGIONS = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)))
STEPS = [
    {"label": 1, "keep": "largest"},
    {"label": 2, "fill_holes": True},
    {"label": 2, "min_volume": 30.0, "connectivity": 6},
    {"label": None, "min_volume": 60.0},
]


@needs_browser
@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (ORGANS, {"views": [[], [2]], "members": 2}),
        (ORGANS, {"spec": {"spacing_mm": [2.0, 2.0, 2.0], "crop": "border"}, "post": STEPS}),
        (ORGANS, {"spec": {"window": [-100.0, 500.0], "normalise": {"kind": "fixed", "mean": [90.0], "std": [200.0]}}}),
        (REGIONS, {"norm": "instance", "spec": {"normalise": {"kind": "percentile"}}}),
    ],
    ids=["ensemble", "resampled", "window", "regions"],
)
def test_masks_of_volumes_in_the_browser(labels, options, make_segmenter, smooth, runtime, tmp_path):
    bundle = make_segmenter(tmp_path / "bundle", labels, **options)
    values = smooth((30, 26, 20), seed=3, low=-200, high=900)
    values[:3] = values[:, :, :2] = -200
    turned = np.array([[0.1, -1.5, 0, 5], [1.2, 0, 0.2, -20], [0, 0.1, -2.5, 30], [0, 0, 0, 1]])
    data = tmp_path / "data"
    for name, stored in (("images", values.astype(np.float32)), ("labels", (values > 500).astype(np.uint8))):
        (data / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(stored, turned), data / name / "scan.nii.gz")
    record = jobs.export(bundle, to="web", out=tmp_path / "page", data=data, runtime=runtime)
    assert record["worst"] <= 1e-3
    (case,) = record["cases"]
    assert case["read_by"] == "page"
    assert case["dice"].keys() == set(labels.structures)


@needs_browser
@pytest.mark.parametrize("channels", [1, 3])
def test_masks_of_pictures_in_the_browser(channels, make_segmenter, smooth, runtime, browser, tmp_path):
    steps = [{"label": 2, "keep": "largest"}, {"label": 1, "fill_holes": True}]
    bundle = make_segmenter(tmp_path / "bundle", ORGANS, dims=2, channels=channels, spec={"scale": 0.8}, post=steps)
    files = web_runtime.runtime_files(runtime, Silent())
    folder = web_out.write_web(Bundle.load(bundle), tmp_path / "page", files)
    page = WebPage(browser, (folder / "index.html").as_uri(), tmp_path)
    model = SegmentPredictor.load(bundle, device="cpu", backend="torch")
    for k, shape in enumerate([(40, 52), (17, 33)]):
        path = tmp_path / f"p{k}.png"
        Picture.fromarray(smooth(shape if channels == 1 else (*shape, 3), seed=k).astype(np.uint8)).save(path)
        found, wanted = page.answer(path), model(path).values
        assert found["mask"].shape == shape
        assert (found["mask"] == wanted).mean() > 0.999
        counts = {one["name"]: one["voxels"] for one in found["structures"]}
        assert counts == {name: int((found["mask"] == k).sum()) for k, name in ((1, "liver"), (2, "spleen"))}
    assert page.tab.evaluate("document.querySelector('#kind').textContent") == "Segmentation in this browser"
    shown = page.tab.evaluate("[...document.querySelectorAll('.bar .value')].map((one) => one.textContent)")
    assert shown == [f"{n:,} pixels" for n in counts.values()]


CLEAN = """
globalThis.Reading = require(process.argv[1]);
const Segmenting = require(process.argv[2]);
const [labels, sides, steps] = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const found = steps.map((step) => {
  const mine = Uint8Array.from(labels);
  Segmenting.clean(mine, sides, step, 1.5);
  return Array.from(mine);
});
process.stdout.write(JSON.stringify(found));
"""


@needs_node
@pytest.mark.parametrize("shape", [(14, 15, 13), (40, 50)])
def test_cleaning_is_that_of_the_runner(shape):
    draw = np.random.default_rng(0)
    mask = (ndimage.gaussian_filter(draw.normal(0, 1, shape), 1.2) > 0.05).astype(np.uint8)
    mask[(mask > 0) & (draw.random(shape) < 0.3)] = 2
    near = [26, 18, 6] if len(shape) == 3 else [8, 4]
    steps = [
        *({"label": 1, "keep": "largest", "connectivity": one, "fill_holes": True} for one in near),
        {"label": 1, "min_volume": 20.0},
        {"label": 2, "fill_holes": True},
        {"label": None, "keep": "largest"},
        {"label": 7, "keep": "largest"},
    ]
    done = subprocess.run(
        [NODE, "-e", CLEAN, TEMPLATES / "read.js", TEMPLATES / "segment.js"],
        input=json.dumps([mask.reshape(-1).tolist(), shape, steps]), capture_output=True, text=True, check=True,
    )  # fmt: skip
    for step, mine in zip(steps, json.loads(done.stdout), strict=True):
        wanted = mask.copy()
        run_masks.clean(wanted, step, 1.5)
        np.testing.assert_array_equal(np.reshape(mine, shape), wanted, err_msg=str(step))


SAVE = """
globalThis.Reading = require(process.argv[1]);
const Segmenting = require(process.argv[2]);
const fs = require("fs");
(async () => {
  const scan = await Reading.read(new Uint8Array(fs.readFileSync(process.argv[3])));
  const sides = scan.shape.slice(1), count = sides.reduce((a, b) => a * b, 1), layers = Number(process.argv[5]);
  const values = globalThis[process.argv[6]].from({ length: layers * count }, (_, i) => 300 + (i % 5));
  fs.writeFileSync(process.argv[4], await Segmenting.niftiOf({ values, shape: [layers, ...sides] }, scan));
})();
"""


@needs_node
@pytest.mark.parametrize(
    ("layers", "kind", "stored_as"),
    [
        (1, "Uint8Array", np.uint8),
        (2, "Uint8Array", np.uint8),
        (1, "Uint16Array", np.uint16),
        (1, "Int32Array", np.int32),
    ],
)
def test_a_saved_mask_lies_on_the_grid_of_its_file(layers, kind, stored_as, tmp_path):
    big = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None, nib.Nifti1Header(endianness=">"))
    big.set_qform(ROTATED, code=1)
    big.header.set_slope_inter(0.5, 10)
    nib.save(big, tmp_path / "big.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), ROTATED), tmp_path / "little.nii.gz")
    Picture.fromarray(np.zeros((7, 9), np.uint8)).save(tmp_path / "p.png")
    dicom(tmp_path / "x.dcm", np.zeros((7, 9), np.uint16), PixelSpacing=[0.5, 0.75])
    for name in ("big.nii", "little.nii.gz", "p.png", "x.dcm"):
        out = tmp_path / f"{name}-mask.nii.gz"
        words = [TEMPLATES / "read.js", TEMPLATES / "segment.js", tmp_path / name, out, str(layers), kind]
        subprocess.run([NODE, "-e", SAVE, *words], check=True)
        mask = nib.load(out)
        sides = (4, 5, 6) if "nii" in name else (9, 7)
        assert mask.shape == (sides if layers == 1 else (*sides, *(1,) * (3 - len(sides)), 2))
        stored = np.asarray(mask.dataobj).reshape(-1, order="F")
        assert mask.get_data_dtype().newbyteorder("=") == stored_as
        np.testing.assert_array_equal(stored, (300 + np.arange(stored.size) % 5).astype(stored_as))
        if "nii" in name:
            np.testing.assert_allclose(mask.affine, ROTATED, atol=1e-6)
        elif name == "x.dcm":
            assert mask.header.get_zooms()[:2] == (0.75, 0.5)


@pytest.fixture
def served(exported):
    """Address of the exported folder on a server of static files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=exported[2])) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
        server.shutdown()
        thread.join()


def test_the_page_on_a_server_asks_nobody_else(exported, served, browser, smooth, tmp_path):
    bundle, data, _, _ = exported
    page = WebPage(browser, served, tmp_path)
    model = Predictor.load(bundle, device="cpu")
    for path in sorted(data.rglob("*.png"))[:2]:
        found, wanted = page.answer(path), model(path)
        np.testing.assert_allclose(list(found["probabilities"].values()), wanted.probabilities, atol=1e-4)
        assert found["class"] == wanted.top
        assert found["exact"]
        assert page.tab.evaluate("document.querySelector('#said').textContent") == wanted.top
        shares = page.tab.evaluate("[...document.querySelectorAll('.bar .value')].map((one) => one.textContent)")
        assert shares == [
            "> 99.9 %" if p > 0.9995 else "< 0.1 %" if p < 0.0005 else f"{100 * p:.1f} %" for p in wanted.probabilities
        ]
    # JPEG is decoded by the browser: nearly the same, and the page says so.
    picture = Picture.open(path)
    picture.save(tmp_path / "film.jpg", quality=95)
    found = page.answer(tmp_path / "film.jpg")
    assert not found["exact"]
    np.testing.assert_allclose(
        list(found["probabilities"].values()), model(tmp_path / "film.jpg").probabilities, atol=0.02
    )
    assert "grey level" in page.tab.evaluate("document.querySelector('#note').textContent")
    # What cannot be read gets one line, and the page goes on.
    (tmp_path / "letter.txt").write_text("dear colleague")
    assert "expected PNG" in page.answer(tmp_path / "letter.txt")["error"]
    assert page.answer(path)["class"] == wanted.top
    assert page.strangers() == []
    asked = [url for url in page.tab.requests() if url.startswith("http")]
    assert {url.rpartition("/")[2] for url in asked} <= {*web_out.NAMES}


def test_no_address_stands_in_the_page(exported):
    for name in (*web_out.OURS, web_out.CONTRACT):
        text = (exported[2] / name).read_text()
        assert not re.search(r"\b(https?|wss?)://", text), name
        assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts)\b", text), name


def copied(exported, tmp_path):
    bundle, data, folder, _ = exported
    return bundle, data, shutil.copytree(folder, tmp_path / "page")


def test_a_page_that_asks_for_something_is_refused(exported, tmp_path):
    bundle, data, folder = copied(exported, tmp_path)
    (folder / "accepted.json").unlink()
    page = folder / "index.html"
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    page.write_text(text.replace("</main>", '<img src="http://vesalius.example/pixel.png" alt=""></main>'))
    with pytest.raises(AcceptanceError, match=r"asked for http://vesalius\.example"):
        jobs.export(bundle, accept=folder, data=data, cases=1)


def put_model(folder, data):
    """Put another model into the script of the page."""
    letters = base64.b64encode(data).decode()
    script = folder / "model.js"
    script.write_text(re.sub(r'"[^"]*"', lambda _: f'"{letters}"', script.read_text()))


def test_a_changed_model_is_refused(exported, tmp_path):
    bundle, data, folder = copied(exported, tmp_path)
    model = onnx.load_model_from_string(web_out.WebFolder(folder).model())
    weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[len(values.flat) // 2] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    put_model(folder, model.SerializeToString())
    with pytest.raises(AcceptanceError, match="is not the file that was accepted") as caught:
        jobs.export(bundle, accept=folder, data=data)
    assert caught.value.exit_code == 6
    (folder / "accepted.json").unlink()  # without its record the seal inside the model gives it away
    with pytest.raises(AcceptanceError, match="was changed after it was exported"):
        jobs.export(bundle, accept=folder, data=data)
    next(entry for entry in model.metadata_props if entry.key == SEAL_KEY).value = BLANK
    data_of = sealed(model.SerializeToString())
    put_model(folder, data_of)  # with a new seal the page itself notices
    with pytest.raises(AcceptanceError, match="is not the model that this page was made with"):
        jobs.export(bundle, accept=folder, data=data)
    contract = folder / "contract.js"
    sums = (f'"model_sha256": "{hashlib.sha256(data_of).hexdigest()}"',)
    contract.write_text(re.sub(r'"model_sha256": "\w+"', sums[0], contract.read_text()))
    with pytest.raises(AcceptanceError, match="differs from its bundle"):  # and at last the answers do
        jobs.export(bundle, accept=folder, data=data)


def test_an_incomplete_folder_is_refused(exported, tmp_path):
    bundle, data, folder = copied(exported, tmp_path)
    (folder / "runtime.js").unlink()
    with pytest.raises(FileError, match=r"no runtime\.js"):
        jobs.export(bundle, accept=folder, data=data)


def test_without_a_browser_the_record_says_so(make_classifier, smooth, runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(web_check, "find_browser", lambda: None)
    bundle = make_classifier(tmp_path / "bundle")
    data = cases(tmp_path / "data", smooth, count=1)
    words = ["export", str(bundle), "--to", "web", "--data", str(data), "--out", str(tmp_path / "page")]
    assert main([*words, *([] if runtime is None else ["--runtime", runtime])]) == 0
    assert "not tried in a browser (no Chromium was found)" in capsys.readouterr().out
    record = json.loads((tmp_path / "page" / "accepted.json").read_text())
    assert record["browser"] is None
    assert record["accepted"]


@pytest.mark.skipif(os.name == "nt", reason="pipes are handed over otherwise")
def test_a_browser_that_does_not_start_is_told(tmp_path):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho a library is missing >&2\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "profile").mkdir()
    with pytest.raises(VesaliusError, match="does not start: a library is missing"):
        Browser(str(program), tmp_path / "profile")


# --- what is refused before anything is written ----------------------------------------------------------------------


def test_a_folder_with_other_files_is_left_alone(make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    data = cases(tmp_path / "data", smooth, count=1)
    with pytest.raises(UsageError, match="holds other files"):
        jobs.export(folder, to="web", out=tmp_path, data=data)
    with pytest.raises(UsageError, match="is a file"):
        jobs.export(folder, to="web", out=folder / "bundle.json", data=data)
    with pytest.raises(UsageError, match="--runtime is for --to web"):
        jobs.export(folder, runtime=tmp_path, data=data)


def test_the_runtime_is_checked(tmp_path, monkeypatch):
    with pytest.raises(FileError, match="no files of onnxruntime-web"):
        web_runtime.runtime_files(tmp_path, Silent())
    with pytest.raises(FileError, match="nothing at this path"):
        web_runtime.runtime_files(tmp_path / "absent.tgz", Silent())
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/dist/ort.wasm.min.js"), io.BytesIO(b""))
    with pytest.raises(AcceptanceError, match="SHA-512"):
        web_runtime.runtime_files(tmp_path / "other.tgz", Silent())
    (tmp_path / "dist").mkdir()
    for name in web_runtime.FILES:
        (tmp_path / "dist" / name).write_text("something else")
    with pytest.raises(AcceptanceError, match="SHA-256"):
        web_runtime.runtime_files(tmp_path, Silent())
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="no npm"):
        web_runtime.runtime_files(None, Silent())
    fails = tmp_path / "npm"
    fails.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setattr(web_runtime.shutil, "which", lambda name: str(fails))
    with pytest.raises(UsageError, match=r"did not deliver it \(no network\)"):
        web_runtime.runtime_files(None, Silent())


CARD = r"""# lungs

On 9 cases it told a\_b from c.

> **Few cases.** Only 9.
>
> **No patients.** Unknown.

## What it is for

Research, and
nothing else.

* Classes: a\_b, c
* Weights: 12

## How it was validated

| number | value |
|---|--:|
| AUROC | 0.9 \| 1 |

## How to use it

```sh
vesalius predict x
```
"""


def test_the_card_becomes_plain_blocks():
    assert web_out.card_blocks(CARD) == [
        {"kind": "title", "text": "lungs"},
        {"kind": "text", "text": "On 9 cases it told a_b from c."},
        {"kind": "warning", "text": "Few cases. Only 9."},
        {"kind": "warning", "text": "No patients. Unknown."},
        {"kind": "section", "text": "What it is for"},
        {"kind": "text", "text": "Research, and nothing else."},
        {"kind": "list", "items": ["Classes: a_b, c", "Weights: 12"]},
        {"kind": "section", "text": "How it was validated"},
        {"kind": "table", "rows": [["number", "value"], ["AUROC", "0.9 | 1"]]},
        {"kind": "section", "text": "How to use it"},
        {"kind": "code", "text": "vesalius predict x"},
    ]


def test_what_the_page_says_comes_from_the_bundle(make_classifier, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "bundle", names=("normal", "opacity"), threshold=0.25))
    bundle.card = CARD
    about = web_out.about_model(bundle)
    assert about["title"] == "Normal or opacity?"
    assert about["purpose"] == "Research, and nothing else."
    assert about["threshold"] == 0.25
    assert ["Tested", "On 9 cases it told a_b from c."] in about["facts"]
    assert [block["text"] for block in about["card"] if block["kind"] == "section"] == [
        "What it is for",
        "How it was validated",
    ]
