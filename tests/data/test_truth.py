"""The truth of a case lies on the grid of its image, whatever it is stored as, or is refused with one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff
from PIL import Image as Pillow
from skimage.draw import polygon2mask

from vesalius.core.errors import DataError, UsageError, VesaliusError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.data.discover import discover
from vesalius.data.lattice import placement
from vesalius.data.manifest import Manifest
from vesalius.data.mask_values import MaskValues, recoded
from vesalius.data.truth import label_counts, open_case_image, open_truth, region_planes, truth_paths

THREE = Labels(("background", "liver", "tumour"))
VOLUME = np.arange(4 * 5 * 6).reshape(4, 5, 6) % 3  # (Z, Y, X); no flip or turn leaves it as it is


def save_nifti(path: Path, stored, affine, dtype=np.uint8) -> Path:
    """`stored` has axes (i, j, k) as nibabel keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(stored).astype(dtype), affine), path)
    return path


def volume_image(root: Path, affine, shape=(4, 5, 6)) -> None:
    save_nifti(root / "image.nii.gz", np.zeros(shape[::-1]), affine, np.int16)


def one_case(root: Path, mask: str, labels: Labels, *, image: str = "image.nii.gz", values: str = "") -> Manifest:
    frame = pd.DataFrame(
        {
            "case_id": "c",
            "patient_id": "p",
            "path": [image, mask],
            "role": ["image", "mask"],
            "mask_values": ["", values],
        }
    )
    return Manifest(root, frame, "made", "segment", labels)


def truth(manifest: Manifest):
    case = str(manifest.cases["case_id"].iloc[0])
    return open_truth(manifest, case, open_case_image(manifest, case))


AFFINE = np.array([[-0.8, 0, 0, 30.0], [0, 0.7, 0, -20], [0, 0, 2.5, 7], [0, 0, 0, 1]])

# Geometry -----------------------------------------------------------------------------------------------------------


@st.composite
def turns(draw):
    """A permutation of three axes, flips, spacings and a rotation of the scanner."""
    axes = draw(st.permutations(range(3)))
    flips = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    steps = draw(st.tuples(*[st.floats(0.3, 5.0)] * 3))
    angle = draw(st.floats(-0.6, 0.6))
    return axes, flips, steps, angle


@settings(max_examples=60)
@given(turns())
def test_axes_in_any_order_and_direction_come_onto_the_image(tmp_path_factory, turn):
    axes, flips, steps, angle = turn
    root = tmp_path_factory.mktemp("turn")
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag(steps)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation, (11.0, -42.5, 3.0)
    stored = VOLUME.transpose(2, 1, 0)
    volume_image(root, affine)
    # nibabel turns the array and the affine; neither is our code.
    orientation = np.array(list(zip(axes, flips, strict=True)), dtype=float)
    turned = apply_orientation(stored, orientation)
    save_nifti(root / "mask.nii.gz", turned, affine @ inv_ornt_aff(orientation, stored.shape))
    found = truth(one_case(root, "mask.nii.gz", THREE))
    assert found.dtype == np.uint8
    assert np.array_equal(found, VOLUME)


@pytest.mark.parametrize(("shift", "fine"), [(0.0, True), (0.02, True), (0.2, False), (1.0, False), (-2.5, False)])
def test_noise_of_an_affine_is_tolerated_and_another_place_is_not(tmp_path, shift, fine):
    volume_image(tmp_path, AFFINE)
    moved = AFFINE.copy()
    moved[2, 3] += shift
    save_nifti(tmp_path / "mask.nii.gz", VOLUME.transpose(2, 1, 0), moved)
    manifest = one_case(tmp_path, "mask.nii.gz", THREE)
    if fine:
        assert np.array_equal(truth(manifest), VOLUME)
        return
    with pytest.raises(DataError, match=r"mask.nii.gz: another place.*expected that of the image .*image.nii.gz"):
        truth(manifest)


def test_small_voxels_have_a_small_tolerance(tmp_path):
    fine = AFFINE.copy()
    fine[:3, :3] /= 50  # steps of 0.014 mm: 0.02 mm is more than one of them
    volume_image(tmp_path, fine)
    fine[0, 3] += 0.014
    save_nifti(tmp_path / "mask.nii.gz", VOLUME.transpose(2, 1, 0), fine)
    with pytest.raises(DataError, match="another place"):
        truth(one_case(tmp_path, "mask.nii.gz", THREE))


