"""DICOM segmentations out: voxels and places as highdicom, SimpleITK, pydicom and nibabel read them."""

from __future__ import annotations

import shutil
import subprocess

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from scipy.spatial.transform import Rotation
from skimage.color import rgb2lab

from vesalius.core.errors import GeometryError, UsageError
from vesalius.core.geometry import Grid, affine_to_nifti
from vesalius.core.image import Image
from vesalius.core.labels import Concept, Labels
from vesalius.io.dicom_codes import coding_of
from vesalius.io.dicom_out import write_dicom_image, write_dicom_series
from vesalius.io.dicom_seg_out import mask_on_grid, write_dicom_seg
from vesalius.io.limits import read_limits
from vesalius.io.nifti_out import write_nifti
from vesalius.io.open import open_image

FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
BY = {"algorithm": "Vesalius U-Net", "version": "1.2"}
FACTS = {"patient_id": "P7", "patient_name": "Grün^Jörg", "study_date": "20240131", "study_time": "101500",
         "study_id": "S1", "series_number": 4}  # fmt: skip
# Directions of the array axes (z, y, x) in LPS.
PLANES = {
    "axial": [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
    "coronal": [(0, 1, 0), (0, 0, -1), (1, 0, 0)],
    "sagittal": [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
}


def named(count):
    return Labels(("background", *(f"part {k + 1}" for k in range(count))))


def grid_of(shape, plane="axial", turn=(0, 0, 0), steps=(3.0, 0.7, 0.9), flips=(1, 1, 1), origin=(-100, 250, 1400)):
    affine = np.eye(4)
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.array(PLANES[plane], float).T
    affine[:3, :3] = axes * np.array(steps) * flips
    affine[:3, 3] = origin
    return Grid(shape, affine)


OBLIQUE = grid_of((6, 11, 13), turn=(20, -30, 75), flips=(-1, 1, 1))


def speckle(shape, count, seed=0, empty=()):
    labels = np.random.default_rng(seed).integers(0, count + 1, shape).astype(np.uint8)
    labels[list(empty)] = 0
    return labels


@st.composite
def grids(draw):
    shape = draw(st.tuples(st.integers(1, 7), st.integers(3, 9), st.integers(3, 9)))
    turn = draw(st.one_of(st.just((0, 0, 0)), st.tuples(*[st.floats(-180, 180)] * 3)))
    steps = draw(st.tuples(st.floats(0.5, 6), st.floats(0.2, 2), st.floats(0.2, 2)))
    flips = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    origin = draw(st.tuples(*[st.floats(-800, 800)] * 3))
    return grid_of(shape, draw(st.sampled_from(list(PLANES))), turn, steps, flips, origin)


@FEW
@given(grids(), st.sampled_from([1, 2, 3, 7, 30]), st.integers(0, 2**30), st.floats(0, 1))
def test_nifti_to_segmentation_and_back(tmp_path_factory, grid, count, seed, empty):
    folder = tmp_path_factory.mktemp("seg")
    draw = np.random.default_rng(seed)
    labels = speckle(grid.shape, count, seed, np.flatnonzero(draw.random(grid.shape[0]) < empty))
    nib.save(nib.Nifti1Image(labels.T, affine_to_nifti(grid.affine)), folder / "in.nii.gz")
    given_mask = open_image(folder / "in.nii.gz")
    path = write_dicom_seg(folder / "a.dcm", given_mask.pixels[0], given_mask.grid, named(count), **BY)
    back = mask_on_grid(open_image(path), given_mask.grid)
    write_nifti(back, folder / "out.nii.gz")
    first, second = nib.load(folder / "in.nii.gz"), nib.load(folder / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(second.dataobj), labels.T)
    np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-4)
    # Not only after it was put on the old grid: what the file says by itself lies where the mask lay.
    lone = open_image(path)
    agrees(lone.pixels[0], lone.grid.to_patient(everywhere(lone.grid.shape)), labels, grid)


def everywhere(shape):
    return np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij"), -1)


def agrees(values, points, labels, grid, atol_mm=1e-3):
    """`values` at patient points are those of `labels` there, and all of `labels` is among them."""
    index = grid.to_index(points)
    whole = np.rint(index).astype(int)
    assert np.abs((index - whole) @ np.asarray(grid.affine)[:3, :3].T).max() < atol_mm
    np.testing.assert_array_equal(values, labels[tuple(np.moveaxis(whole, -1, 0))])
    assert np.count_nonzero(values) == np.count_nonzero(labels)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, -1)])
