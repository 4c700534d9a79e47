"""Which image belongs to which mask, and how a mask comes in."""

import json

import numpy as np
import pytest

from vesalius.core.errors import DataError, FileError, GeometryError, UsageError
from vesalius.core.geometry import Grid, affine_from_axes
from vesalius.core.image import Image
from vesalius.io.nifti_out import write_nifti
from vesalius.io.raster_out import write_png
from vesalius.serve.measure_cases import MeasureCase, find_cases, known_names, parse_names, plain_name
from vesalius.serve.measure_loading import load

AXES = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def nifti(path, values, spacing=(2.0, 1.0, 1.0), origin=(0, 0, 0)):
    grid = Grid(values.shape[-3:], affine=affine_from_axes(origin, AXES, spacing))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(Image(grid=grid, pixels=values if values.ndim == 4 else values[None]), path)
    return path


def picture(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, values)
    return path


@pytest.fixture
def flat():
    mask = np.zeros((12, 10), np.uint8)
    mask[2:5, 3:7] = 1
    return mask


@pytest.fixture
def solid():
    mask = np.zeros((4, 6, 5), np.uint8)
    mask[1:3, 2:4, 1:4] = 1
    return mask


@pytest.mark.parametrize(
    ("mask", "image"),
    [
        ("a.png", "a.png"),
        ("sub/a.png", "sub/a.png"),
        ("sub/a.png", "elsewhere/a.png"),
        ("a_seg.png", "a.png"),
        ("a.png", "a_0000.png"),
        ("a-mask.png", "a.jpg"),
        ("a.labels.png", "a.png"),
    ],
)
def test_partners_are_found_by_name(tmp_path, flat, mask, image):
    picture(tmp_path / "masks" / mask, flat)
    picture(tmp_path / "masks" / "other.png", flat)
    picture(tmp_path / "images" / image, flat)
    picture(tmp_path / "images" / "unrelated.png", flat)
    found = find_cases([tmp_path / "masks"], tmp_path / "images")
    partner = {case.mask: case.image for case in found.cases}
    assert partner[str(tmp_path / "masks" / mask)] == str(tmp_path / "images" / image)
    assert partner[str(tmp_path / "masks" / "other.png")] is None
    assert "1 of 2 masks have no image" in found.problems[0]


def test_a_name_that_two_images_share_is_not_guessed(tmp_path, flat):
    for place in ("masks/a.png", "masks/b.png", "images/x/a.png", "images/y/a.png", "images/b.png"):
        picture(tmp_path / place, flat)
    found = find_cases([tmp_path / "masks"], tmp_path / "images")
    assert [case.image and case.image[-5:] for case in found.cases] == [None, "b.png"]


def test_case_ids_are_unique(tmp_path, flat):
    for place in ("one/a.png", "two/a.png", "two/b.png"):
        picture(tmp_path / place, flat)
    ids = [case.case_id for case in find_cases([tmp_path]).cases]
    assert ids == ["one/a", "two/a", "two/b"]
    ids = [case.case_id for case in find_cases([tmp_path / "one" / "a.png", tmp_path / "two" / "a.png"]).cases]
    assert len(set(ids)) == 2


def test_wrong_paths_are_one_line(tmp_path, flat):
    picture(tmp_path / "masks" / "a.png", flat)
    picture(tmp_path / "masks" / "b.png", flat)
    picture(tmp_path / "images" / "x.png", flat)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nowhere: there is no such file or folder"):
        find_cases([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match=r"--image .*nowhere"):
        find_cases([tmp_path / "masks"], tmp_path / "nowhere")
    with pytest.raises(DataError, match="no mask here"):
        find_cases([tmp_path / "empty"])
    with pytest.raises(DataError, match="none of 1 files has the name of a mask"):
        find_cases([tmp_path / "masks"], tmp_path / "images")
    with pytest.raises(UsageError, match="one file for 2 masks"):
        find_cases([tmp_path / "masks"], tmp_path / "images" / "x.png")


def test_plain_name():
    assert [plain_name(name) for name in ("x/a_seg", "a_0000", "a", "b.mask", "seg")] == ["a", "a", "a", "b", "seg"]


def test_names(tmp_path):
    assert parse_names("1=liver, 2=left kidney") == {1: "liver", 2: "left kidney"}
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"1": "liver"}))
    assert parse_names(str(file)) == {1: "liver"}
    for wrong in ("liver", "1:liver", "x=liver", str(tmp_path / "none.json")):
        with pytest.raises(UsageError, match="--names"):
            parse_names(wrong)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 2}}))
    (tmp_path / "labelsTr").mkdir()
    assert known_names(tmp_path / "labelsTr") == {2: "tumour"}


