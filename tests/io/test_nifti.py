"""NIfTI in and out against nibabel and SimpleITK, and what its header may say wrongly."""

from __future__ import annotations

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everyone writes it
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refusals import read_or_refused
from scipy.spatial.transform import Rotation

from vesalius.core.errors import DataError, GeometryError, LimitError, UnreadableFile, UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image, Unit
from vesalius.core.labels import Labels
from vesalius.core.prediction import Mask
from vesalius.io.limits import read_limits
from vesalius.io.nifti import read_nifti
from vesalius.io.nifti_out import write_nifti
from vesalius.io.open import open_image

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8"]
sides = st.integers(1, 7)


@st.composite
def affines(draw):
    """LPS affines: turned anyhow, mirrored, with steps that differ by a factor of up to 50."""
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    steps = draw(st.tuples(*[st.floats(0.1, 5)] * 3))
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(steps) * np.array(signs)
    matrix[:3, 3] = draw(st.tuples(*[st.floats(-400, 400)] * 3))
    return matrix


def volume(shape=(3, 4, 5), dtype=np.int16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def saved(tmp_path, array, affine=None, name="a.nii", **header):
    """A file by nibabel with header fields as given; array is in NIfTI's order (i, j, k, ...)."""
    image = nib.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine, dtype=array.dtype)
    path = tmp_path / name
    nib.save(image, path)
    if header:
        raw = bytearray(path.read_bytes())
        for offset, (code, *values) in header.pop("at").items():
            struct.pack_into("<" + code, raw, offset, *values)
        path.write_bytes(raw)
    return path


@MANY
@given(
    hnp.arrays(st.sampled_from(TYPES), st.tuples(sides, sides, sides)),
    affines(),
    st.sampled_from([".nii", ".nii.gz"]),
)
def test_volumes_come_back_and_others_agree(tmp_path, values, affine, suffix):
    image = Image(Grid(values.shape, affine=affine), values[None])
    path = write_nifti(image, tmp_path / f"a{suffix}")
    back = open_image(path)
    assert back.pixels.dtype == values.dtype
    assert np.array_equal(back.pixels[0], values, equal_nan=values.dtype.kind == "f")
    assert back.grid.same_place(image.grid)
    theirs = nib.load(path)
    assert np.array_equal(np.asarray(theirs.dataobj), values.T, equal_nan=values.dtype.kind == "f")
    last = np.array(values.shape) - 1
    ras = nib.affines.apply_affine(theirs.affine, last[::-1])
    assert np.allclose(ras * [-1, -1, 1], image.grid.to_patient(last), atol=1e-3)


@MANY
@given(affines(), st.integers(2, 6), st.integers(2, 6))
def test_simpleitk_puts_the_voxels_where_we_do(tmp_path, affine, rows, columns):
    values = volume((3, rows, columns))
    path = write_nifti(Image(Grid(values.shape, affine=affine), values[None]), tmp_path / "a.nii.gz")
    theirs = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(theirs), values)
    grid = Grid(values.shape, affine=affine)
    for z, y, x in ((0, 0, 0), (2, rows - 1, columns - 1), (0, rows - 1, 0)):
        assert np.allclose(theirs.TransformIndexToPhysicalPoint((x, y, z)), grid.to_patient([z, y, x]), atol=1e-3)
    sitk.WriteImage(theirs, str(tmp_path / "b.nii"))
    back = open_image(tmp_path / "b.nii")
    assert np.array_equal(back.pixels[0], values)
    assert back.grid.same_place(grid, tolerance_mm=2e-3)