@pytest.mark.parametrize(
    ("plane", "turn"), [("axial", (0, 0, 0)), ("coronal", (0, 0, 0)), ("sagittal", (0, 0, 0)), ("axial", (20, -30, 75))]
)
def test_other_readers_see_the_same_voxels_at_the_same_place(tmp_path, plane, turn, flips):
    # GDCM, which SimpleITK reads with, drops the last bits of pixel data that fill no whole byte.
    grid = grid_of((6, 12, 14), plane, turn, flips=flips)
    labels = speckle(grid.shape, 1)
    path = write_dicom_seg(tmp_path / "a.dcm", labels, grid, named(1), **BY)
    theirs = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(theirs)
    place = [theirs.TransformIndexToPhysicalPoint([int(n) for n in index[::-1]])
             for index in everywhere(values.shape).reshape(-1, 3)]  # fmt: skip
    agrees((values > 0).ravel(), np.array(place), labels, grid)

    labels = speckle(grid.shape, 3, empty=[2, 3])
    path = write_dicom_seg(tmp_path / "b.dcm", labels, grid, named(3), **BY)
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
    points = everywhere(volume.array.shape) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    agrees(volume.array, points, labels, grid)

    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    across, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    steps = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    y, x = np.mgrid[:12, :14]
    seen = np.zeros(3, int)
    for frame, item in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        top = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        points = top + y[..., None] * steps[0] * down + x[..., None] * steps[1] * across
        index = np.rint(grid.to_index(points)).astype(int)
        assert np.abs(grid.to_patient(index) - points).max() < 1e-3
        np.testing.assert_array_equal(frame, labels[tuple(np.moveaxis(index, -1, 0))] == number)
        seen[number - 1] += np.count_nonzero(frame)
    assert seen.tolist() == np.bincount(labels.ravel(), minlength=4)[1:].tolist()
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(3)


def test_empty_frames_are_left_out_and_empty_segments_stay(tmp_path):
    grid = grid_of((9, 8, 10))
    labels = np.zeros(grid.shape, np.uint8)
    labels[0, 2:4, 3:5], labels[7, 1:3, 1:3] = 1, 3
    dataset = pydicom.dcmread(write_dicom_seg(tmp_path / "a.dcm", labels, grid, named(3), **BY))
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [1, 2, 3]
    assert dataset.NumberOfFrames == 2
    # Slices 0 and 7: no gap tells the slice distance, which the file has to say.
    back = open_image(tmp_path / "a.dcm")
    assert back.grid.shape == (8, 8, 10)
    np.testing.assert_array_equal(mask_on_grid(back, grid).pixels[0], labels)

    nothing = write_dicom_seg(tmp_path / "b.dcm", np.zeros_like(labels), grid, named(3), **BY)
    assert pydicom.dcmread(nothing).NumberOfFrames == 3
    back = mask_on_grid(open_image(nothing), grid)
    assert back.pixels.shape == (1, *grid.shape)
    assert not back.pixels.any()


def test_slice_thickness_is_not_the_slice_distance(tmp_path):
    grid = grid_of((9, 8, 10), steps=(2.5, 1, 1))
    labels = np.zeros(grid.shape, np.uint8)
    labels[1, 2:4, 3:5] = labels[8, 1:3, 1:3] = 1
    files = write_dicom_series(Image(grid, speckle((1, *grid.shape), 90)), tmp_path / "s", meta=FACTS)
    for file in files:
        header = pydicom.dcmread(file)
        header.SliceThickness = 3.5
        del header.SpacingBetweenSlices
        header.save_as(file)
    back = open_image(write_dicom_seg(tmp_path / "a.dcm", labels, grid, named(1), source=files, **BY))
    np.testing.assert_array_equal(mask_on_grid(back, grid).pixels[0], labels)
    assert back.grid.spacing_mm == pytest.approx((2.5, 1, 1))


