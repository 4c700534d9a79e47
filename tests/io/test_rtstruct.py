"""RT Structure Sets: what pydicom reads, what the standard asks for, and masks there and back."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.draw import polygon2mask

from vesalius.core.errors import GeometryError, UnreadableFile, UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.io.dicom_out import write_dicom_series
from vesalius.io.open import open_image
from vesalius.io.rtstruct import Rings, inside, label_image, read_rtstruct
from vesalius.io.rtstruct_out import Holes, Region, keyhole, write_rtstruct
from vesalius.measure.contours import contours, polygon_mask

FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def grid_of(shape, turn=(20, -30, 75), steps=(3.0, 0.7, 0.9), origin=(-100, 250, 1400)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * np.array(steps)
    affine[:3, 3] = origin
    return Grid(shape, affine)


def regions_of(labels, grid):
    rings = contours(labels)
    out = []
    for label in np.unique(labels[labels > 0]).tolist():
        mine = [k for k, ring in enumerate(rings) if ring.label == label]
        place = {k: n for n, k in enumerate(mine)}
        parents = [place.get(rings[k].parent, -1) for k in mine]
        out.append(Region(f"part {label}", [rings[k].to_patient(grid) for k in mine], parents, number=label))
    return out


def lumps(shape=(5, 40, 44), seed=0):
    """Two labels with holes, islands in holes and empty slices."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0.5, 2, 2))
    labels = np.digitize(noise, np.quantile(noise, [0.45, 0.75]))
    labels[2] = 0
    return labels


@FEW
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 2)),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(st.floats(0.5, 6), st.floats(0.2, 2), st.floats(0.2, 2)),
    st.sampled_from([-1, 1]),
    st.sampled_from(list(Holes)),
)
def test_masks_come_back_on_any_grid(tmp_path, labels, turn, steps, flip, holes):
    if not labels.any():
        return
    grid = grid_of(labels.shape, turn, (flip * steps[0], *steps[1:]))
    path = write_rtstruct(regions_of(labels, grid), tmp_path / "a.dcm", holes=holes)
    back = label_image(read_rtstruct(path), grid)
    assert back.channels == ("labels",)
    np.testing.assert_array_equal(back.pixels[0], labels)


def test_what_stands_in_the_file(tmp_path):
    labels = lumps()
    grid = grid_of(labels.shape)
    facts = {"patient_id": "P7", "study_date": "20240131", "study_time": "101500", "study_id": "S1"}
    files = write_dicom_series(Image(grid, labels[None].astype(np.int16)), tmp_path / "series", meta=facts)
    regions = regions_of(labels, grid)
    path = write_rtstruct(regions, tmp_path / "rt.dcm", source=files, label="lungs by Vesalius")
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    data = pydicom.dcmread(path)
    assert data.SOPClassUID == pydicom.uid.RTStructureSetStorage
    assert data.file_meta.TransferSyntaxUID == pydicom.uid.ImplicitVRLittleEndian
    assert (data.Modality, data.PatientID, data.StudyDate) == ("RTSTRUCT", "P7", "20240131")
    assert data.StudyInstanceUID == headers[0].StudyInstanceUID
    assert data.SeriesInstanceUID != headers[0].SeriesInstanceUID
    assert data.StructureSetLabel == "lungs by Vesaliu"
    (frame,) = data.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == headers[0].FrameOfReferenceUID == data.FrameOfReferenceUID
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence] == [
        header.SOPInstanceUID for header in headers
    ]
    assert [(item.ROINumber, item.ROIName) for item in data.StructureSetROISequence] == [(1, "part 1"), (2, "part 2")]
    assert [item.ReferencedROINumber for item in data.RTROIObservationsSequence] == [1, 2]
    by_uid = {header.SOPInstanceUID: header for header in headers}
    for item in data.ROIContourSequence:
        assert len(item.ROIDisplayColor) == 3
        for contour in item.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            assert all(len(str(value)) <= 16 for value in contour.ContourData)
            header = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            axes = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            off = (points - np.array(header.ImagePositionPatient, float)) @ np.cross(*axes)
            assert np.abs(off).max() < 1e-3
    back = label_image(read_rtstruct(path), grid)
    np.testing.assert_array_equal(back.pixels[0], labels)
    assert back.meta["segments"] == ["1: part 1", "2: part 2"]
    # The series as our own door opens it has the slices that the contours name.
    np.testing.assert_array_equal(label_image(read_rtstruct(path), open_image(tmp_path / "series").grid).pixels[0] > 0,
                                  open_image(tmp_path / "series").pixels[0] > 0)  # fmt: skip


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("with_source", [False, True])
def test_dciodvfy_finds_no_error(tmp_path, with_source):
    labels = lumps()
    grid = grid_of(labels.shape)
    facts = {"patient_id": "P7", "study_date": "20240131", "study_time": "101500", "study_id": "S1"}
    files = write_dicom_series(Image(grid, labels[None].astype(np.int16)), tmp_path / "series", meta=facts)
    path = write_rtstruct(regions_of(labels, grid), tmp_path / "rt.dcm", source=files if with_source else ())
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    said = done.stderr + done.stdout
    assert "RTStructureSet" in said
    assert [line for line in said.splitlines() if line.startswith("Error")] == []