@MANY
@given(affines(), st.sampled_from([".nii", ".nii.gz"]), st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
def test_nibabel_writes_and_we_read(tmp_path, affine, suffix, kind):
    values = volume((4, 3, 2), np.float32) / 7
    path = tmp_path / f"a{suffix}"
    nib.save(kind(values, affine), path)
    image = open_image(path)
    assert np.array_equal(image.pixels[0], values.T)
    stored = nib.load(path).affine
    assert np.allclose(
        image.grid.to_patient([1, 2, 3]), nib.affines.apply_affine(stored, [3, 2, 1]) * [-1, -1, 1], atol=1e-4
    )
    assert image.meta["format"] == ("NIfTI-2" if kind is nib.Nifti2Image else "NIfTI-1")


def test_sheared_axes_survive_in_the_sform_and_make_no_qform(tmp_path):
    affine = np.array([[0.5, 0.1, 1.0, 5], [0, 1, 0.2, -7], [2, 0, 0, 9], [0, 0, 0, 1.0]])
    values = volume()
    path = write_nifti(Image(Grid(values.shape, affine=affine), values[None]), tmp_path / "a.nii")
    assert int(nib.load(path).header["qform_code"]) == 0
    assert open_image(path).grid.same_place(Grid(values.shape, affine=affine))


def test_two_axes_with_a_place(tmp_path):
    affine = np.array([[0.0, 0.5, 0, 5], [0, 0, 0.25, -7], [1, 0, 0, 9], [0, 0, 0, 1.0]])
    values = volume((4, 5))
    path = write_nifti(Image(Grid((4, 5), affine=affine), values[None]), tmp_path / "a.nii")
    back = open_image(path)
    assert back.pixels.shape == (1, 4, 5)
    assert nib.load(path).shape == (5, 4)
    assert back.grid.same_place(Grid((4, 5), affine=affine))


@pytest.mark.parametrize("grid", [Grid((3, 4, 5)), Grid((3, 4, 5), spacing=(3, 0.5, 0.25)), Grid((3, 4, 5), np.eye(4))])
def test_geometry_is_never_made_up(tmp_path, grid):
    back = open_image(write_nifti(Image(grid, volume()[None]), tmp_path / "a.nii"))
    assert back.grid.same_place(grid)
    assert (back.grid.affine is None) == (grid.affine is None)
    assert back.grid.spacing_mm == grid.spacing_mm


def test_colours_and_channels(tmp_path):
    picture = volume((3, 4, 5), np.uint8)
    image = Image(Grid((4, 5)), picture, unit=Unit.RED_GREEN_BLUE, channels=("red", "green", "blue"))
    back = open_image(write_nifti(image, tmp_path / "rgb.nii"))
    assert np.array_equal(back.pixels, picture)
    assert (back.unit, back.channels) == (Unit.RED_GREEN_BLUE, image.channels)
    assert nib.load(tmp_path / "rgb.nii").get_data_dtype().names == ("R", "G", "B")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "rgb.nii"))), np.moveaxis(picture, 0, 2))
    several = volume((2, 3, 4, 5))
    back = open_image(write_nifti(Image(Grid((3, 4, 5), np.eye(4)), several), tmp_path / "two.nii.gz"))
    assert np.array_equal(back.pixels, several)
    assert nib.load(tmp_path / "two.nii.gz").shape == (5, 4, 3, 1, 2)


def test_masks_say_that_they_are_labels(tmp_path):
    labels = Labels(("air", "heart"))
    values = (volume() % 2).astype(bool)
    mask = Mask("c", labels, Grid(values.shape, affine=np.eye(4)), values)
    back = open_image(write_nifti(mask, tmp_path / "m.nii.gz", description="Größe"))
    assert back.unit is Unit.LABEL
    assert back.pixels.dtype == np.uint8
    assert np.array_equal(back.pixels[0], values)
    assert back.meta["description"] == "Größe"
    with pytest.raises(UsageError, match="put it on its own grid"):
        write_nifti(Mask("c", labels, Grid((2, 2, 2)), values), tmp_path / "n.nii")


def test_same_image_same_bytes_and_what_cannot_be_written(tmp_path):
    image = Image(Grid((3, 4, 5), affine=np.eye(4)), volume()[None])
    first = write_nifti(image, tmp_path / "a.nii.gz").read_bytes()
    assert write_nifti(image, tmp_path / "b.nii.gz").read_bytes() == first
    for name, bad in (
        ("a.nrrd", image),
        ("c.nii", Image(Grid((1, 2)), np.zeros((1, 1, 2), np.complex64))),
        ("d.nii", Image(Grid((1, 40000)), np.zeros((1, 1, 40000), np.uint8))),
    ):
        with pytest.raises(UsageError, match=name):
            write_nifti(bad, tmp_path / name)
        assert not (tmp_path / name).exists()


def codes(qform, sform):
    return {252: ("hh", qform, sform)}