@pytest.mark.parametrize("count", [2, 5, 300])
def test_overlapping_structures(tmp_path, count):
    grid = OBLIQUE if count < 10 else Grid((1, 11, 13), OBLIQUE.affine)
    layers = np.random.default_rng(1).random((count, *grid.shape)) < 0.3
    labels = Labels(tuple(f"part {k + 1}" for k in range(count)), multilabel=True)
    path = write_dicom_seg(tmp_path / "a.dcm", layers, grid, labels, **BY)
    assert pydicom.dcmread(path, specific_tags=["SegmentsOverlap"]).SegmentsOverlap == "YES"
    back = mask_on_grid(open_image(path), grid)
    assert back.channels == labels.names
    np.testing.assert_array_equal(back.pixels, layers)
    if count < 10:
        theirs = highdicom.seg.segread(path).get_volume(combine_segments=False)
        points = everywhere(theirs.array.shape[:3]) @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
        for number in range(count):
            agrees(theirs.array[..., number], points, layers[number], grid)


def test_layers_regions_and_objects(tmp_path):
    values = speckle(OBLIQUE.shape, 3)
    # Layers that do not meet are the same file as their label map.
    layers = np.stack([values == 1, values == 2, values == 3])
    first = write_dicom_seg(tmp_path / "a.dcm", values, OBLIQUE, named(3), **BY).read_bytes()
    assert first == write_dicom_seg(tmp_path / "a.dcm", layers, OBLIQUE, named(3), **BY).read_bytes()
    brain = Labels(("whole tumor", "tumor core", "enhancing tumor"), multilabel=True, regions=((1, 2, 3), (1, 3), (3,)))
    back = mask_on_grid(open_image(write_dicom_seg(tmp_path / "b.dcm", values, OBLIQUE, brain, **BY)), OBLIQUE)
    np.testing.assert_array_equal(back.pixels, [values > 0, (values == 1) | (values == 3), values == 3])
    objects = np.where(values == 2, 700, values.astype(np.int32) * 5)
    cells = Labels(("background", "nucleus"), instances=True)
    path = write_dicom_seg(tmp_path / "c.dcm", objects, OBLIQUE, cells, **BY)
    items = pydicom.dcmread(path).SegmentSequence
    assert [item.SegmentLabel for item in items] == ["nucleus 5", "nucleus 15", "nucleus 700"]
    assert {item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in items} == {"84640000"}
    numbers = mask_on_grid(open_image(path), OBLIQUE).pixels[0]
    np.testing.assert_array_equal(np.array([0, 5, 15, 700])[numbers], objects)
    ignored = Labels(("background", "part 1", "part 2"), ignore=3)
    back = mask_on_grid(open_image(write_dicom_seg(tmp_path / "d.dcm", values, OBLIQUE, ignored, **BY)), OBLIQUE)
    np.testing.assert_array_equal(back.pixels[0], np.where(values == 3, 0, values))


def series(tmp_path, grid=OBLIQUE, **facts):
    pixels = np.random.default_rng(3).integers(-900, 900, (1, *grid.shape)).astype(np.int16)
    return write_dicom_series(Image(grid, pixels), tmp_path / "series", meta={**FACTS, **facts})