def test_the_same_call_writes_the_same_bytes(tmp_path):
    labels = lumps()
    regions = regions_of(labels, grid_of(labels.shape))
    first = write_rtstruct(regions, tmp_path / "a.dcm").read_bytes()
    assert first == write_rtstruct(regions, tmp_path / "b.dcm").read_bytes()
    other = pydicom.dcmread(write_rtstruct(regions, tmp_path / "c.dcm", seed=1))
    assert other.SOPInstanceUID != pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID


def test_a_contour_of_more_than_64_kilobytes(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    ring = np.stack([40 * np.cos(angle) + 50, 40 * np.sin(angle) + 50, np.full(5000, 2.0)], 1)
    path = write_rtstruct([Region("round", [ring])], tmp_path / "a.dcm")
    (region,) = read_rtstruct(path).regions
    np.testing.assert_allclose(region.rings[0], ring, atol=1e-6)


def test_a_keyhole_encloses_what_is_between_the_rings():
    outer = np.array([[0.2, 0.3, 5], [30.1, 0.4, 5], [30.2, 30.3, 5], [0.1, 30.4, 5]])
    holes = [np.array([[x, y, 5], [x + 4.5, y, 5], [x + 4.4, y + 5.5, 5], [x, y + 5.3, 5]])
             for x, y in ((3.3, 4.2), (15.1, 4.4), (10.7, 18.6))]  # fmt: skip
    ring = keyhole(outer, [holes[0], holes[1][::-1], holes[2]])
    assert len(ring) == 4 + 3 * 6
    flat = [np.ascontiguousarray(one[:, 1::-1]) for one in (ring, outer, *holes)]  # (y, x)
    expected = polygon_mask(flat[1:], (40, 40))
    np.testing.assert_array_equal(polygon_mask(flat[:1], (40, 40)), expected)

    def area(points):
        y, x = points.T
        return 0.5 * float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)

    assert area(flat[0]) == pytest.approx(area(flat[1]) - sum(abs(area(one)) for one in flat[2:]))


@pytest.mark.parametrize("seed", range(8))
def test_both_fills_agree_with_scikit_image(seed):
    draw = np.random.default_rng(seed)
    angle = np.sort(draw.uniform(0, 2 * np.pi, 12))
    star = np.stack([15 + draw.uniform(3, 14, 12) * np.sin(angle), 16 + draw.uniform(3, 14, 12) * np.cos(angle)], 1)
    found = inside([star], (30, 33))
    np.testing.assert_array_equal(found, polygon2mask((30, 33), star))
    np.testing.assert_array_equal(found, polygon_mask([star], (30, 33)))
    crossing = draw.uniform(-5, 35, (9, 2))  # leaves the image and crosses itself
    np.testing.assert_array_equal(inside([crossing], (30, 33)), polygon_mask([crossing], (30, 33)))


def square(x, y, side, z=0.0):
    return np.array([[x, y, z], [x + side, y, z], [x + side, y + side, z], [x, y + side, z]])


def test_overlapping_regions_get_a_channel_each(tmp_path):
    grid = grid_of((2, 20, 20), (0, 0, 0), (1, 1, 1), (0, 0, 0))
    grid = Grid(grid.shape, np.array([[0, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]]))
    regions = [Region("a", [square(1.5, 1.5, 8)]), Region("a", [square(5.5, 5.5, 8)]), Region("none", [])]
    image = label_image(read_rtstruct(write_rtstruct(regions, tmp_path / "a.dcm")), grid)
    assert image.channels == ("a 1", "a 2", "none")
    assert image.pixels.sum(axis=(1, 2, 3)).tolist() == [64, 64, 0]
    assert "overlap" in image.record[-1].text