def test_a_mask_in_colour_is_labels(tmp_path):
    pixels = np.zeros((3, 8, 8), np.uint8)
    pixels[0, :4] = 255
    pixels[2, 4:, :4] = 128
    found = load(MeasureCase("a", str(picture(tmp_path / "a.png", pixels))), names={})
    assert sorted(np.unique(found.labels)) == [0, 0x80, 0xFF0000]
    assert found.names == {0x80: "#000080", 0xFF0000: "#ff0000"}
    grey = np.repeat(pixels[:1], 3, axis=0)
    assert sorted(np.unique(load(MeasureCase("g", str(picture(tmp_path / "g.png", grey))), names={}).labels)) == [
        0,
        255,
    ]
    photo = np.random.default_rng(0).integers(0, 255, (3, 40, 40)).astype(np.uint8)
    with pytest.raises(FileError, match="colours, which looks like a picture"):
        load(MeasureCase("p", str(picture(tmp_path / "p.png", photo))), names={})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.array([0.0, 0.4]), "fractions, such as 0.4"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
        (np.array([0.0, -3.0]), "the value -3"),
    ],
)
def test_a_mask_that_is_none_is_refused(tmp_path, values, line):
    path = nifti(tmp_path / "m.nii.gz", np.resize(values, (2, 4, 4)).astype(np.float32))
    with pytest.raises(FileError, match=line) as told:
        load(MeasureCase("m", str(path)), names={})
    assert str(path) in str(told.value)


def test_an_image_elsewhere_is_refused(tmp_path, solid):
    mask = nifti(tmp_path / "m.nii.gz", solid)
    for name, wrong in {
        "spacing": {"spacing": (2.0, 1.0, 1.2)},
        "place": {"origin": (5, 0, 0)},
    }.items():
        image = nifti(tmp_path / f"{name}.nii.gz", solid.astype(np.float32), **wrong)
        with pytest.raises(GeometryError, match="resample the image to the mask"):
            load(MeasureCase("m", str(mask), str(image)), names={})
    small = nifti(tmp_path / "small.nii.gz", solid[:2])
    with pytest.raises(GeometryError, match=r"shape 2x6x5; expected that of the mask .*4x6x5"):
        load(MeasureCase("m", str(mask), None, str(small)), names={})


def test_spacing_is_taken_only_where_there_is_none(tmp_path, flat, solid):
    loaded = load(MeasureCase("a", str(picture(tmp_path / "a.png", flat))), names={}, spacing=(0.5, 0.25))
    assert loaded.spacing == (0.5, 0.25)
    assert "was given" in loaded.notes[0]
    mask = nifti(tmp_path / "m.nii.gz", solid)
    assert load(MeasureCase("m", str(mask)), names={}, spacing=(2.0, 1.0, 1.0)).spacing == pytest.approx((2, 1, 1))
    with pytest.raises(GeometryError, match=r"the file says 2x1x1 mm"):
        load(MeasureCase("m", str(mask)), names={}, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="2 axes"):
        load(MeasureCase("a", str(tmp_path / "a.png")), names={}, spacing=(1.0, 1.0, 1.0))


def test_only_the_labels_asked_for(tmp_path, flat):
    flat[8:10, 2:4] = 2
    loaded = load(MeasureCase("a", str(picture(tmp_path / "a.png", flat))), names={2: "two"}, only=[2])
    assert sorted(np.unique(loaded.labels)) == [0, 2]
    assert loaded.name_of(2) == "two"
    assert loaded.name_of(7) == "7"
