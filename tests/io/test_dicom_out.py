"""DICOM out: read back by our door, by SimpleITK and by pydicom alone."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - as everyone writes it
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from vesalius.core.errors import UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.io.dicom_out import Syntax, uid_of, write_dicom_image, write_dicom_series, write_dicomdir
from vesalius.io.limits import read_limits
from vesalius.io.open import list_series, open_image

MANY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FACTS = {
    "patient_id": "P-1", "patient_name": "Müller^Jürgen", "study_date": "20240131", "study_time": "101500",
    "study_id": "S1", "series_description": "thorax", "age": 63, "sex": "male", "body_part": "CHEST",
}  # fmt: skip


@st.composite
def affines(draw):
    """Right angles, any turn, mirrored or not, different steps."""
    turn = Rotation.from_euler("xyz", draw(st.tuples(*[st.floats(-180, 180)] * 3)), degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(draw(st.tuples(*[st.floats(0.2, 4)] * 3))) * [draw(st.sampled_from([-1, 1])), 1, 1]
    matrix[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return matrix


def hounsfield(*shape):
    return (np.arange(np.prod(shape)) * 37 % 4096 - 1024).astype(np.int16).reshape(shape)


def volume(affine=None, values=None):
    values = hounsfield(4, 5, 6) if values is None else values
    return Image(Grid(values.shape, np.diag([2.0, 0.5, 0.75, 1.0])[[2, 1, 0, 3]] if affine is None else affine),
                 values[None], unit=Unit.HU)  # fmt: skip


def everywhere(grid):
    return np.stack(np.meshgrid(*[np.arange(side) for side in grid.shape], indexing="ij"), -1)


def agrees(mine, image):
    """The same value at the same place in the patient, whatever the order of the slices."""
    index = mine.grid.to_index(image.grid.to_patient(everywhere(image.grid)))
    assert np.abs(index - np.rint(index)).max() < 1e-2
    z, y, x = np.moveaxis(np.rint(index).astype(int), -1, 0)
    assert np.array_equal(mine.pixels[0][z, y, x], image.pixels[0])


@MANY
@given(affines(), st.sampled_from(["CT", "MR"]))
def test_series_come_back_to_their_place(tmp_path_factory, affine, modality):
    folder, image = tmp_path_factory.mktemp("out"), volume(affine)
    paths = write_dicom_series(image, folder, modality=modality, meta=FACTS)
    assert [path.parent for path in paths] == [folder] * 4
    mine = open_image(folder)
    agrees(mine, image)
    assert mine.unit is (Unit.HU if modality == "CT" else Unit.INTENSITY)
    right_handed = np.linalg.det(affine[:3, [2, 1, 0]]) > 0
    if right_handed:
        assert mine.grid.same_place(image.grid)
        assert np.array_equal(mine.pixels, image.pixels)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(theirs), mine.pixels[0])
    for z, y, x in ((0, 0, 0), (3, 4, 5), (0, 4, 0)):
        assert np.allclose(theirs.TransformIndexToPhysicalPoint((x, y, z)), mine.grid.to_patient([z, y, x]), atol=1e-3)


@pytest.mark.parametrize("syntax", list(Syntax))
def test_every_syntax_keeps_the_values(tmp_path, syntax):
    image = volume(values=hounsfield(3, 33, 47))
    write_dicom_series(image, tmp_path / syntax, syntax=syntax, meta=FACTS)
    mine = open_image(tmp_path / syntax)
    assert np.array_equal(mine.pixels, image.pixels)
    assert mine.grid.same_place(image.grid)
    file = next((tmp_path / syntax).iterdir())
    theirs = pydicom.dcmread(file)
    assert np.array_equal(theirs.pixel_array, image.pixels[0, theirs.InstanceNumber - 1])


@pytest.mark.parametrize("syntax", ["rle", "jpeg-ls", "jpeg-2000"])
@pytest.mark.parametrize("shape", [(1, 33, 47), (3, 33, 47)])
def test_encoders_of_our_own_dependencies_are_used(tmp_path, syntax, shape, monkeypatch):
    """python-gdcm and pylibjpeg-rle may be there or not: GDCM's RLE encoder ends the process on odd sizes."""
    used = []
    real = pydicom.dataset.Dataset.compress

    def compress(dataset, *args, **named):
        used.append(named["encoding_plugin"])
        return real(dataset, *args, **named)

    monkeypatch.setattr(pydicom.dataset.Dataset, "compress", compress)
    values = (np.arange(np.prod(shape)) * 7 % 251).astype(np.uint8).reshape(shape)
    image = Image(Grid(shape[1:]), values, unit=Unit.RED_GREEN_BLUE if shape[0] == 3 else Unit.INTENSITY)
    path = write_dicom_image(image, tmp_path / "a.dcm", modality="OT", syntax=syntax)
    assert used == [{"rle": "pydicom", "jpeg-ls": "pyjpegls", "jpeg-2000": "pylibjpeg"}[syntax]]
    assert np.array_equal(open_image(path).pixels, values)
    assert np.array_equal(np.atleast_3d(pydicom.dcmread(path).pixel_array), np.moveaxis(values, 0, -1))


