"""NRRD and MetaImage against SimpleITK, and headers written by hand against the formulas of their formats."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everyone writes it
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import read_or_refused
from scipy.spatial.transform import Rotation

from vesalius.core.errors import GeometryError, LimitError, UnreadableFile
from vesalius.core.image import Unit
from vesalius.io.itk import read_itk
from vesalius.io.limits import read_limits
from vesalius.io.open import open_image

MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SUFFIXES = [".nrrd", ".nhdr", ".mha", ".mhd"]


def ramp(*shape, dtype=np.int16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@MANY
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.1, 5)] * 3),
    st.tuples(*[st.floats(-400, 400)] * 3),
    st.sampled_from([-1, 1]),
    st.sampled_from(SUFFIXES),
    st.booleans(),
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
)
def test_any_place_agrees_with_simpleitk(tmp_path, turn, steps, origin, mirror, suffix, packed, dtype):
    values = ramp(3, 4, 5, dtype=dtype)
    theirs = sitk.GetImageFromArray(values)
    matrix = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * [1, 1, mirror]
    theirs.SetDirection(matrix.ravel())
    theirs.SetSpacing(steps)
    theirs.SetOrigin(origin)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(theirs, str(path), useCompression=packed)
    mine = open_image(path)
    assert mine.pixels.dtype == dtype
    assert np.array_equal(mine.pixels[0], values)
    for z, y, x in ((0, 0, 0), (2, 3, 4), (0, 3, 0), (2, 0, 1)):
        assert np.allclose(theirs.TransformIndexToPhysicalPoint((x, y, z)), mine.grid.to_patient([z, y, x]), atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_and_colours(tmp_path, suffix):
    flat = sitk.GetImageFromArray(ramp(4, 5))
    flat.SetSpacing((0.25, 0.5))
    sitk.WriteImage(flat, str(tmp_path / f"a{suffix}"))
    mine = open_image(tmp_path / f"a{suffix}")
    assert mine.pixels.shape == (1, 4, 5)
    assert mine.grid.affine is None
    assert mine.grid.spacing_mm == (0.5, 0.25)
    sitk.WriteImage(
        sitk.GetImageFromArray(ramp(3, 4, 5, 3, dtype=np.uint8), isVector=True), str(tmp_path / f"b{suffix}")
    )
    mine = open_image(tmp_path / f"b{suffix}")
    assert np.array_equal(np.moveaxis(mine.pixels, 0, -1), ramp(3, 4, 5, 3, dtype=np.uint8))
    assert mine.unit is Unit.RED_GREEN_BLUE
    sitk.WriteImage(sitk.GetImageFromArray(ramp(3, 4, 5, 2), isVector=True), str(tmp_path / f"c{suffix}"))
    assert np.array_equal(np.moveaxis(open_image(tmp_path / f"c{suffix}").pixels, 0, -1), ramp(3, 4, 5, 2))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_fourth_axis_is_refused_unless_it_has_one_item(tmp_path, suffix):
    sitk.WriteImage(sitk.GetImageFromArray(ramp(2, 3, 4, 5), isVector=False), str(tmp_path / f"a{suffix}"))
    with pytest.raises(UnreadableFile, match="4 axes"):
        open_image(tmp_path / f"a{suffix}")
    sitk.WriteImage(sitk.GetImageFromArray(ramp(1, 3, 4, 5), isVector=False), str(tmp_path / f"b{suffix}"))
    assert np.array_equal(open_image(tmp_path / f"b{suffix}").pixels[0], ramp(3, 4, 5))


def test_complex_values_are_refused(tmp_path):
    # Not in .mha: ITK writes them there as two plain channels.
    sitk.WriteImage(sitk.GetImageFromArray(ramp(3, 4, 5).astype(np.complex64)), str(tmp_path / "a.nrrd"))
    with pytest.raises(UnreadableFile, match=r"a\.nrrd.*complex"):
        open_image(tmp_path / "a.nrrd")


def nrrd(path, *lines, values=None, packed=False):
    values = ramp(3, 4, 5) if values is None else values
    sizes = " ".join(str(side) for side in values.shape[::-1])
    head = ["NRRD0004", "type: int16", f"dimension: {values.ndim}", f"sizes: {sizes}", "endian: little"]
    body = values.astype("<i2").tobytes()
    head.append(f"encoding: {'gzip' if packed else 'raw'}")
    path.write_bytes("\n".join([*head, *lines, "", ""]).encode() + (gzip.compress(body) if packed else body))
    return path


def test_nrrd_without_geometry_has_none(tmp_path):
    mine = open_image(nrrd(tmp_path / "a.nrrd"))
    assert np.array_equal(mine.pixels[0], ramp(3, 4, 5))
    assert mine.grid.spacing_mm is None
    mine = open_image(nrrd(tmp_path / "b.nrrd", "spacings: 0.25 0.5 2"))
    assert mine.grid.affine is None
    assert mine.grid.spacing_mm == (2, 0.5, 0.25)
    mine = open_image(nrrd(tmp_path / "c.nrrd", "space dimension: 3", "space directions: (2,0,0) (0,3,0) (0,0,4)"))
    assert mine.grid.affine is None
    assert mine.grid.spacing_mm == (4, 3, 2)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)), ("LPS", (1, 1, 1)), ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)), ("left-anterior-superior", (1, -1, 1)), ("LAS", (1, -1, 1)),
    ],
)  # fmt: skip
def test_nrrd_spaces(tmp_path, space, signs):
    # teem's definition: position = origin + sum of index times direction, in the named space.
    directions = np.array([[0, 0.5, 0], [0.3, 0, 0.4], [-1.2, 0, 0.9]])
    text = " ".join(f"({x},{y},{z})" for x, y, z in directions)
    path = nrrd(tmp_path / "a.nrrd", f"space: {space}", f"space directions: {text}", "space origin: (10,-20,30)")
    mine = open_image(path)
    index = np.array([2, 3, 4])  # z, y, x
    expected = (np.array([10, -20, 30]) + index[::-1] @ directions) * signs
    assert np.allclose(mine.grid.to_patient(index), expected)


def test_nrrd_units(tmp_path):
    place = ("space: LPS", "space directions: (2,0,0) (0,3,0) (0,0,4)", "space origin: (1,2,3)")
    mine = open_image(nrrd(tmp_path / "a.nrrd", *place, 'space units: "cm" "cm" "cm"'))
    assert mine.grid.spacing_mm == pytest.approx((40, 30, 20))
    assert np.allclose(mine.grid.to_patient([0, 0, 0]), (10, 20, 30))
    with pytest.raises(GeometryError, match="space units"):
        open_image(nrrd(tmp_path / "b.nrrd", *place, 'space units: "cm" "mm" "parsec"'))
    with pytest.raises((GeometryError, UnreadableFile), match=r"c\.nrrd"):
        open_image(nrrd(tmp_path / "c.nrrd", place[0], "space directions: (2,0,0) (4,0,0) (0,0,4)"))


def meta(path, *lines, file="LOCAL", body=None):
    head = ["ObjectType = Image", "NDims = 3", "DimSize = 5 4 3", "ElementType = MET_SHORT",
            "BinaryData = True", "BinaryDataByteOrderMSB = False", *lines, f"ElementDataFile = {file}", ""]  # fmt: skip
    path.write_bytes("\n".join(head).encode() + (ramp(3, 4, 5).astype("<i2").tobytes() if body is None else body))
    return path


def test_meta_image_without_geometry_has_none(tmp_path):
    mine = open_image(meta(tmp_path / "a.mha"))
    assert np.array_equal(mine.pixels[0], ramp(3, 4, 5))
    assert mine.grid.spacing_mm is None
    mine = open_image(meta(tmp_path / "b.mha", "ElementSpacing = 0.25 0.5 2"))
    assert mine.grid.affine is None
    assert mine.grid.spacing_mm == (2, 0.5, 0.25)
    mine = open_image(meta(tmp_path / "c.mha", "ElementSpacing = 0.25 0.5 2", "Offset = 1 2 3"))
    assert np.allclose(mine.grid.to_patient([1, 1, 1]), (1.25, 2.5, 5))


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("/etc/passwd", "another folder"),
        ("../a.raw", "another folder"),
        ("sub\\a.raw", "another folder"),
        ("LIST", "several files"),
        ("a%03d.raw 1 3 1", "several files"),
        ("none.raw", r"none\.raw beside it"),
    ],
)
def test_pixels_come_from_a_file_beside_the_header_only(tmp_path, file, found):
    with pytest.raises(UnreadableFile, match=found) as caught:
        open_image(meta(tmp_path / "a.mhd", file=file))
    assert str(caught.value).startswith(str(tmp_path / "a.mhd"))
    if file != "LIST":
        with pytest.raises(UnreadableFile, match=found):
            open_image(nrrd(tmp_path / "a.nhdr", f"data file: {file}"))


def test_limits_hold_before_decoding(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(ramp(3, 4, 5)), str(tmp_path / "a.mhd"))
    with read_limits(max_pixels=59), pytest.raises(LimitError, match="3 x 4 x 5"):
        open_image(tmp_path / "a.mhd")
    with (tmp_path / "a.raw").open("r+b") as file:
        file.truncate(5000)
    with read_limits(max_file_bytes=4000), pytest.raises(LimitError, match=r"a\.raw"):
        open_image(tmp_path / "a.mhd")
    bomb = nrrd(tmp_path / "b.nrrd")
    bomb.write_bytes(bomb.read_bytes().replace(b"sizes: 5 4 3", b"sizes: 50000 40000 3000"))
    with pytest.raises(LimitError, match="3000 x 40000 x 50000"):
        open_image(bomb)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.9999))
def test_every_cut_is_refused(tmp_path, suffix, packed, part):
    sitk.WriteImage(sitk.GetImageFromArray(ramp(3, 4, 5)), str(tmp_path / f"a{suffix}"), useCompression=packed)
    whole = (tmp_path / f"a{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(part * len(whole))])
    image = read_or_refused(open_image, path)
    assert image is None or np.array_equal(image.pixels[0], ramp(3, 4, 5))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_never_raises_anything_else(tmp_path, suffix, changes):
    sitk.WriteImage(sitk.GetImageFromArray(ramp(3, 4, 5)), str(tmp_path / f"a{suffix}"))
    whole = bytearray((tmp_path / f"a{suffix}").read_bytes())
    for place, value in changes:
        whole[int(place * len(whole))] = value
    (tmp_path / f"damaged{suffix}").write_bytes(whole)
    with read_limits(max_pixels=10**7):
        read_or_refused(read_itk, tmp_path / f"damaged{suffix}")


def test_content_decides_and_names_may_be_anything(tmp_path):
    odd = tmp_path / "Schädel CT #2 頭.png"
    sitk.WriteImage(sitk.GetImageFromArray(ramp(3, 4, 5)), str(tmp_path / "a.nrrd"))
    (tmp_path / "a.nrrd").rename(odd)
    assert np.array_equal(open_image(odd).pixels[0], ramp(3, 4, 5))
    odd.write_bytes(b"something else")
    with pytest.raises(UnreadableFile, match="neither an NRRD nor a MetaImage"):
        read_itk(odd)