@pytest.mark.parametrize("given_as", ["folder", "files", "headers", "shuffled"])
def test_frames_name_the_images_in_whose_planes_they_lie(tmp_path, given_as):
    files = series(tmp_path)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    source = {
        "folder": tmp_path / "series",
        "files": files,
        "headers": headers,
        "shuffled": headers[::-1][:4] + headers[:2],
    }
    before = [str(header) for header in headers]
    labels = speckle(OBLIQUE.shape, 2, empty=[1])
    path = write_dicom_seg(tmp_path / "seg.dcm", labels, OBLIQUE, named(2), source=source[given_as],
                           series_description="By U-Net", **BY)  # fmt: skip
    assert before == [str(header) for header in headers]
    data = pydicom.dcmread(path)
    assert data.SOPClassUID == pydicom.uid.SegmentationStorage
    assert (data.Modality, data.SegmentationType, data.PatientID, data.StudyDate) == ("SEG", "BINARY", "P7", "20240131")
    assert (data.PatientName, data.SpecificCharacterSet) == ("Grün^Jörg", "ISO_IR 192")
    assert (data.SeriesDescription, data.SeriesNumber, data.ContentDate) == ("By U-Net", 300, "20240131")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert data[keyword].value == headers[0][keyword].value
    assert data.SeriesInstanceUID != headers[0].SeriesInstanceUID
    (referred,) = data.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == {
        header.SOPInstanceUID for header in headers
    }
    by_uid = {header.SOPInstanceUID: header for header in headers}
    for item in data.PerFrameFunctionalGroupsSequence:
        (derived,) = item.DerivationImageSequence
        (image,) = derived.SourceImageSequence
        header = by_uid[image.ReferencedSOPInstanceUID]
        assert item.PlanePositionSequence[0].ImagePositionPatient == header.ImagePositionPatient
        assert image.SpatialLocationsPreserved == "YES"
    orientation = data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    assert orientation == headers[0].ImageOrientationPatient
    for item in data.SegmentSequence:
        (identified,) = item.SegmentationAlgorithmIdentificationSequence
        assert (identified.AlgorithmName, identified.AlgorithmVersion) == ("Vesalius U-Net", "1.2")
        assert (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", "Vesalius U-Net")
    assert len({item.TrackingUID for item in data.SegmentSequence}) == 2
    np.testing.assert_array_equal(mask_on_grid(open_image(path), OBLIQUE).pixels[0], labels)


@FEW
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_masks_with_other_axes_lie_on_the_planes_of_the_images(tmp_path_factory, order, signs):
    """A NIfTI file made from the series has other axes: the frames still are those of the series."""
    folder = tmp_path_factory.mktemp("axes")
    files = series(folder)
    labels = speckle(OBLIQUE.shape, 2)
    affine = np.array(OBLIQUE.affine)
    turned = labels.transpose(order)
    new = affine.copy()
    new[:, :3] = affine[:, order]
    for axis, sign in enumerate(signs):
        if sign < 0:
            new[:, 3] += new[:, axis] * (turned.shape[axis] - 1)
            new[:, axis] *= -1
            turned = np.flip(turned, axis)
    grid = Grid(turned.shape, new)
    path = write_dicom_seg(folder / "seg.dcm", turned, grid, named(2), source=files, **BY)
    plain = write_dicom_seg(folder / "plain.dcm", labels, OBLIQUE, named(2), source=files, **BY)
    first, second = pydicom.dcmread(path), pydicom.dcmread(plain)
    assert first.PixelData == second.PixelData
    assert first.PerFrameFunctionalGroupsSequence == second.PerFrameFunctionalGroupsSequence
    np.testing.assert_array_equal(mask_on_grid(open_image(path), grid).pixels[0], turned)


def test_masks_of_another_lattice_keep_their_own_planes(tmp_path):
    files = series(tmp_path)
    affine = np.array(OBLIQUE.affine)
    affine[:3, :3] /= 2
    fine = Grid((12, 22, 26), affine)
    labels = speckle(fine.shape, 2, empty=[4, 5])
    path = write_dicom_seg(tmp_path / "a.dcm", labels, fine, named(2), source=files, **BY)
    np.testing.assert_array_equal(mask_on_grid(open_image(path), fine).pixels[0], labels)
    with pytest.raises(GeometryError, match="one lattice"):
        mask_on_grid(open_image(path), OBLIQUE)
    # A part of the series is on its lattice.
    part = Grid((3, 5, 4), np.array(OBLIQUE.affine) + np.outer(OBLIQUE.affine @ [2, 3, 6, 0], [0, 0, 0, 1]))
    inner = speckle(part.shape, 2)
    whole = np.zeros(OBLIQUE.shape, np.uint8)
    whole[2:5, 3:8, 6:10] = inner
    path = write_dicom_seg(tmp_path / "b.dcm", inner, part, named(2), source=files, **BY)
    np.testing.assert_array_equal(mask_on_grid(open_image(path), OBLIQUE).pixels[0], whole)
    assert pydicom.dcmread(path).Rows == OBLIQUE.shape[1]
    assert mask_on_grid(open_image(path), part).pixels.sum() == inner.sum()
    with pytest.raises(GeometryError, match="outside the grid"):
        mask_on_grid(open_image(path), Grid((1, 11, 13), OBLIQUE.affine))
    moved = np.array(OBLIQUE.affine)
    moved[:3, 3] += 0.3 * moved[:3, 1]
    with pytest.raises(GeometryError, match="one lattice"):
        mask_on_grid(open_image(path), Grid(OBLIQUE.shape, moved))


def enhanced(files, path, order):
    """The series as one enhanced CT, its frames in another order."""
    slices = [pydicom.dcmread(file) for file in files]
    data = pydicom.dcmread(files[0])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    shared, measures, orientation = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, data.SliceThickness
    orientation.ImageOrientationPatient = data.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for place in order:
        item, top = pydicom.Dataset(), pydicom.Dataset()
        top.ImagePositionPatient = slices[place].ImagePositionPatient
        item.PlanePositionSequence = [top]
        frames.append(item)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, keyword)
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.PixelData = b"".join(slices[place].PixelData for place in order)
    data.save_as(path)
    return path