@MANY
@given(
    st.sampled_from(
        [(-1024, 3071, np.int32), (0, 65535, np.int32), (-1000, 40000, np.int32), (-1000, 40000, np.float32),
         (100000, 140000, np.int64), (0, 255, np.uint8), (-32768, 32767, np.int16)]
    ),
    st.data(),
)  # fmt: skip
def test_whole_numbers_are_exact(tmp_path_factory, kind, data):
    low, high, dtype = kind
    values = data.draw(hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(low, high))).astype(dtype)
    values[0, 0, 0], values[1, 2, 3] = low, high
    folder = tmp_path_factory.mktemp("out")
    write_dicom_series(volume(values=values), folder)
    assert np.array_equal(open_image(folder).pixels[0].astype(np.float64), values.astype(np.float64))


def test_fractions_are_kept_to_one_step_of_their_range(tmp_path):
    values = np.linspace(-3.3, 7.7, 120).reshape(4, 5, 6)
    write_dicom_series(volume(values=values), tmp_path, modality="MR")
    assert np.abs(open_image(tmp_path).pixels[0] - values).max() <= 11 / 65534


def test_header_facts_and_no_others(tmp_path):
    paths = write_dicom_series(volume(), tmp_path, meta=FACTS)
    theirs = pydicom.dcmread(paths[0])
    assert (theirs.PatientID, str(theirs.PatientName), theirs.PatientSex, theirs.PatientAge) == (
        "P-1", "Müller^Jürgen", "M", "063Y")  # fmt: skip
    assert (theirs.StudyDate, theirs.BodyPartExamined, theirs.RescaleType) == ("20240131", "CHEST", "HU")
    mine = open_image(tmp_path).meta
    assert (mine["patient_id"], mine["modality"], mine["series_description"]) == ("P-1", "CT", "thorax")
    for path in paths:
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert all(element.value.is_valid for element in dataset if element.VR == "UI")
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in paths}) == len(paths)
    anonymous = pydicom.dcmread(write_dicom_series(volume(), tmp_path / "b")[0])
    assert (anonymous.PatientID, str(anonymous.PatientName), anonymous.StudyDate) == ("ANON", "", "")


def test_same_call_same_bytes_and_seeds_differ(tmp_path):
    first, again, other = (
        [path.read_bytes() for path in write_dicom_series(volume(), tmp_path / name, seed=seed)]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert pydicom.uid.UID(uid_of("a", 1)).is_valid
    assert uid_of("a", 1) != uid_of("a1")


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("spacing", [None, (0.14, 0.15)])
def test_a_film(tmp_path, bits, spacing):
    dtype = np.uint8 if bits == 8 else np.uint16
    values = (np.arange(33 * 47) * 131 % (1 << bits)).astype(dtype).reshape(1, 33, 47)
    facts = {**FACTS, "view_position": "PA", "bits_stored": bits}
    image = Image(Grid((33, 47), spacing=spacing), values)
    path = write_dicom_image(image, tmp_path / "film.dcm", modality="DX", meta=facts)
    mine = open_image(path)
    assert np.array_equal(mine.pixels, values)
    assert mine.pixels.dtype == dtype
    assert mine.grid.same_place(image.grid)
    theirs = pydicom.dcmread(path)
    assert (theirs.BitsStored, theirs.HighBit, theirs.ViewPosition) == (bits, bits - 1, "PA")
    assert ("PixelSpacing" in theirs) is ("ImagerPixelSpacing" in theirs) is (spacing is not None)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0], values[0])