def test_sform_wins_over_qform_and_their_quarrel_is_noted(tmp_path):
    image = nib.Nifti1Image(volume(), None)
    image.set_sform(np.diag([2.0, 2, 2, 1]), code=2)
    shifted = np.diag([2.0, 2, 2, 1])
    shifted[0, 3] = 30
    image.set_qform(shifted, code=1)
    nib.save(image, tmp_path / "a.nii")
    mine = open_image(tmp_path / "a.nii")
    assert np.allclose(mine.grid.to_patient([0, 0, 0]), 0)
    assert any("disagree by 30" in note.text for note in mine.record)


def test_qform_counts_where_the_sform_has_no_code(tmp_path):
    image = nib.Nifti1Image(volume(), None)
    place = nib.affines.from_matvec(Rotation.from_euler("z", 30, degrees=True).as_matrix() * [1, 2, 3], [1, 2, 3])
    image.set_qform(place, code=1)
    image.set_sform(np.diag([9.0, 9, 9, 1]), code=0)
    nib.save(image, tmp_path / "a.nii")
    mine = open_image(tmp_path / "a.nii")
    assert np.allclose(mine.grid.to_patient([2, 1, 1]), nib.affines.apply_affine(place, [1, 1, 2]) * [-1, -1, 1])


def test_without_codes_there_is_no_position_whatever_the_matrix_says(tmp_path):
    path = saved(tmp_path, volume().T, at=codes(0, 0) | {123: ("b", 0)})
    assert open_image(path).grid.spacing_mm is None
    path = saved(tmp_path, volume().T, at=codes(0, 0) | {123: ("b", 2)})
    mine = open_image(path)
    assert mine.grid.affine is None
    assert mine.grid.spacing_mm == (4, 3, 2)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 1e-3)])
def test_units_become_millimetres(tmp_path, unit, factor):
    steps = np.array([0.2, 0.3, 0.4]) / factor
    path = saved(tmp_path, volume().T, np.diag([*steps, 1.0]), at={123: ("b", unit)})
    assert open_image(path).grid.spacing_mm == pytest.approx((0.4, 0.3, 0.2), rel=1e-5)


def test_tiny_voxels_in_metres_are_not_singular(tmp_path):
    path = saved(tmp_path, volume().T, np.diag([2e-5, 2e-5, 2e-5, 1.0]), at={123: ("b", 1)})
    assert open_image(path).grid.spacing_mm == pytest.approx((0.02, 0.02, 0.02), rel=1e-5)


def test_qfac_of_zero_means_one(tmp_path):
    # nifti1.h: "if (pixdim[0] = 0.0 (which should not occur), we take qfac=1"; nibabel.load repairs it alike.
    path = saved(tmp_path, volume().T, at=codes(1, 0) | {76: ("f", 0.0)})
    mine = open_image(path)
    assert np.allclose(mine.grid.to_patient([1, 1, 1]), np.array([-2, -3, 4]))
    assert np.allclose(nib.load(path).affine, np.diag([2, 3, 4, 1]))
    assert any(note.act is Act.REPAIRED for note in mine.record)


def test_negative_steps_are_repaired_as_nibabel_does(tmp_path):
    path = saved(tmp_path, volume().T, at=codes(1, 0) | {80: ("f", -2.0)})
    mine, theirs = open_image(path), nib.load(path).affine
    assert np.allclose(mine.grid.to_patient([2, 1, 1]), nib.affines.apply_affine(theirs, [1, 1, 2]) * [-1, -1, 1])
    assert any(note.act is Act.REPAIRED for note in mine.record)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (codes(0, 1) | {280: ("4f", 0, 0, 0, 0)}, "singular"),
        (codes(0, 1) | {280: ("f", float("nan"))}, "singular sform"),
        (codes(1, 0) | {256: ("3f", 1, 1, 1)}, "broken qform"),
        (codes(1, 0) | {84: ("f", 0)}, "singular"),
    ],
)
def test_impossible_places_are_refused(tmp_path, change, found):
    path = saved(tmp_path, volume().T, at=change)
    with pytest.raises(GeometryError, match=found) as caught:
        read_nifti(path)
    assert str(caught.value).startswith(str(path))