def test_a_multi_frame_source(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    source = enhanced(series(tmp_path), tmp_path / "enhanced.dcm", order)
    labels = speckle(OBLIQUE.shape, 2, empty=[0])
    path = write_dicom_seg(tmp_path / "seg.dcm", labels, OBLIQUE, named(2), source=source, **BY)
    np.testing.assert_array_equal(mask_on_grid(open_image(path), OBLIQUE).pixels[0], labels)
    tops = [item.PlanePositionSequence[0].ImagePositionPatient
            for item in pydicom.dcmread(source).PerFrameFunctionalGroupsSequence]  # fmt: skip
    for item in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        (image,) = item.DerivationImageSequence[0].SourceImageSequence
        assert item.PlanePositionSequence[0].ImagePositionPatient == tops[image.ReferencedFrameNumber - 1]
    nothing = write_dicom_seg(tmp_path / "no.dcm", labels * 0, OBLIQUE, named(2), source=[source], **BY)
    assert not mask_on_grid(open_image(nothing), OBLIQUE).pixels.any()


def test_sheared_slices_and_several_images_at_a_place(tmp_path):
    affine = np.array(grid_of((6, 11, 13)).affine)
    affine[:3, 0] = (0, -1.2, 3)  # gantry tilt
    grid = Grid((6, 11, 13), affine)
    labels = speckle(grid.shape, 2, empty=[2])
    path = write_dicom_seg(tmp_path / "tilt.dcm", labels, grid, named(2), **BY)
    with read_limits(tilt="keep"):
        np.testing.assert_array_equal(mask_on_grid(open_image(path), grid).pixels[0], labels)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in series(tmp_path)]
    later = [pydicom.dcmread(file, stop_before_pixels=True) for file in series(tmp_path)]
    for header in later:
        header.SOPInstanceUID += ".1"
    labels = speckle(OBLIQUE.shape, 2)
    path = write_dicom_seg(tmp_path / "times.dcm", labels, OBLIQUE, named(2), source=headers + later, **BY)
    np.testing.assert_array_equal(mask_on_grid(open_image(path), OBLIQUE).pixels[0], labels)
    for item in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        first, second = (one.ReferencedSOPInstanceUID for one in item.DerivationImageSequence[0].SourceImageSequence)
        assert second == first + ".1"


def test_a_radiograph_without_a_place(tmp_path):
    grid = Grid((20, 30), spacing=(0.2, 0.2))
    film = write_dicom_image(
        Image(grid, np.arange(600, dtype=np.uint16).reshape(1, 20, 30)), tmp_path / "dx.dcm", meta=FACTS
    )
    for name, labels in (("one", speckle((20, 30), 1)), ("three", speckle((20, 30), 3))):
        count = int(labels.max())
        path = write_dicom_seg(tmp_path / f"{name}.dcm", labels, grid, named(count), source=film, **BY)
        back = mask_on_grid(open_image(path), grid)
        np.testing.assert_array_equal(back.pixels[0], labels)
        data = pydicom.dcmread(path)
        np.testing.assert_array_equal(data.pixel_array.reshape(-1, 20, 30)[-1], labels == count)
    with pytest.raises(UsageError, match="give it as source"):
        write_dicom_seg(tmp_path / "no.dcm", labels, grid, named(3), **BY)
    with pytest.raises(UsageError, match="does not belong"):
        write_dicom_seg(tmp_path / "no.dcm", labels, grid, named(3), source=series(tmp_path), **BY)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("kind", ["series", "derived", "overlapping", "empty", "concept"])