@pytest.mark.parametrize("modality", ["DX", "CR", "US", "OT"])
def test_pictures_of_every_modality(tmp_path, modality):
    values = np.arange(35, dtype=np.uint8).reshape(1, 5, 7)
    mine = open_image(write_dicom_image(Image(Grid((5, 7)), values), tmp_path / "a.dcm", modality=modality))
    assert np.array_equal(mine.pixels, values)
    assert mine.meta["modality"] == modality


def test_a_16_bit_fact_about_an_8_bit_picture_is_not_believed(tmp_path):
    image = Image(Grid((5, 7)), np.arange(35, dtype=np.uint8).reshape(1, 5, 7), meta={"bits_stored": 12})
    path = write_dicom_image(image, tmp_path / "a.dcm")
    assert pydicom.dcmread(path).BitsStored == 8
    assert np.array_equal(open_image(path).pixels, image.pixels)


def test_what_cannot_be_written(tmp_path):
    picture = Image(Grid((5, 7)), np.full((1, 5, 7), 300, np.uint16))
    negative = Image(Grid((5, 7)), np.full((1, 5, 7), -300, np.int16))
    colours = Image(Grid((5, 7)), np.zeros((3, 5, 7), np.uint8))
    skew = np.eye(4)
    skew[0, 1] = 0.2
    skew[:3, :3] = skew[:3, :3][:, ::-1]
    for call, found in (
        (lambda: write_dicom_series(picture, tmp_path), "write NIfTI instead"),
        (lambda: write_dicom_series(volume(), tmp_path, modality="DX"), "not written as a series"),
        (lambda: write_dicom_series(volume(), tmp_path, syntax="zip"), "transfer syntax 'zip'"),
        (lambda: write_dicom_series(volume(skew), tmp_path), "right angles"),
        (lambda: write_dicom_series(volume(values=np.full((2, 3, 4), np.nan)), tmp_path), "NaN"),
        (lambda: write_dicom_series(volume(), tmp_path, syntax="jpeg-2000"), "at least 32 x 32"),
        (lambda: write_dicom_image(picture, tmp_path / "a", modality="CT"), "no single picture"),
        (lambda: write_dicom_image(picture, tmp_path / "a", meta={"bits_stored": 8}), "correct bits_stored"),
        (lambda: write_dicom_image(negative, tmp_path / "a", meta={"bits_stored": 8}), "correct bits_stored"),
        (lambda: write_dicom_image(colours, tmp_path / "a", modality="DX"), "uint8 US or OT"),
        (lambda: write_dicom_image(volume(), tmp_path / "a"), "window and convert"),
    ):
        with pytest.raises(UsageError, match=found):
            call()
    assert list(tmp_path.iterdir()) == []


def test_sheared_slices_keep_their_place(tmp_path):
    affine = np.array([[0.5, 0, 0.75, 3], [0.0, 0.5, 0, 4], [2, 0, 0, 5], [0, 0, 0, 1]])
    write_dicom_series(volume(affine), tmp_path)
    with read_limits(tilt="keep"):
        assert open_image(tmp_path).grid.same_place(Grid((4, 5, 6), affine))


def test_dicomdir(tmp_path):
    files = write_dicom_series(volume(), tmp_path / "ct", meta=FACTS)
    files += write_dicom_series(volume(), tmp_path / "mr", modality="MR", meta=FACTS)
    directory = write_dicomdir(files, tmp_path / "disc")
    assert len(pydicom.fileset.FileSet(directory)) == 8
    for start in (directory, directory.parent):
        found = list_series(start)
        assert sorted(series.modality for series in found) == ["CT", "MR"]
    key = next(series.key for series in list_series(directory) if series.modality == "CT")
    mine = open_image(f"{directory}#{key}")
    assert np.array_equal(mine.pixels[0], hounsfield(4, 5, 6))
    assert mine.grid.same_place(volume().grid)
    with pytest.raises(UsageError, match="holds a DICOMDIR already"):
        write_dicomdir(files, directory.parent)
    bare = write_dicom_series(volume(), tmp_path / "bare")
    with pytest.raises(UsageError, match="study_date"):
        write_dicomdir(bare, tmp_path / "disc2")