def test_a_singular_sform_gives_way_to_the_qform(tmp_path):
    path = saved(tmp_path, volume().T, at=codes(1, 1) | {280: ("4f", 0, 0, 0, 0)})
    mine = open_image(path)
    assert mine.grid.spacing_mm == (4, 3, 2)
    assert any("singular" in note.text for note in mine.record)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter", "expected"),
    [
        ("i2", 1, -1024, "i2"), ("u1", 1, -1024, "i2"), ("u2", 2, 0, "i2"), ("i2", 1000, 0, "i4"),
        ("i2", 0.5, 3, "f4"), ("i4", 0.5, 0, "f8"), ("f4", 2, 1, "f4"), ("f8", 2, 1, "f8"), ("i2", 0, 7, "i2"),
        ("u2", 1, 0, "u2"),
    ],
)  # fmt: skip
def test_scaling(tmp_path, dtype, slope, inter, expected):
    path = saved(tmp_path, volume(dtype=dtype).T * 3, at={112: ("ff", slope, inter)})
    mine = open_image(path)
    assert np.allclose(mine.pixels[0], nib.load(path).get_fdata().T)
    kinds = {"u2": ("u2", "i2")}.get(dtype, (expected,))
    assert mine.pixels.dtype in [np.dtype(kind) for kind in (expected, *kinds)]


@pytest.mark.parametrize(("slope", "inter"), [(float("nan"), 0), (float("inf"), 0), (1, float("nan"))])
def test_impossible_scaling_is_ignored_or_refused_as_nibabel_does(tmp_path, slope, inter):
    path = saved(tmp_path, volume().T, at={112: ("ff", slope, inter)})
    try:
        theirs = np.asarray(nib.load(path).dataobj).T
    except nib.spatialimages.HeaderDataError:
        with pytest.raises(UnreadableFile):
            read_nifti(path)
    else:
        assert np.array_equal(read_nifti(path).pixels[0], theirs)


def test_colours_are_never_scaled(tmp_path):
    stored = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    stored["G"] = volume((4, 3, 2), np.uint8)
    mine = open_image(saved(tmp_path, stored, at={112: ("ff", 2, 1)}))
    assert np.array_equal(mine.pixels[1], stored["G"].T)
    assert mine.pixels.dtype == np.uint8