def test_dciodvfy_finds_no_error(tmp_path, kind):
    labels, values = Labels(("background", "Kidney (left)", "liver tumour")), speckle(OBLIQUE.shape, 2)
    source = series(tmp_path) if kind != "derived" else None
    if kind == "overlapping":
        values = np.stack([values > 0, values > 1])
    elif kind == "empty":
        values = values * 0
    elif kind == "concept":
        labels = Labels(
            labels.names, concepts=(None, Concept("64033007", "SCT", "Kidney"), Concept("X1", "99LAB", "Thing"))
        )
    paths = [
        write_dicom_seg(tmp_path / "a.dcm", values, OBLIQUE, labels, source=source, meta={"patient_id": "P"}, **BY)
    ]
    paths += sorted(tmp_path.glob("a-source/*.dcm"))[:1]
    assert len(paths) == 1 + (kind == "derived")
    for path in paths:
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        said = done.stderr + done.stdout
        assert "Segmentation" in said or "MRImage" in said
        assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_the_series_beside_a_mask_from_nifti(tmp_path):
    pixels = np.random.default_rng(5).normal(size=(1, *OBLIQUE.shape)).astype(np.float32)
    image = Image(OBLIQUE, pixels, meta={"modality": "MR"})
    labels = speckle(OBLIQUE.shape, 2)
    path = write_dicom_seg(tmp_path / "case.dcm", labels, OBLIQUE, named(2), image=image, meta=FACTS, **BY)
    beside = open_image(tmp_path / "case-source")
    assert beside.meta["modality"] == "MR"
    points = beside.grid.to_patient(everywhere(beside.grid.shape))
    index = np.rint(OBLIQUE.to_index(points)).astype(int)
    np.testing.assert_allclose(beside.pixels[0], pixels[0][tuple(np.moveaxis(index, -1, 0))], atol=2e-4)
    seg, header = pydicom.dcmread(path), pydicom.dcmread(next((tmp_path / "case-source").iterdir()))
    assert seg.FrameOfReferenceUID == header.FrameOfReferenceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == header.SeriesInstanceUID != seg.SeriesInstanceUID
    assert header.ImageType[0] == "DERIVED"
    # Another mask of the same image belongs to the same images.
    words = {"image": image, "meta": {**FACTS, "series_uid": "1.2.3", "series_number": 9}}
    again = pydicom.dcmread(write_dicom_seg(tmp_path / "b.dcm", 2 - labels, OBLIQUE, named(2), **words, **BY))
    assert again.ReferencedSeriesSequence == seg.ReferencedSeriesSequence
    assert again.SOPInstanceUID != seg.SOPInstanceUID
    assert (again.SeriesInstanceUID, again.SeriesNumber) == ("1.2.3", 9)
    # Two cases without any numbers are two studies.
    for name, other in (("x", labels), ("y", 2 - labels)):
        write_dicom_seg(tmp_path / f"{name}.dcm", other, OBLIQUE, named(2), **BY)
    assert pydicom.dcmread(tmp_path / "x.dcm").StudyInstanceUID != pydicom.dcmread(tmp_path / "y.dcm").StudyInstanceUID
    with pytest.raises(UsageError, match="different grids"):
        write_dicom_seg(tmp_path / "z.dcm", labels, OBLIQUE, named(2), image=Image(grid_of((6, 11, 13)), pixels), **BY)


def test_the_same_call_writes_the_same_bytes(tmp_path):
    labels, files = speckle(OBLIQUE.shape, 2), series(tmp_path)
    first = write_dicom_seg(tmp_path / "a.dcm", labels, OBLIQUE, named(2), source=files, **BY).read_bytes()
    assert first == write_dicom_seg(tmp_path / "b.dcm", labels, OBLIQUE, named(2), source=files, **BY).read_bytes()
    other = pydicom.dcmread(write_dicom_seg(tmp_path / "c.dcm", labels, OBLIQUE, named(2), source=files, seed=1, **BY))
    labels[0, 0, 0] = 2 - labels[0, 0, 0] // 2
    changed = pydicom.dcmread(write_dicom_seg(tmp_path / "d.dcm", labels, OBLIQUE, named(2), source=files, **BY))
    uids = {pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID, other.SOPInstanceUID, changed.SOPInstanceUID}
    assert len(uids) == 3
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)


