"""A series of slices becomes one volume, or one line says why not."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_writing import AXIAL, SERIES, image_dataset, ramp, save, write_series

from vesalius.core.errors import GeometryError, LimitError, UsageError
from vesalius.core.image import Act
from vesalius.io.limits import read_limits
from vesalius.io.open import list_series, open_image, open_series


def heights(count, step=2.0, start=-10.0):
    return [(1.0, 2.0, start + step * index) for index in range(count)]


def test_slices_are_ordered_by_position_not_by_name_or_number(tmp_path):
    volume = ramp()
    names = ["d", "a", "e", "c", "b"]
    for index, (name, place) in enumerate(zip(names, heights(5), strict=True)):
        write_series(tmp_path, volume[index : index + 1], [place], names=[name], InstanceNumber=9 - index)
    image = open_image(tmp_path)
    assert np.array_equal(image.pixels, volume[None])
    assert image.pixels.dtype == np.int16
    assert image.grid.spacing_mm == pytest.approx((2.0, 0.5, 0.75))
    assert np.allclose(image.grid.to_patient([3, 2, 1]), (1.0 + 0.75, 2.0 + 2 * 0.5, -4.0))
    assert image.meta["patient_id"] == "P1"
    assert image.record == ()


def test_series_against_the_normal_is_turned_to_rise_along_it(tmp_path):
    # The column direction points up in the patient's y: the normal is then (0, 0, -1).
    volume = ramp()
    write_series(tmp_path, volume, heights(5), orientation=(1, 0, 0, 0, -1, 0))
    image = open_image(tmp_path)
    assert np.array_equal(image.pixels[0], volume[::-1])
    assert np.allclose(image.grid.to_patient([0, 0, 0]), (1.0, 2.0, -2.0))
    assert np.linalg.det(image.grid.affine[:3, :3]) < 0  # (z, y, x) columns of a right-handed (x, y, z)


def test_missing_slice_is_refused_and_named(tmp_path):
    paths = write_series(tmp_path, ramp(6), heights(6))
    paths[3].unlink()
    with pytest.raises(GeometryError, match=r"1 missing slice at \(1, 2, -4\) mm.*002\.dcm and .*004\.dcm.*every 2 mm"):
        open_image(tmp_path)


def test_missing_slice_is_interpolated_on_request(tmp_path):
    volume = ramp(6)
    paths = write_series(tmp_path, volume, heights(6))
    paths[3].unlink()
    with read_limits(irregular="resample"):
        image = open_image(tmp_path)
    # The ramp is linear along z, so that linear interpolation restores the missing slice exactly.
    assert np.array_equal(image.pixels[0], volume)
    assert [note.act for note in image.record] == [Act.RESAMPLED]


def test_uneven_distances_are_refused_and_resampled_on_request(tmp_path):
    volume = ramp(5)
    tops = [0.0, 2.0, 4.0, 7.0, 9.0]
    for index, top in enumerate(tops):
        volume[index] = 100 * top
    write_series(tmp_path, volume, [(0, 0, top) for top in tops])
    with pytest.raises(GeometryError, match=r"uneven slice distances from 2 to 3 mm.*002\.dcm and .*003\.dcm"):
        open_image(tmp_path)
    with read_limits(irregular="resample"):
        image = open_image(tmp_path)
    assert image.grid.spacing_mm[0] == pytest.approx(2.0)
    assert np.array_equal(image.pixels[0, :, 0, 0], [0, 200, 400, 600, 800])


def test_rounded_positions_are_repaired_with_a_note(tmp_path):
    tops = [0.0, 2.04, 3.97, 6.0]
    write_series(tmp_path, ramp(4), [(0, 0, top) for top in tops])
    image = open_image(tmp_path)
    assert [note.act for note in image.record] == [Act.REPAIRED]
    assert image.grid.spacing_mm[0] == pytest.approx(2.0)


def test_copies_are_dropped_with_a_note(tmp_path):
    volume = ramp()
    write_series(tmp_path, volume, heights(5))
    write_series(tmp_path, volume[2:3], heights(5)[2:3], names=["copy.dcm"])
    image = open_image(tmp_path)
    assert np.array_equal(image.pixels[0], volume)
    assert image.record[0].act is Act.REPAIRED
    assert "1 copies" in image.record[0].text


def test_different_pixels_at_one_position_are_refused(tmp_path):
    write_series(tmp_path, ramp(), heights(5))
    write_series(tmp_path, ramp()[2:3] + 1, heights(5)[2:3], names=["other.dcm"])
    with pytest.raises(GeometryError, match=r"2 different slices at \(1, 2, -6\) mm.*other\.dcm and 002\.dcm"):
        open_image(tmp_path)


def test_phases_of_one_series_are_told_apart(tmp_path):
    write_series(tmp_path / "a", ramp(), heights(5), TemporalPositionIdentifier=1)
    write_series(tmp_path / "b", ramp() + 1000, heights(5), TemporalPositionIdentifier=2)
    found = list_series(tmp_path)
    assert [series.because for series in found] == ["time 1", "time 2"]
    assert np.array_equal(open_series(found[1]).pixels[0], ramp() + 1000)
    with pytest.raises(UsageError, match=r"holds 2 series.*time 1.*pick one"):
        open_image(tmp_path)
    assert np.array_equal(open_image(f"{tmp_path}#{SERIES}/2").pixels[0], ramp() + 1000)


def test_localizer_in_the_same_series_is_split_off(tmp_path):
    write_series(tmp_path, ramp(), heights(5), ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    write_series(
        tmp_path,
        ramp(1),
        [(0, 0, 0)],
        names=["scout"],
        orientation=(1, 0, 0, 0, 0, -1),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    found = list_series(tmp_path)
    assert sorted(len(series.files) for series in found) == [1, 5]
    assert all("orientation" in series.because for series in found)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"orientation": (0, 1, 0, 0, 0, -1)}, "orientation"),
        ({"spacing": (0.5, 0.8)}, "pixel spacing"),
    ],
)
def test_mixed_planes_are_refused_naming_both_files(tmp_path, change, word):
    paths = write_series(tmp_path, ramp(3), heights(3))
    paths += write_series(tmp_path, ramp(1), [(1, 2, 0)], names=["odd.dcm"], **change)
    with pytest.raises(GeometryError, match=rf"odd\.dcm: {word} .* while .*000\.dcm has") as caught:
        open_series(paths)
    assert "\n" not in str(caught.value)


def test_mixed_sizes_are_refused(tmp_path):
    paths = write_series(tmp_path, ramp(3), heights(3))
    paths += write_series(tmp_path, ramp(1, rows=8), [(1, 2, 0)], names=["odd.dcm"])
    with pytest.raises(GeometryError, match=r"odd\.dcm: size 8x7 while .*000\.dcm has 6x7"):
        open_series(paths)


def test_gantry_tilt_is_undone_onto_an_orthogonal_grid(tmp_path):
    # Each slice is shifted by exactly two rows against its neighbour; the object is a straight rod along z.
    volume = np.zeros((4, 12, 5), np.int16)
    for index in range(4):
        volume[index, 8 - 2 * index, 2] = 500
    tilted = [(0.0, 1.0 * index, 3.0 * index) for index in range(4)]
    write_series(tmp_path, volume, tilted)
    image = open_image(tmp_path)
    assert image.grid.spacing_mm == pytest.approx((3.0, 0.5, 0.75))
    axes = image.grid.affine[:3, :3] / np.linalg.norm(image.grid.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3))
    rod = np.argwhere(image.pixels[0] == 500)
    assert np.allclose(image.grid.to_patient(rod), [(1.5, 4.0, 3.0 * index) for index in range(4)])
    assert image.record[0].act is Act.RESAMPLED
    assert "18.4 degrees" in image.record[0].text  # atan(1 / 3)


def test_gantry_tilt_refused_or_kept_on_request(tmp_path):
    write_series(tmp_path, ramp(4), [(0.0, 1.0 * index, 3.0 * index) for index in range(4)])
    with read_limits(tilt="refuse"), pytest.raises(GeometryError, match=r"gantry tilt of 18\.4 degrees"):
        open_image(tmp_path)
    with read_limits(tilt="keep"):
        image = open_image(tmp_path)
    assert np.allclose(image.grid.to_patient([3, 0, 0]), (0, 3, 9))
    assert np.array_equal(image.pixels[0], ramp(4))


def test_slices_side_by_side_in_one_plane_are_refused(tmp_path):
    paths = write_series(tmp_path, ramp(2), [(0, 0, 0), (40, 0, 0)])
    with pytest.raises(GeometryError, match=r"001\.dcm.*40\.00 mm away in one plane"):
        open_series(paths)


def test_hounsfield_units_are_int16_over_the_series(tmp_path):
    stored = ramp(3, dtype=np.uint16)
    write_series(tmp_path, stored, heights(3), RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")
    image = open_image(tmp_path)
    assert image.unit == "HU"
    assert image.pixels.dtype == np.int16
    assert np.array_equal(image.pixels[0], stored.astype(int) - 1024)


def test_rescale_of_each_slice_is_its_own(tmp_path):
    stored = ramp(3)
    for index, place in enumerate(heights(3)):
        write_series(
            tmp_path,
            stored[index : index + 1],
            [place],
            names=[f"{index}"],
            Modality="PT",
            Units="BQML",
            RescaleSlope=str(0.5 + index),
            RescaleIntercept="0",
        )
    image = open_image(tmp_path)
    assert image.pixels.dtype == np.float32
    assert np.allclose(image.pixels[0], stored * np.array([0.5, 1.5, 2.5])[:, None, None])
    assert any("no SUV" in note.text for note in image.record)


def test_monochrome1_series_is_turned_round(tmp_path):
    stored = ramp(3, dtype=np.uint16)
    write_series(tmp_path, stored, heights(3), Modality="MR", BitsStored=12, HighBit=11,
                 PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    image = open_image(tmp_path)
    assert image.pixels.dtype == np.uint16
    assert np.array_equal(image.pixels[0], 4095 - stored)


def test_colour_series(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    for index in (2, 0, 1):
        facts = {
            "ImagePositionPatient": [0, 0, 2 * index],
            "ImageOrientationPatient": list(AXIAL),
            "PixelSpacing": [1, 1],
        }
        save(image_dataset(volume[index], Modality="MR", **facts), tmp_path / f"{9 - index}")
    assert np.array_equal(open_image(tmp_path).pixels, np.moveaxis(volume, -1, 0))


def test_thin_slices_far_apart_are_noted(tmp_path):
    write_series(tmp_path, ramp(3), heights(3, step=4.0))
    assert "what is between them is in no file" in open_image(tmp_path).record[0].text


def test_crooked_slices_are_refused_or_moved_into_place(tmp_path):
    volume = np.zeros((4, 9, 5), np.int16)
    sides = [0, 1, 0, 1]  # in rows of half a millimetre
    for index, side in enumerate(sides):
        volume[index, 4 - side, 2] = 100
    write_series(tmp_path, volume, [(0, 0.5 * side, 2.0 * index) for index, side in enumerate(sides)])
    with pytest.raises(GeometryError, match=r"up to 0\.33 mm off a straight line"):
        open_image(tmp_path)
    with read_limits(irregular="resample"):
        image = open_image(tmp_path)
    points = image.grid.to_patient(np.argwhere(image.pixels[0] == 100))
    assert np.allclose(points, [(1.5, 2.0, 2.0 * index) for index in range(4)])


def test_patients_are_not_mixed(tmp_path):
    paths = write_series(tmp_path, ramp(2), heights(2))
    paths += write_series(tmp_path, ramp(1), [(1, 2, 0)], names=["else.dcm"], PatientID="P2")
    with pytest.raises(GeometryError, match="PatientID 'P2' while"):
        open_series(paths)


def test_projections_of_one_series_are_no_volume(tmp_path):
    paths = [save(image_dataset(ramp(1)[0], Modality="DX"), tmp_path / f"{index}.dcm") for index in range(2)]
    with pytest.raises(GeometryError, match=r"no position and orientation in the patient.*one by one"):
        open_series(paths)


def test_projections_and_multi_frames_are_listed_one_by_one(tmp_path):
    for index in range(2):
        save(image_dataset(ramp(1)[0] + index, Modality="DX", InstanceNumber=index), tmp_path / f"{index}.dcm")
    save(image_dataset(ramp(3), Modality="DX", InstanceNumber=5), tmp_path / "cine.dcm")
    found = list_series(tmp_path)
    assert [series.because for series in found] == ["file 0.dcm", "file 1.dcm", "file cine.dcm"]
    assert np.array_equal(open_image(f"{tmp_path}#{found[1].key}").pixels[0], ramp(1)[0] + 1)


def test_limit_is_checked_before_decoding(tmp_path):
    paths = write_series(tmp_path, ramp(), heights(5))
    with read_limits(max_pixels=100), pytest.raises(LimitError, match="= 210 values; expected at most 100"):
        open_series(paths)


def test_files_of_other_kinds_are_passed_over(tmp_path):
    write_series(tmp_path, ramp(), heights(5))
    (tmp_path / "notes.txt").write_text("not an image")
    assert open_image(tmp_path).pixels.shape == (1, 5, 6, 7)


def test_single_slice_keeps_its_thickness_or_stays_flat(tmp_path):
    thick = open_image(write_series(tmp_path / "a", ramp(1), [(1, 2, 3)])[0])
    assert thick.pixels.shape == (1, 1, 6, 7)
    assert thick.grid.spacing_mm == pytest.approx((2.0, 0.5, 0.75))
    flat = open_image(write_series(tmp_path / "b", ramp(1), [(1, 2, 3)], SliceThickness=None)[0])
    assert flat.pixels.shape == (1, 6, 7)
    assert np.allclose(flat.grid.to_patient([2, 1]), (1.75, 3.0, 3.0))
    assert "without Slice Thickness" in flat.record[0].text


def dicomdir(folder, files):
    """A DICOMDIR that names `files`, as a burning program writes one."""
    from pydicom.fileset import FileSet

    out = folder / "cd"
    made = FileSet()
    for file in files:
        made.add(file)
    made.write(out)
    return out


def test_dicomdir_is_used_and_a_broken_one_passed_over(tmp_path):
    files = write_series(
        tmp_path / "in",
        ramp(3),
        heights(3),
        orientation=AXIAL,
        PatientName="A",
        StudyDate="20200101",
        StudyTime="101010",
        StudyID="1",
        AccessionNumber="1",
        SeriesNumber=1,
    )
    disc = dicomdir(tmp_path, files)
    found = list_series(disc)
    assert [len(series.files) for series in found] == [3]
    assert np.array_equal(open_image(disc).pixels[0], ramp(3))
    assert np.array_equal(open_image(disc / "DICOMDIR").pixels[0], ramp(3))
    found[0].files[0].unlink()

    class Heard:
        def __init__(self):
            self.warnings = []

        def __getattr__(self, name):
            return self.warnings.append if name == "warn" else lambda *args, **kwargs: None

    heard = Heard()
    assert [len(series.files) for series in list_series(disc, heard)] == [2]
    assert "missing file" in heard.warnings[0]