def test_rings_in_rings_and_rings_elsewhere(tmp_path):
    grid = Grid((2, 20, 20), np.array([[0, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]]))
    rings = [square(1.5, 1.5, 10), square(3.5, 3.5, 4), square(2.5, 2.5, 3, 2.4), square(2.5, 2.5, 3, 50)]
    path = write_rtstruct([Region("a", rings)], tmp_path / "a.dcm", holes="separate")
    structures = read_rtstruct(path)
    image = label_image(structures, grid)
    assert image.pixels.sum(axis=(0, 2, 3)).tolist() == [100 - 16, 9]
    assert [note.text.split()[0] for note in image.record] == ["1", "contours"]
    assert label_image(structures, grid, rings=Rings.UNION).pixels[0, 0].sum() == 100
    with pytest.raises(UsageError, match="even-odd"):
        label_image(structures, grid, rings="odd")
    with pytest.raises(GeometryError, match="without a position"):
        label_image(structures, Grid((2, 20, 20)))
    turned = Grid((20, 20, 20), np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    with pytest.raises(GeometryError, match="crosses"):
        label_image(structures, turned)


def test_bad_calls_and_files(tmp_path):
    ring = square(0, 0, 3)
    path = tmp_path / "a.dcm"
    for regions, words, message in (
        ([], {}, "different numbers"),
        ([Region("a", [ring], number=2), Region("b", [ring], number=2)], {}, "different numbers"),
        ([Region("a", [ring[:, :2]])], {}, "finite numbers"),
        ([Region("a", [ring + np.inf])], {}, "finite numbers"),
        ([Region("a", [ring], [0])], {}, "parents"),
        ([Region("a", [ring])], {"holes": "no"}, "keyhole"),
    ):
        with pytest.raises(UsageError, match=message):
            write_rtstruct(regions, path, **words)
    assert not path.exists()
    (tmp_path / "b.dcm").write_bytes(b"nothing")
    with pytest.raises(UnreadableFile):
        read_rtstruct(tmp_path / "b.dcm")
    image = Image(grid_of((2, 8, 8)), np.zeros((1, 2, 8, 8), np.int16))
    (file, _) = write_dicom_series(image, tmp_path / "ct")
    with pytest.raises(UnreadableFile, match="another DICOM object"):
        read_rtstruct(file)
    other = write_dicom_series(image, tmp_path / "mr", modality="MR")
    with pytest.raises(UsageError, match="one series"):
        write_rtstruct([Region("a", [ring])], path, source=[file, *other])
    data = pydicom.dcmread(write_rtstruct([Region("a", [ring])], path))
    data.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]
    data.save_as(path)
    with pytest.raises(UnreadableFile, match="4 numbers"):
        read_rtstruct(path)
    data.ROIContourSequence[0].ReferencedROINumber = 9
    data.save_as(path)
    with pytest.raises(UnreadableFile, match="number 9"):
        read_rtstruct(path)


@pytest.mark.realdata
def test_structure_sets_of_others(real_data):
    folder = real_data / "dicom" / "rtstruct"
    if not folder.is_dir():
        pytest.skip(f"no structure sets at {folder}")
    structures = read_rtstruct(folder / "mock_data-non_existent_reference_rt.dcm")
    assert [region.name for region in structures.regions] == ["ROI-1", "ROI-2", "ROI-3", "ROI-4"]
    assert structures.regions[0].colour == (255, 0, 255)
    header = pydicom.dcmread(folder / "mock_data-ct_1.dcm", stop_before_pixels=True)
    steps, origin = np.array(header.PixelSpacing, float), np.array(header.ImagePositionPatient, float)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, steps[1]], [0, steps[0], 0], [5, 0, 0]])
    affine[:3, 3] = origin
    grid = Grid((3, int(header.Rows), int(header.Columns)), affine)
    image = label_image(structures, grid)
    for region, number in zip(structures.regions, range(1, 5), strict=True):
        for z in range(3):
            expected = np.zeros(grid.shape[1:], bool)
            for ring in region.rings:
                index = grid.to_index(ring)
                if round(float(index[0, 0])) == z:
                    expected ^= polygon2mask(grid.shape[1:], index[:, 1:])
            found = image.pixels[0, z] == number
            assert expected.any()
            # scikit-image has another rule for centres on an edge, of which these rings, drawn on pixels, have many.
            edge = ndimage.binary_dilation(expected) & ~ndimage.binary_erosion(expected)
            assert not ((found != expected) & ~edge).any()
            assert (found != expected).sum() <= 0.5 * edge.sum()
    squares = read_rtstruct(folder / "mock_data-rt.dcm")
    assert [len(ring) for ring in squares.regions[0].rings] == [4, 8]


@pytest.mark.realdata
def test_outlines_for_a_real_oblique_series(real_data, tmp_path):
    folder = real_data / "dicom" / "rtstruct"
    files = sorted(folder.glob("oriented_data-*.dcm"))
    if not files:
        pytest.skip(f"no oblique series at {folder}")
    headers = sorted(
        (pydicom.dcmread(file, stop_before_pixels=True) for file in files),
        key=lambda h: float(h.ImagePositionPatient[2]),
    )
    place = [np.array(header.ImagePositionPatient, float) for header in headers]
    axes = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
    steps = np.array(headers[0].PixelSpacing, float)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([place[1] - place[0], axes[1] * steps[0], axes[0] * steps[1]], 1)
    affine[:3, 3] = place[0]
    grid = Grid((len(files), int(headers[0].Rows), int(headers[0].Columns)), affine)
    labels = lumps(grid.shape, 3)
    labels[1] = 1
    path = write_rtstruct(regions_of(labels, grid), tmp_path / "rt.dcm", source=files)
    np.testing.assert_array_equal(label_image(read_rtstruct(path), grid).pixels[0], labels)
    named = {
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        for item in pydicom.dcmread(path).ROIContourSequence
        for contour in item.ContourSequence
    }
    assert named <= {header.SOPInstanceUID for header in headers}