@pytest.mark.parametrize(
    ("name", "category", "kind", "side", "region"),
    [  # SNOMED CT codes as PS3.16 prints them
        ("liver", "91723000", "10200004", None, None),
        ("Spleen", "91723000", "78961009", None, None),
        ("kidney_left", "91723000", "64033007", "7771000", None),
        ("Right Kidneys", "91723000", "64033007", "24028007", None),
        ("Hippocampus (R)", "91723000", "5366008", "24028007", None),
        ("prostate", "91723000", "41216001", None, None),
        ("heart", "91723000", "80891009", None, None),
        ("lungs", "91723000", "39607008", None, None),
        ("left ventricle", "91723000", "87878005", None, None),
        ("gall bladder", "91723000", "28231008", None, None),
        ("urinary_bladder", "85756007", "85756007", None, None),
        ("vertebrae_L1", "91723000", "66794005", None, None),
        ("portal vein", "91723000", "32764006", None, None),
        ("vessels", "85756007", "59820001", None, None),
        ("nuclei", "91723000", "84640000", None, None),
        ("tumour", "49755003", "108369006", None, None),
        ("liver tumor", "49755003", "108369006", None, "10200004"),
        ("lesion left lung", "49755003", "52988006", "7771000", "39607008"),
        ("enhancing tumor", "49755003", "108369006", None, None),
        ("liver without tumour", "85756007", "85756007", None, None),
        ("Schmetterling", "85756007", "85756007", None, None),
    ],
)
def test_codes_of_names(name, category, kind, side, region):
    found = coding_of(name)
    values = [None if code is None else code.value for code in (found.category, found.kind, found.side, found.region)]
    assert values == [category, kind, side, region]


def test_concepts_and_colours_of_labels(tmp_path):
    labels = Labels(("background", "thing one", "spleen"), colours=("#000000", "#D55E00", "#56B4E9"),
                    concepts=(None, Concept("108369006", "SCT", "Neoplasm"), None))  # fmt: skip
    path = write_dicom_seg(tmp_path / "a.dcm", speckle(OBLIQUE.shape, 2), OBLIQUE, labels, **BY)
    first, second = pydicom.dcmread(path).SegmentSequence
    assert (first.SegmentLabel, first.SegmentedPropertyTypeCodeSequence[0].CodeValue) == ("thing one", "108369006")
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == codes.SCT.Spleen.meaning
    for item, colour in ((first, (0xD5, 0x5E, 0x00)), (second, (0x56, 0xB4, 0xE9))):
        stored = np.array(item.RecommendedDisplayCIELabValue) / 65535  # C.10.7.1.1
        lab = stored * [100, 255, 255] - [0, 128, 128]
        assert np.abs(lab - rgb2lab(np.array(colour) / 255)).max() < 0.1


def test_names_that_a_header_cannot_hold_as_they_are(tmp_path):
    labels = Labels(("background", "肝脏", "a\\b", "x" * 90))
    path = write_dicom_seg(tmp_path / "a.dcm", speckle(OBLIQUE.shape, 3), OBLIQUE, labels, **BY)
    assert [item.SegmentLabel for item in pydicom.dcmread(path).SegmentSequence] == ["肝脏", "a/b", "x" * 64]


def test_headers_with_little_in_them(tmp_path):
    """Files from research archives lack what the standard asks for."""
    headers = [pydicom.dcmread(file) for file in series(tmp_path)]
    for header in headers:
        for keyword in (
            "FrameOfReferenceUID",
            "PatientName",
            "StudyDate",
            "AccessionNumber",
            "PositionReferenceIndicator",
        ):
            delattr(header, keyword)
        header.PatientSex = "X"
    labels = speckle(OBLIQUE.shape, 2)
    path = write_dicom_seg(tmp_path / "a.dcm", labels, OBLIQUE, named(2), source=headers, **BY)
    np.testing.assert_array_equal(mask_on_grid(open_image(path), OBLIQUE).pixels[0], labels)


