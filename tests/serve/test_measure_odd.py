"""Masks and options that people bring and nobody planned for."""

import numpy as np
import pytest
from PIL import Image as Raster

from vesalius.core.errors import DataError, FileError, GeometryError
from vesalius.core.geometry import Grid, affine_from_axes
from vesalius.core.image import Image, Unit
from vesalius.io.nifti_out import write_nifti
from vesalius.serve import measure_loading
from vesalius.serve.measure_cases import MeasureCase
from vesalius.serve.measure_loading import load
from vesalius.serve.measuring import measure

AXES = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def nifti(path, values, spacing=(2.0, 1.0, 1.0), axes=AXES):
    grid = Grid(values.shape, affine=affine_from_axes((0, 0, 0), axes, spacing))
    write_nifti(Image(grid=grid, pixels=values[None]), path)
    return path


@pytest.fixture
def solid():
    mask = np.zeros((4, 8, 7), np.uint8)
    mask[1:3, 2:4, 1:4] = 1
    mask[1:3, 5:7, 4:6] = 2
    return mask


@pytest.fixture
def overlapping(monkeypatch):
    """Three segments of one file: 1 and 2 share eight voxels, 3 lies apart."""
    layers = np.zeros((3, 4, 8, 7), np.uint8)
    layers[0, :, :4, :4] = 1
    layers[1, :, 3:6, 2:5] = 1
    layers[2, :, 7] = 1
    grid = Grid(layers.shape[1:], affine=affine_from_axes((0, 0, 0), AXES, (1, 1, 1)))
    meta = {"segments": ("1: a", "2: b", "3: c")}
    image = Image(grid=grid, pixels=layers, unit=Unit.LABEL, channels=("a", "b", "c"), meta=meta)
    monkeypatch.setattr(measure_loading, "open_image", lambda path: image)
    return layers


def test_a_segment_chosen_among_overlapping_ones_is_whole(overlapping):
    for value in (1, 2, 3):
        loaded = load(MeasureCase("s", "s.dcm"), names={}, only=[value])
        assert not loaded.layers
        np.testing.assert_array_equal(loaded.labels == value, overlapping[value - 1] > 0)
    assert sorted(load(MeasureCase("s", "s.dcm"), names={}, only=[1, 2]).layers) == [1, 2]
    assert not load(MeasureCase("s", "s.dcm"), names={}, only=[1, 3]).layers


def test_overlapping_segments_are_compared_one_by_one(overlapping):
    case = MeasureCase("s", "s.dcm", reference="r.dcm")
    with pytest.raises(FileError, match=r"compare the segments one by one with --labels"):
        load(case, names={})
    for value in (1, 2):
        loaded = load(case, names={}, only=[value])
        np.testing.assert_array_equal(loaded.reference == value, overlapping[value - 1] > 0)


def test_labels_that_a_mask_lacks_are_told(tmp_path, solid):
    loaded = load(MeasureCase("m", str(nifti(tmp_path / "m.nii.gz", solid))), names={}, only=[2, 9])
    assert loaded.notes == ["m: the mask has no label 9"]


def test_two_steps_for_three_axes(tmp_path, solid):
    with pytest.raises(GeometryError, match=r"3 axes; expected as many as --spacing has \(2\)"):
        load(MeasureCase("m", str(nifti(tmp_path / "m.nii.gz", solid))), names={}, spacing=(1.0, 1.0))


def test_the_line_about_a_turned_reference_shows_what_differs(tmp_path, solid):
    turned = ((0, 0, 1), (-0.6, 0.8, 0), (0.8, 0.6, 0))
    mask, other = nifti(tmp_path / "m.nii.gz", solid), nifti(tmp_path / "r.nii.gz", solid, axes=turned)
    with pytest.raises(GeometryError) as caught:
        load(MeasureCase("m", str(mask), None, str(other)), names={})
    found, expected = str(caught.value).split("expected")
    assert "last (0.60, 9.20, 6.00)" in found
    assert "last (6.00, 7.00, 6.00)" in expected


def test_tables_of_an_earlier_command_do_not_stay(tmp_path, solid):
    mask, out = nifti(tmp_path / "m.nii.gz", solid), tmp_path / "out"
    measure(mask, reference=mask, out=out, page=False)
    assert {"reference.csv", "reference.parquet"} <= {path.name for path in out.iterdir()}
    for force in (False, True):
        measure(mask, out=out, page=False, formats=("csv",), force=force)
        assert sorted(path.name for path in out.glob("*.*") if path.name[0] != ".") == [
            "dictionary.csv",
            "provenance.json",
            "structures.csv",
        ]


@pytest.mark.parametrize("flips", [(0,), (1, 2), (0, 1, 2)])
def test_sizes_do_not_depend_on_how_a_mask_is_stored(tmp_path, solid, flips):
    rows = []
    for name, values in (("a", solid), ("b", np.flip(solid, flips).copy())):
        done = measure(nifti(tmp_path / f"{name}.nii.gz", values), out=tmp_path / name, page=False)
        table = done.table("structures")
        rows.append(table.filter(regex="volume|area|diameter_mm|axis_length|sphericity|feret").to_numpy(float))
    np.testing.assert_allclose(rows[0], rows[1], rtol=2e-3)


def test_nothing_to_measure_is_no_error_and_a_series_in_time_is_one(tmp_path, solid):
    empty = nifti(tmp_path / "empty.nii.gz", np.zeros_like(solid))
    done = measure(empty, reference=empty, out=tmp_path / "out", page=False, kind="lesions")
    assert done.rows["structures"] == 0
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 5, 5, 3), np.uint8), np.eye(4)), tmp_path / "four.nii.gz")
    with pytest.raises(DataError, match="a fourth axis of length 3"):
        measure(tmp_path / "four.nii.gz", out=tmp_path / "four", page=False)


def test_a_colour_is_the_same_label_in_every_file(tmp_path):
    """The truth has no green, so counting colours would call red 2 here and 1 there."""
    mask = np.zeros((20, 20, 3), np.uint8)
    mask[2:8, 2:8] = 255, 0, 0
    truth = mask.copy()
    mask[12:15, 12:15] = 0, 255, 0
    for name, values in (("mask", mask), ("truth", truth)):
        Raster.fromarray(values).save(tmp_path / f"{name}.png")
    done = measure(
        tmp_path / "mask.png", reference=tmp_path / "truth.png", out=tmp_path / "out", page=False, names="#ff0000=vein"
    )
    dice = done.table("reference").set_index("name")["dice"]
    assert dice.to_dict() == {"vein": 1.0, "#00ff00": 0.0}


def test_the_indices_of_a_palette_are_the_classes(tmp_path):
    """Masks of Pascal VOC: 15 is a person, whatever its colour."""
    values = np.zeros((20, 20), np.uint8)
    values[2:8, 2:8], values[12:15, 12:15] = 1, 15
    picture = Raster.fromarray(values, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, *[9, 9, 9] * 13, 192, 128, 128])
    picture.save(tmp_path / "voc.png")
    loaded = load(MeasureCase("voc", str(tmp_path / "voc.png")), names={15: "person"})
    np.testing.assert_array_equal(loaded.labels, values)
    assert loaded.names == {1: "#800000", 15: "person"}