def test_fourth_axis(tmp_path):
    path = saved(tmp_path, volume((5, 4, 3, 2)))
    with pytest.raises(UnreadableFile, match=r"fourth axis of length 2.*split the series"):
        open_image(path)
    image = read_nifti(path, fourth="channels")
    assert np.array_equal(image.pixels, volume((5, 4, 3, 2)).T)
    single = open_image(saved(tmp_path, volume((5, 4, 3, 1, 1)), name="one.nii"))
    assert np.array_equal(single.pixels[0], volume((5, 4, 3)).T)
    assert any("length 1 dropped" in note.text for note in single.record)
    colours = saved(tmp_path, np.zeros((3, 3, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), name="c.nii")
    with pytest.raises(UnreadableFile, match="colours and"):
        read_nifti(colours, fourth="channels")


def test_nan_is_kept_and_noted(tmp_path):
    values = volume(dtype=np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
    mine = open_image(saved(tmp_path, values.T))
    assert np.array_equal(mine.pixels[0], values, equal_nan=True)
    assert any("2 of 60 values are NaN or infinite" in note.text for note in mine.record)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_voxels_are_refused(tmp_path, dtype):
    with pytest.raises(UnreadableFile, match="complex"):
        open_image(saved(tmp_path, volume().astype(dtype).T))


def test_big_endian_and_pairs(tmp_path):
    image = nib.Nifti1Image(volume(), np.eye(4), header=nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "big.nii")
    mine = open_image(tmp_path / "big.nii")
    assert mine.pixels.dtype.isnative
    assert np.array_equal(mine.pixels[0], volume().T)
    for kind, name in ((nib.Nifti1Pair, "one"), (nib.Nifti2Pair, "two")):
        nib.save(kind(volume(), np.eye(4), dtype=np.int16), tmp_path / f"{name}.hdr")
        assert np.array_equal(open_image(tmp_path / f"{name}.hdr").pixels[0], volume().T)
    (tmp_path / "one.img").write_bytes((tmp_path / "one.img").read_bytes()[:-1])
    with pytest.raises(UnreadableFile, match=r"one\.hdr"):
        open_image(tmp_path / "one.hdr")
    (tmp_path / "one.img").unlink()
    with pytest.raises(UnreadableFile, match=r"one\.img beside it"):
        open_image(tmp_path / "one.hdr")
    with (tmp_path / "two.img").open("r+b") as file, read_limits(max_file_bytes=1000):
        file.truncate(2000)
        with pytest.raises(LimitError, match=r"two\.img"):
            open_image(tmp_path / "two.hdr")


def test_pixels_do_not_hang_on_the_file(tmp_path):
    path = write_nifti(Image(Grid((3, 4, 5)), volume()[None]), tmp_path / "a.nii")
    mine = open_image(path)
    with path.open("r+b") as file:
        file.seek(352)
        file.write(b"\xff" * 120)
    assert np.array_equal(mine.pixels[0], volume())


def test_voxels_inside_the_header_are_refused(tmp_path):
    path = saved(tmp_path, volume().T, at={108: ("f", 100.0)})
    with pytest.raises(UnreadableFile, match="start at byte 100"):
        open_image(path)


def test_limits_hold_before_decoding(tmp_path):
    # 30000^3 voxels by the header, 100 bytes in the file.
    path = saved(tmp_path, volume().T, at={40: ("8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)})
    with pytest.raises(LimitError, match="30000 x 30000 x 30000"):
        open_image(path)
    path = saved(tmp_path, volume().T, at={40: ("8h", 3, 1000, 1000, 1000, 1, 1, 1, 1)})
    (tmp_path / "b.nii").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.nii", "b.nii"):
        # Said from the sizes alone: nothing of 2 GB is asked for.
        with pytest.raises(UnreadableFile, match=f"{name}.* where the header says 2000000352"):
            open_image(tmp_path / name)


@MANY
@given(st.data(), st.sampled_from([".nii", ".nii.gz"]))
def test_every_cut_is_refused(tmp_path, data, suffix):
    whole = write_nifti(Image(Grid((3, 4, 5)), volume()[None]), tmp_path / f"w{suffix}").read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError) as caught:
        open_image(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_checksum_of_a_gzip_stream_is_verified(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (50, 50, 50), np.uint8)  # more than one buffer of gzip
    whole = bytearray(write_nifti(Image(Grid(values.shape), values[None]), tmp_path / "w.nii.gz").read_bytes())
    whole[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(whole)
    with pytest.raises(UnreadableFile, match=r"a\.nii\.gz.*CRC"):
        open_image(tmp_path / "a.nii.gz")


@MANY
@given(st.data())
def test_damage_inside_a_gzip_stream_is_found(tmp_path, data):
    whole = bytearray(write_nifti(Image(Grid((3, 4, 5)), volume()[None]), tmp_path / "w.nii.gz").read_bytes())
    place = data.draw(st.integers(10, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.nii.gz"
    path.write_bytes(whole)
    image = read_or_refused(open_image, path)
    # Some bits of a deflate stream mean nothing: the same pixels may come out, other ones never.
    assert image is None or np.array_equal(image.pixels[0], volume())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_broken_headers_never_raise_anything_else(tmp_path, changes):
    raw = bytearray(write_nifti(Image(Grid((3, 4, 5), np.eye(4)), volume()[None]), tmp_path / "w.nii").read_bytes())
    for place, value in changes:
        raw[place] = value
    path = tmp_path / "b.nii"
    path.write_bytes(raw)
    read_or_refused(read_nifti, path)


def test_content_decides_and_names_may_be_anything(tmp_path):
    odd = tmp_path / "Röntgen bild #1 日本.jpg"
    odd.write_bytes(gzip.compress(write_nifti(Image(Grid((3, 4, 5)), volume()[None]), tmp_path / "a.nii").read_bytes()))
    assert np.array_equal(open_image(odd).pixels[0], volume())
    analyze = tmp_path / "analyze.hdr"
    nib.save(nib.AnalyzeImage(volume(), np.eye(4)), tmp_path / "analyze.img")
    with pytest.raises(UnreadableFile, match="no NIfTI signature"):
        open_image(analyze)


@pytest.mark.realdata
def test_real_volumes_agree_with_nibabel(real_data):
    files = sorted((real_data / "hippocampus").rglob("*.nii.gz"))[:20] + sorted((real_data / "ibsi").glob("*.nii.gz"))
    files = [file for file in files if not file.name.startswith("._")]
    assert files
    for file in files:
        mine, theirs = open_image(file), nib.load(file)
        assert np.array_equal(mine.pixels[0], np.asarray(theirs.dataobj).T), file
        corner = np.array(theirs.shape[:3]) - 1
        expected = nib.affines.apply_affine(theirs.affine, corner) * [-1, -1, 1]
        assert np.allclose(mine.grid.to_patient(corner[::-1]), expected, atol=1e-3), file