def test_bad_calls(tmp_path):
    path, labels, files = tmp_path / "a.dcm", speckle(OBLIQUE.shape, 2), series(tmp_path)
    both = Labels(("a", "b"), multilabel=True)
    other = write_dicom_series(Image(OBLIQUE, labels[None]), tmp_path / "mr", modality="MR")
    for mask, names, words, message in (
        (labels.astype(float), named(2), {}, "whole numbers"),
        (labels, named(1), {}, "from 0 to 2"),
        (labels.astype(np.int8) - 1, named(2), {}, "from -1"),
        (labels[:3], named(2), {}, "shape"),
        (np.stack([labels] * 3), named(2), {}, "shape"),
        (np.stack([labels] * 2), named(2), {}, "layers hold 0 and 1"),
        (labels, both, {}, "one layer each"),
        (labels, named(2), {"source": []}, "at least one"),
        (labels, named(2), {"source": [*files, *other]}, "2 series"),
        (labels, named(2), {"source": files[:3]}, "outside its source"),
    ):
        with pytest.raises(UsageError, match=message):
            write_dicom_seg(path, mask, OBLIQUE, names, **words, **BY)
    with pytest.raises(UsageError, match="fewest are 8"):
        write_dicom_seg(path, labels[:, :2, :3], Grid((6, 2, 3), OBLIQUE.affine), named(2), **BY)
    with pytest.raises(UsageError, match="does not belong"):
        write_dicom_seg(path, labels, Grid(OBLIQUE.shape), named(2), source=files, **BY)
    assert not path.exists()


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["23x38x3", "24x38x3"])
def test_segmentations_of_dcmqi_written_again(real_data, tmp_path, name):
    folder = real_data / "dicom" / "dcmqi" / "segmentations" / name
    if not folder.is_dir():
        pytest.skip(f"no segmentations at {folder}")
    theirs = pydicom.dcmread(folder / "seg" / "label.seg")
    image = open_image(folder / "seg" / "label.seg")
    count = len(theirs.SegmentSequence)
    labels = Labels(
        tuple(item.SegmentLabel or f"s{k}" for k, item in enumerate(theirs.SegmentSequence)), multilabel=True
    )
    layers = image.pixels if len(image.pixels) == count else np.stack([image.pixels[0] == k + 1 for k in range(count)])
    for source in (folder / "image", folder / "multiframe" / "mf.dcm"):
        path = write_dicom_seg(tmp_path / f"{source.stem}.dcm", layers, image.grid, labels, source=source, **BY)
        mine = pydicom.dcmread(path)
        assert frames_of(mine) == {key: value for key, value in frames_of(theirs).items() if value.any()}


class Bits(np.ndarray):
    """Frames that compare as a whole."""

    def __eq__(self, other):
        return np.array_equal(np.asarray(self), np.asarray(other))

    __hash__ = None


def frames_of(dataset):
    found = {}
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame, item in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        part = (item if "SegmentIdentificationSequence" in item else shared).SegmentIdentificationSequence[0]
        top = item.PlanePositionSequence[0].ImagePositionPatient
        found[part.ReferencedSegmentNumber, tuple(round(float(n), 3) for n in top)] = frame.view(Bits)
    return found


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["liver.dcm", "partial_overlaps.dcm"])
def test_segmentations_of_a_real_scan(real_data, tmp_path, name):
    folder = real_data / "dicom" / "dcmqi" / "segmentations"
    if not (folder / name).is_file():
        pytest.skip(f"no segmentation at {folder / name}")
    theirs, image = pydicom.dcmread(folder / name), open_image(folder / name)
    labels = Labels(tuple(f"{k} {item.SegmentLabel}" for k, item in enumerate(theirs.SegmentSequence)), multilabel=True)
    layers = image.pixels if len(image.pixels) == len(labels) else np.stack(
        [image.pixels[0] == item.SegmentNumber for item in theirs.SegmentSequence])  # fmt: skip
    source = sorted((folder / "ct-3slice").iterdir())
    path = write_dicom_seg(tmp_path / "a.dcm", layers, image.grid, labels, source=source, **BY)
    assert frames_of(pydicom.dcmread(path)) == {key: value for key, value in frames_of(theirs).items() if value.any()}
    seg = highdicom.seg.segread(path)
    assert seg.number_of_segments == len(labels)