def test_rotated_stretched_and_cut_masks_are_refused(tmp_path):
    volume_image(tmp_path, AFFINE)
    stretched = AFFINE @ np.diag([1, 1, 1.01, 1])
    turned = AFFINE.copy()
    turned[:3, :3] = np.array([[0.98, -0.2, 0], [0.2, 0.98, 0], [0, 0, 1]]) @ AFFINE[:3, :3]
    for name, affine in (("stretched", stretched), ("turned", turned)):
        save_nifti(tmp_path / f"{name}.nii.gz", VOLUME.transpose(2, 1, 0), affine)
        with pytest.raises(DataError, match=f"{name}.nii.gz: another place, direction or spacing"):
            truth(one_case(tmp_path, f"{name}.nii.gz", THREE))
    save_nifti(tmp_path / "cut.nii.gz", VOLUME.transpose(2, 1, 0)[:, :, 1:], AFFINE)
    with pytest.raises(DataError, match=r"cut.nii.gz: shape 3x5x6; expected that of the image .*, 4x5x6"):
        truth(one_case(tmp_path, "cut.nii.gz", THREE))
    save_nifti(tmp_path / "slice.nii.gz", VOLUME.transpose(2, 1, 0)[:, :, :1], AFFINE)
    with pytest.raises(DataError, match=r"slice.nii.gz: one slice 1x5x6"):
        truth(one_case(tmp_path, "slice.nii.gz", THREE))


def test_a_truth_without_geometry_is_taken_by_its_shape(tmp_path):
    volume_image(tmp_path, AFFINE)
    tifffile.imwrite(tmp_path / "mask.tif", VOLUME.astype(np.uint8), photometric="minisblack", metadata=None)
    assert np.array_equal(truth(one_case(tmp_path, "mask.tif", THREE)), VOLUME)


def test_a_slice_with_one_axis_less_fits(tmp_path):
    volume_image(tmp_path, AFFINE, (1, 5, 6))
    Pillow.fromarray(VOLUME[1].astype(np.uint8)).save(tmp_path / "mask.png")
    found = truth(one_case(tmp_path, "mask.png", THREE))
    assert found.shape == (1, 5, 6)
    assert np.array_equal(found[0], VOLUME[1])


@given(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4), st.booleans())
def test_a_block_of_a_lattice_is_put_in_its_place(z, y, x, flip):
    other = Grid((5, 6, 7), affine=np.array([[0, 0, 0.5, 3.0], [0, 0.5, 0, 4], [2, 0, 0, 5], [0, 0, 0, 1.0]]))
    block = np.random.default_rng(0).integers(1, 9, (3, 3, 3))
    affine = other.affine.copy()
    affine[:3, 3] = other.to_patient((z + (2 if flip else 0), y, x))
    if flip:
        affine[:3, 0] *= -1
    expected = np.zeros(other.shape, dtype=int)
    expected[z : z + 3, y : y + 3, x : x + 3] = block[::-1] if flip else block
    place = placement(Grid((3, 3, 3), affine=affine), other, inside=True)
    assert np.array_equal(place.apply(block, other.shape), expected)
    assert placement(Grid((3, 3, 3), affine=affine), other) == "shape"
    affine[:3, 3] -= other.affine[:3, 2] * (x + 1)
    assert placement(Grid((3, 3, 3), affine=affine), other, inside=True) == "place"


# Values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        (lambda v: v + 1, np.uint8, r"the value 3; expected those of the labels, 0 background, 1 liver, 2 tumour"),
        (lambda v: v - 1, np.int16, r"the value -1; expected labels of 0 and more"),
        (lambda v: v * 0.5, np.float32, r"fractions, such as 0.5; expected whole label values"),
        (lambda v: np.where(v == 2, np.nan, v), np.float32, r"40 values that are NaN or infinite"),
        (lambda v: np.stack([v, v], -1), np.uint8, r"a fourth axis of length 2"),
    ],
)
def test_what_is_no_label_map_is_refused_with_its_name(tmp_path, change, dtype, message):
    volume_image(tmp_path, AFFINE)
    save_nifti(tmp_path / "mask.nii.gz", change(VOLUME.transpose(2, 1, 0)), AFFINE, dtype)
    with pytest.raises(VesaliusError, match=rf"mask.nii.gz: .*{message}") as caught:
        truth(one_case(tmp_path, "mask.nii.gz", THREE))
    assert "\n" not in str(caught.value)


def test_an_empty_or_missing_file_is_named(tmp_path):
    volume_image(tmp_path, AFFINE)
    (tmp_path / "mask.nii.gz").write_bytes(b"")
    with pytest.raises(VesaliusError, match=r"mask\.nii\.gz"):
        truth(one_case(tmp_path, "mask.nii.gz", THREE))
    with pytest.raises(UsageError, match=r"gone\.nii\.gz: there is no such file"):
        truth(one_case(tmp_path, "gone.nii.gz", THREE))
    with pytest.raises(UsageError, match="case 'x' does not exist"):
        open_truth(one_case(tmp_path, "mask.nii.gz", THREE), "x", Image(Grid((2, 2)), np.zeros((1, 2, 2))))


