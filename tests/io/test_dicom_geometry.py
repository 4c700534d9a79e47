"""Positions in the patient, against the formula of PS3.3 C.7.6.2.1.1 written out, and with random grids."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_writing import ramp, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vesalius.core.errors import GeometryError
from vesalius.io.dicom_geometry import make_plane, missing_distances, positions, single, stack
from vesalius.io.dicom_resample import resample
from vesalius.io.limits import ReadLimits
from vesalius.io.open import open_image

LIMITS = ReadLimits()
angles = st.tuples(*[st.floats(-180, 180) for _ in range(3)])
steps = st.floats(0.2, 8.0)
places = st.tuples(*[st.floats(-500, 500) for _ in range(3)])


def formula(position, orientation, spacing, row, column):
    """Equation C.7.6.2.1-1: Xxyz, Yxyz are row and column cosines, di and dj the column and row distances."""
    X, Y = np.array(orientation[:3]), np.array(orientation[3:])
    return X * spacing[1] * column + Y * spacing[0] * row + np.array(position)


@given(angles, st.tuples(steps, steps, steps), places, st.integers(2, 9), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_index_to_patient_is_the_formula_of_the_standard(turn, steps_mm, origin, count, random):
    row_mm, column_mm, slice_mm = steps_mm
    matrix = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    orientation = [*matrix[:, 0], *matrix[:, 1]]
    tops = [np.array(origin) + matrix[:, 2] * slice_mm * index for index in range(count)]
    shuffled = random.sample(range(count), count)
    planes = [make_plane(f"{index}", (5, 7), tops[index], orientation, (row_mm, column_mm)) for index in shuffled]
    order = positions(planes, LIMITS)
    assert [shuffled[group[0]] for group in order] == list(range(count))
    plan = stack([planes[group[0]] for group in order], "series", LIMITS)
    assert plan.resampling is None
    for z in (0, count - 1):
        for row, column in ((0, 0), (4, 6), (2, 3)):
            expected = formula(tops[z], orientation, (row_mm, column_mm), row, column)
            assert np.allclose(plan.grid.to_patient([z, row, column]), expected, atol=1e-6)
    assert plan.grid.spacing_mm == pytest.approx((slice_mm, row_mm, column_mm))


@given(angles, steps, steps, places)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_of_any_orientation_agree_with_simpleitk(tmp_path_factory, turn, row_mm, column_mm, origin):
    import SimpleITK as sitk  # noqa: N813 - as everyone writes it

    folder = tmp_path_factory.mktemp("series")
    matrix = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    tops = [np.array(origin) + matrix[:, 2] * 3.0 * index for index in range(3)]
    write_series(
        folder,
        ramp(3),
        tops,
        orientation=[*matrix[:, 0], *matrix[:, 1]],
        spacing=(round(row_mm, 6), round(column_mm, 6)),
    )
    image = open_image(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    theirs = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(theirs), image.pixels[0])
    for z, y, x in ((0, 0, 0), (2, 5, 6), (1, 3, 2)):
        assert np.allclose(theirs.TransformIndexToPhysicalPoint((x, y, z)), image.grid.to_patient([z, y, x]), atol=1e-3)


@given(st.floats(1, 30), st.floats(0.3, 2.0), st.floats(1.0, 5.0), st.integers(3, 8))
@settings(max_examples=60, deadline=None)
def test_tilted_stack_keeps_a_linear_field_in_place(degrees, pixel_mm, slice_mm, count):
    """A field that is linear in patient coordinates comes out of the resampling unchanged wherever slices cover it."""
    shift = np.tan(np.radians(degrees)) * slice_mm
    tops = [np.array([3.0, shift * index, slice_mm * index]) for index in range(count)]
    planes = [
        make_plane(str(index), (16, 6), top, (1, 0, 0, 0, 1, 0), (pixel_mm, pixel_mm)) for index, top in enumerate(tops)
    ]
    rows, columns = np.mgrid[:16, :6]
    volume = np.stack(
        [
            formula(top, (1, 0, 0, 0, 1, 0), (pixel_mm, pixel_mm), rows[..., None], columns[..., None]) @ [2, 5, 11]
            for top in tops
        ]
    )[None]
    if shift * (count - 1) <= 0.1 * pixel_mm:
        return
    plan = stack(planes, "series", LIMITS)
    assert plan.resampling is not None
    result = resample(volume, plan.resampling)[0]
    assert result.shape == plan.grid.shape
    index = np.stack(np.meshgrid(*[np.arange(side) for side in plan.grid.shape], indexing="ij"), -1)
    where = plan.grid.to_patient(index)
    inside = (where[..., 1] >= where[..., 2] / slice_mm * shift) & (
        where[..., 1] <= where[..., 2] / slice_mm * shift + 15 * pixel_mm
    )
    assert inside.any()
    assert np.allclose(result[inside], (where @ [2, 5, 11])[inside], atol=1e-6 * np.abs(volume).max())


def test_labels_are_resampled_to_the_nearest_slice_and_never_mixed():
    planes = [make_plane(str(z), (4, 4), (0, 0, z), (1, 0, 0, 0, 1, 0), (1, 1)) for z in (0.0, 1.0, 2.0, 3.6, 4.6)]
    plan = stack(planes, "series", ReadLimits(irregular="resample"))
    volume = np.broadcast_to(np.array([0, 7, 7, 3, 3], np.uint8)[:, None, None], (5, 4, 4))[None]
    assert np.array_equal(resample(volume, plan.resampling, nearest=True)[0, :, 0, 0], [0, 7, 7, 3, 3])


def test_sparse_frames_get_their_place_between_empty_slices():
    planes = [make_plane(str(z), (4, 4), (0, 0, z), (1, 0, 0, 0, 1, 0), (1, 1)) for z in (0.0, 2.0, 8.0)]
    plan = stack(planes, "seg", LIMITS, sparse=True)
    assert plan.order == (0, 1, -1, -1, 2)
    assert plan.grid.spacing_mm == pytest.approx((2, 1, 1))


def test_sparse_frames_with_gaps_of_two_and_three_steps():
    planes = [make_plane(str(z), (4, 4), (0, 0, z), (1, 0, 0, 0, 1, 0), (1, 1)) for z in (0.0, 2.0, 5.0)]
    assert stack(planes, "seg", LIMITS, sparse=True).order == (0, -1, 1, -1, -1, 2)


def test_missing_distances():
    assert missing_distances(np.array([0.0, 1.0, 4.0, 5.0]), 1.0, 0.1) == [2.0, 3.0]
    assert missing_distances(np.array([0.0, 1.0, 2.5, 3.5]), 1.0, 0.1) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"position": (0, 0, float("nan"))}, "Image Position"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "at a right angle"),
        ({"orientation": (2, 0, 0, 0, 1, 0)}, "two unit vectors"),
        ({"orientation": (1, 0, 0)}, "six finite numbers"),
        ({"spacing": (0, 1)}, "two positive numbers"),
    ],
)
def test_impossible_planes_are_refused(change, found):
    facts = {"position": (0, 0, 0), "orientation": (1, 0, 0, 0, 1, 0), "spacing": (1, 1), **change}
    with pytest.raises(GeometryError, match=found):
        make_plane("a.dcm", (4, 4), facts["position"], facts["orientation"], facts["spacing"])


def test_slice_alone_without_thickness_is_flat():
    grid, notes = single(make_plane("a.dcm", (4, 5), (1, 2, 3), (0, 1, 0, 0, 0, -1), (0.5, 0.25)))
    assert grid.shape == (4, 5)
    assert np.allclose(grid.to_patient([2, 3]), (1, 2 + 0.75, 3 - 1.0))
    assert len(notes) == 1