def test_floats_of_whole_numbers_and_the_ignored_value_pass(tmp_path):
    volume_image(tmp_path, AFFINE)
    save_nifti(tmp_path / "mask.nii.gz", VOLUME.transpose(2, 1, 0) + 1e-6, AFFINE, np.float32)
    labels = Labels(("background", "liver"), ignore=2)
    found = truth(one_case(tmp_path, "mask.nii.gz", labels))
    assert np.array_equal(found, VOLUME)
    assert label_counts(found, labels) == {"liver": int((VOLUME == 1).sum())}


def test_regions_join_values(tmp_path):
    volume_image(tmp_path, AFFINE)
    stored = np.array([0, 1, 4])[VOLUME]
    save_nifti(tmp_path / "mask.nii.gz", stored.transpose(2, 1, 0), AFFINE)
    labels = Labels(("whole", "enhancing"), multilabel=True, regions=((1, 4), (4,)))
    found = truth(one_case(tmp_path, "mask.nii.gz", labels))
    assert np.array_equal(found, stored)
    planes = region_planes(found, labels)
    assert np.array_equal(planes, np.stack([VOLUME > 0, VOLUME == 2]))
    assert label_counts(found, labels) == {"whole": int((VOLUME > 0).sum()), "enhancing": int((VOLUME == 2).sum())}
    save_nifti(tmp_path / "mask.nii.gz", VOLUME.transpose(2, 1, 0), AFFINE)
    with pytest.raises(DataError, match=r"the value 2; expected those of the labels, \[1, 4\] whole"):
        truth(one_case(tmp_path, "mask.nii.gz", labels))


def test_numbered_objects_keep_their_numbers(tmp_path):
    numbers = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000
    Pillow.fromarray(numbers).save(tmp_path / "mask.png")
    Pillow.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "image.png")
    labels = Labels(("background", "cell"), instances=True)
    found = truth(one_case(tmp_path, "mask.png", labels, image="image.png"))
    assert found.dtype == np.uint16
    assert np.array_equal(found, numbers)
    assert label_counts(found, labels) == {"cell": 29}
    tifffile.imwrite(tmp_path / "mask.tif", numbers.astype(np.uint32) * 100, photometric="minisblack", metadata=None)
    found = truth(one_case(tmp_path, "mask.tif", labels, image="image.png"))
    assert found.dtype == np.int32
    assert found.max() == 29 * 200_000


FLAT = VOLUME[0]


def png(path: Path, mode: str) -> Path:
    """FLAT as a PNG of some kind, by Pillow."""
    if mode == "palette":
        picture = Pillow.fromarray(FLAT.astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
        picture.save(path)
    elif mode == "palette of 2 bits":
        picture = Pillow.fromarray(FLAT.astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
        picture.save(path, bits=2)
    elif mode == "16 bit":
        Pillow.fromarray(FLAT.astype(np.uint16)).save(path)
    elif mode == "gray as RGB":
        Pillow.fromarray(np.repeat(FLAT[..., None], 3, axis=2).astype(np.uint8)).save(path)
    else:
        Pillow.fromarray(FLAT.astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("mode", ["8 bit", "16 bit", "palette", "palette of 2 bits", "gray as RGB"])
def test_pictures_hold_label_values(tmp_path, mode):
    Pillow.fromarray(np.zeros(FLAT.shape, np.uint8)).save(tmp_path / "image.png")
    png(tmp_path / "mask.png", mode)
    assert np.array_equal(truth(one_case(tmp_path, "mask.png", THREE, image="image.png")), FLAT)


def test_a_picture_of_one_bit_is_two_classes(tmp_path):
    Pillow.fromarray(np.zeros(FLAT.shape, np.uint8)).save(tmp_path / "image.png")
    Pillow.fromarray(FLAT > 0).save(tmp_path / "mask.png")
    two = Labels(("background", "foreground"))
    assert np.array_equal(truth(one_case(tmp_path, "mask.png", two, image="image.png")), FLAT > 0)


def test_colours_mean_what_was_settled(tmp_path):
    shades = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    Pillow.fromarray(shades[FLAT]).save(tmp_path / "mask.png")
    Pillow.fromarray(np.zeros(FLAT.shape, np.uint8)).save(tmp_path / "image.png")
    manifest = one_case(tmp_path, "mask.png", THREE, image="image.png", values="#000000=0 #ff0000=1 #0000ff=2")
    assert np.array_equal(truth(manifest), FLAT)
    with pytest.raises(DataError, match=r"mask.png: the value #0000ff; expected those found in the other masks"):
        truth(one_case(tmp_path, "mask.png", THREE, image="image.png", values="#000000=0 #ff0000=1"))
    with pytest.raises(DataError, match=r"mask.png: a mask in colour"):
        truth(one_case(tmp_path, "mask.png", THREE, image="image.png"))


@given(st.dictionaries(st.integers(0, 300), st.integers(0, 300), min_size=1), st.data())
def test_values_are_replaced_one_by_one(meaning, data):
    assert MaskValues.parse(str(MaskValues(meaning))) == MaskValues(meaning)
    values = np.array(data.draw(st.lists(st.integers(0, 300), min_size=1)))
    found, unknown = recoded(values, meaning)
    assert found.tolist() == [meaning.get(int(value), 0) for value in values]
    assert unknown == sorted(set(values.tolist()) - set(meaning))


# Several files ------------------------------------------------------------------------------------------------------


def structures(root: Path, labels: Labels, shown) -> Manifest:
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(root / "image.png")
    rows = [("image.png", "image", "")]
    for number, (name, index, pixels) in enumerate(shown):
        Pillow.fromarray(pixels.astype(np.uint8) * 255).save(root / f"{name}.png")
        rows.append((f"{name}.png", f"mask_{number}" if number else "mask", f"*={index}"))
    frame = pd.DataFrame(rows, columns=["path", "role", "mask_values"]).assign(case_id="c", patient_id="p")
    return Manifest(root, frame, "made", "segment", labels)


def test_files_of_single_structures(tmp_path):
    left, right = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    apart = structures(tmp_path, THREE, [("liver", 1, left), ("tumour", 2, right)])
    assert truth_paths(apart) == {"c": ("liver.png", "tumour.png")}
    assert np.array_equal(truth(apart), np.where(left, 1, 2))
    right[:, 1:] = True
    with pytest.raises(DataError, match=r"tumour.png: 'tumour' in 4 voxels that show another structure"):
        truth(structures(tmp_path, THREE, [("liver", 1, left), ("tumour", 2, right)]))
    free = Labels(("liver", "tumour"), multilabel=True)
    found = truth(structures(tmp_path, free, [("liver", 0, left), ("tumour", 1, right)]))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.stack([left, right]))
    assert label_counts(found, free) == {"liver": 8, "tumour": 12}


def test_channels_are_stacked_on_the_grid_of_the_first(tmp_path):
    values = np.random.default_rng(3).integers(0, 99, (6, 5, 4))
    save_nifti(tmp_path / "a.nii.gz", values, AFFINE, np.int16)
    mirrored = AFFINE @ inv_ornt_aff([[0, -1], [1, 1], [2, 1]], values.shape)
    save_nifti(tmp_path / "b.nii.gz", (values + 100)[::-1], mirrored, np.int16)
    frame = pd.DataFrame({"case_id": "c", "patient_id": "p", "path": ["b.nii.gz", "a.nii.gz"],
                          "role": ["image_1", "image"]})  # fmt: skip
    image = open_case_image(Manifest(tmp_path, frame, "made", "segment", THREE), "c")
    assert np.array_equal(image.pixels, np.stack([values.T, values.T + 100]))


# Annotations --------------------------------------------------------------------------------------------------------


def packed(counts) -> str:
    """Run lengths as COCO packs them: differences from the fourth on, five bits a letter with a mark for more."""
    out = ""
    for at, count in enumerate(counts):
        value = count - counts[at - 2] if at > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = not (value == -1 if bits & 16 else value == 0)
            out += chr((bits | (32 if more else 0)) + 48)
            if not more:
                break
    return out


def coco(root: Path, segmentations, size=(20, 30)) -> Manifest:
    Pillow.fromarray(np.zeros(size, np.uint8)).save(root / "a.png")
    entries = [
        {"id": at, "image_id": 7, "category_id": category, "bbox": [0, 0, 5, 5], "segmentation": given}
        for at, (category, given) in enumerate(segmentations)
    ]
    data = {
        "images": [{"id": 7, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 5, "name": "nucleus"}],
        "annotations": entries,
    }
    (root / "coco.json").write_text(json.dumps(data))
    return discover(root, task="segment")


def test_coco_run_lengths_and_polygons(tmp_path):
    shown = np.random.default_rng(5).random((20, 30)) < 0.4
    column = shown.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [1 - column[-1]]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    for given_counts in (counts, packed(counts)):
        manifest = coco(tmp_path, [(5, {"size": [20, 30], "counts": given_counts})])
        assert manifest.labels.names == ("background", "cell", "nucleus")
        assert np.array_equal(truth(manifest), shown * 2)
    manifest = coco(tmp_path, [(3, [[4, 2, 14, 2, 14, 9, 4, 9]]), (5, [[10, 5, 20, 5, 20, 15, 10, 15]])])
    found = truth(manifest)
    assert np.array_equal(found[2:5, 4:14], np.ones((3, 10)))  # pixels whose centres lie in x 4..14, y 2..5
    assert label_counts(found, manifest.labels) == {"cell": 70 - 16, "nucleus": 100}
    with pytest.raises(DataError, match="annotation 0 with a broken segmentation"):
        truth(coco(tmp_path, [(3, {"size": [20, 30], "counts": [5, 5]})]))


# Real data ----------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_hippocampus_is_what_nibabel_reads(real_data):
    manifest = discover(real_data / "hippocampus")
    for case in manifest.cases["case_id"][:6]:
        found = open_truth(manifest, case, open_case_image(manifest, case))
        stored = nib.load(real_data / "hippocampus" / truth_paths(manifest)[case][0])
        assert np.array_equal(found, np.asarray(stored.dataobj).T)
        assert set(np.unique(found)) == {0, 1, 2}


@pytest.mark.realdata
def test_nuclei_are_numbered_objects(real_data):
    manifest = discover(real_data / "nuclei")
    assert manifest.labels.instances
    for case in manifest.cases["case_id"][:10]:
        found = open_truth(manifest, case, open_case_image(manifest, case))
        with Pillow.open(real_data / "nuclei" / truth_paths(manifest)[case][0]) as picture:
            assert np.array_equal(found, np.asarray(picture))


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["23x38x3", "24x38x3"])
def test_segmentation_objects_lie_where_their_frames_say(real_data, name):
    folder = real_data / "dicom" / "dcmqi" / "segmentations" / name
    manifest = discover(folder)
    assert (manifest.task, manifest.labels.names) == ("segment", ("background", "Liver"))
    case = manifest.cases["case_id"].iloc[0]
    found = open_truth(manifest, case, open_case_image(manifest, case))
    stored = pydicom.dcmread(folder / "seg" / "label.seg")
    images = [pydicom.dcmread(path) for path in sorted((folder / "image").iterdir())]
    frames = stored.pixel_array
    groups = stored.PerFrameFunctionalGroupsSequence
    for pixels, group in zip(frames, groups, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        owner = min(images, key=lambda one: np.linalg.norm(np.array(one.ImagePositionPatient, float) - position))
        slices = sorted(images, key=lambda one: float(one.ImagePositionPatient[2]))
        plane = slices.index(owner)
        options = [found[plane], found[len(images) - 1 - plane]]
        assert any(np.array_equal(option, pixels) for option in options)
    assert found.sum() == frames.sum() > 0


@pytest.mark.realdata
def test_structure_sets_become_the_pixels_that_their_rings_enclose(tmp_path, real_data):
    for name in ("mock_data-ct_1.dcm", "mock_data-ct_2.dcm", "mock_data-rt.dcm"):
        shutil.copy(real_data / "dicom" / "rtstruct" / name, tmp_path)
    manifest = discover(tmp_path)
    assert manifest.task == "segment"
    case = manifest.cases["case_id"].iloc[0]
    image = open_case_image(manifest, case)
    planes = region_planes(open_truth(manifest, case, image), manifest.labels)
    stored = pydicom.dcmread(tmp_path / "mock_data-rt.dcm")
    names = {roi.ROINumber: roi.ROIName for roi in stored.StructureSetROISequence}
    looked = 0
    for roi in stored.ROIContourSequence:
        expected = np.zeros(image.grid.shape, dtype=bool)
        edge = 0.0
        for ring in roi.get("ContourSequence", ()):
            points = image.grid.to_index(np.array(ring.ContourData, float).reshape(-1, 3))
            expected[round(points[0, 0])] ^= polygon2mask(image.grid.shape[1:], points[:, 1:])
            edge += np.abs(np.diff(points[:, 1:], axis=0)).sum()
        if not expected.any():
            continue
        found = planes[manifest.labels.structures.index(names[roi.ReferencedROINumber])].astype(bool)
        # skimage counts centres on the border by another rule.
        assert np.count_nonzero(found ^ expected) <= 0.25 * edge
        assert found.sum() == pytest.approx(expected.sum(), rel=0.03)
        looked += 1
    assert looked
