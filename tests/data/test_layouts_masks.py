"""Layouts of masks: what their names, values and descriptions say becomes labels, and every assumption is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from data_trees import said, touch
from PIL import Image as Pillow

from vesalius.core.errors import DataError, UsageError
from vesalius.core.labels import Labels
from vesalius.data.discover import discover
from vesalius.data.manifest import Manifest
from vesalius.data.truth import label_counts, open_case_image, open_truth, region_planes
from vesalius.phantoms.cohort import Cohort
from vesalius.phantoms.layouts import write_tree
from vesalius.phantoms.layouts_masks import MASK_LAYOUTS
from vesalius.phantoms.registry import make

CT = {"shape": (8, 32, 32), "spacing_mm": (28.0, 11.0, 11.0)}
SMALL = {"chest": {"size": 64}, "smear": {"size": 96}, "brain": {"shape": (22, 26, 22), "spacing_mm": (8.0, 8.0, 8.0)}}
RNG = np.random.default_rng(11)


def write(kind: str, layout: str, folder: Path, cases: int = 3, **how) -> Manifest:
    MASK_LAYOUTS[layout](Cohort(kind, cases, 1, None, SMALL.get(kind, {})), folder, **how)
    return discover(folder)


def masks_made(kind: str, cases: int = 3):
    return [make(kind, seed=1, index=index, **SMALL.get(kind, {})) for index in range(cases)]


def opened(manifest: Manifest):
    for case in manifest.cases["case_id"]:
        image = open_case_image(manifest, case)
        yield image, open_truth(manifest, case, image)


def gray(path: Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.asarray(values)).save(path)


def nifti(path: Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(values, dtype=np.uint8), np.eye(4)), path)


# What phantoms write ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("year", "enhancing"), [(2020, 4), (2023, 3)])
def test_brats_regions_follow_the_values_in_use(tmp_path, year, enhancing):
    manifest = write("brain", "brats", tmp_path, 2, year=year)
    labels = manifest.labels
    assert (manifest.layout, manifest.task, labels.multilabel) == ("brats", "segment", True)
    assert labels.names == ("whole tumour", "tumour core", "enhancing tumour")
    assert labels.regions == ((1, 2, enhancing), (1, enhancing), (enhancing,))
    assert manifest.frame["role"].tolist()[:5] == ["image", "image_1", "image_2", "image_3", "mask"]
    for (image, truth), phantom in zip(opened(manifest), masks_made("brain", 2), strict=True):
        assert image.pixels.shape == (4, *phantom.mask.shape)
        planes = region_planes(truth, labels)
        low = np.minimum(phantom.mask, 3)
        assert np.array_equal(planes, np.stack([low > 0, np.isin(low, (1, 3)), low == 3]))
        assert len({channel.tobytes() for channel in image.pixels}) == 4
    assert "whole tumour joins" in said(manifest, "note")
    if year == 2023:
        assert manifest.cases["patient_id"].tolist() == ["BraTS-GLI-00000", "BraTS-GLI-00001"]


def test_brats_oddities(tmp_path):
    for case, values in (("A", (0, 1, 2, 4)), ("B", (0, 3, 3, 4))):
        for name in ("flair", "t1", "t1ce", "t2"):
            nifti(tmp_path / case / f"{case}_{name}.nii.gz", np.zeros((2, 2, 1)))
        nifti(tmp_path / case / f"{case}_seg.nii.gz", np.array(values).reshape(2, 2, 1))
    for name in ("flair", "t1", "t1ce", "t2"):
        nifti(tmp_path / "C" / f"C_{name}.nii", np.zeros((2, 2, 1)))
    nifti(tmp_path / "D" / "D_flair.nii", np.zeros((2, 2, 1)))
    manifest = discover(tmp_path)
    assert manifest.labels.regions == ((1, 2, 3, 4), (1, 3, 4), (4,))  # before 2015
    assert sorted(manifest.cases["case_id"]) == ["A", "B"]
    assert "1 cases have no mask, first C/C_flair.nii" in said(manifest)
    assert "1 cases lack a modality, first D/D_flair.nii" in said(manifest, "warning")
    nifti(tmp_path / "B" / "B_seg.nii.gz", np.full((2, 2, 1), 7))
    with pytest.raises(DataError, match=r"the masks hold the values \[0, 1, 2, 4, 7\]; expected those of BraTS"):
        discover(tmp_path)


def test_four_axes_of_decathlon_are_channels(tmp_path):
    manifest = write("brain", "decathlon-channels", tmp_path, 2)
    assert manifest.labels.names == make("brain", seed=1, index=0, **SMALL["brain"]).structures
    for (image, truth), phantom in zip(opened(manifest), masks_made("brain", 2), strict=True):
        assert image.pixels.shape == (4, *phantom.mask.shape)
        assert np.array_equal(image.pixels[0], phantom.case.image().pixels[0])
        assert np.array_equal(truth, phantom.mask)
    assert "the fourth axis of the images holds the channels contrast 0, contrast 1" in said(manifest)


def test_pages_of_stacks_are_cases(tmp_path):
    manifest = write("chest", "page-stacks", tmp_path)
    assert (manifest.layout, len(manifest)) == ("page-stacks", 3)
    for (image, truth), phantom in zip(opened(manifest), masks_made("chest"), strict=True):
        assert np.array_equal(image.pixels, phantom.case.image().pixels)
        assert np.array_equal(truth, phantom.mask > 0)
    assert "neighbouring pages of one stack" in said(manifest, "warning")
    assert "values 0 and 255" in said(manifest, "note")
    with pytest.raises(UsageError, match="no such page; the file holds 3"):
        open_case_image(manifest.with_frame(manifest.frame.assign(path="train-volume.tif#9")), "train#0")


@pytest.mark.parametrize("nested", ["case", "structure", "name"])
def test_one_file_per_structure(tmp_path, nested):
    manifest = write("chest", "structure-masks", tmp_path, nested=nested)
    assert manifest.labels.names == ("background", "heart", "left_lung", "right_lung")
    for (_, truth), phantom in zip(opened(manifest), masks_made("chest"), strict=True):
        order = [0, 3, 2, 1]  # right lung, left lung, heart in the phantom
        assert np.array_equal(truth, np.array(order)[phantom.mask])


def test_folders_of_cases_with_a_file_per_structure(tmp_path):
    manifest = write("brain", "structure-masks", tmp_path, 2, nested="folder")
    assert manifest.cases["case_id"].tolist() == ["brain00000", "brain00001"]
    for (_, truth), phantom in zip(opened(manifest), masks_made("brain", 2), strict=True):
        counts = label_counts(truth, manifest.labels)
        for value, name in enumerate(phantom.structures[1:], 1):
            assert counts[name.replace(" ", "_")] == int((phantom.mask == value).sum())


def test_colours_named_beside_the_masks(tmp_path):
    manifest = write("chest", "coloured-masks", tmp_path)
    assert manifest.labels.names == ("background", "right lung", "left lung", "heart")
    for (_, truth), phantom in zip(opened(manifest), masks_made("chest"), strict=True):
        assert np.array_equal(truth, phantom.mask)
    (tmp_path / "labels.json").unlink()
    unnamed = discover(tmp_path)
    assert len(unnamed.labels) == 4
    assert all(name.startswith("#") for name in unnamed.labels.names[1:])
    assert "each of 3 colours in the masks is a class" in said(unnamed)


def test_outlines_beside_their_series(tmp_path):
    cohort = Cohort("ct", 2, 1, None, CT)
    MASK_LAYOUTS["dicom-outlines"](cohort, tmp_path)
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, manifest.patient_source) == ("dicom", "segment", "dicom")
    for (_, truth), index in zip(opened(manifest), range(2), strict=True):
        phantom = make("ct", seed=1, index=index, **CT)
        planes = region_planes(truth, manifest.labels)
        for name, plane in zip(manifest.labels.structures, planes, strict=True):
            assert np.array_equal(plane, phantom.mask == phantom.structures.index(name))


def test_numbered_objects_of_a_phantom(tmp_path):
    manifest = discover(write_tree("smear", tmp_path / "t", layout="paired-folders", cases=6, seed=1, instances=True,
                                   size=256))  # fmt: skip
    assert (manifest.labels.names, manifest.labels.instances) == (("background", "object"), True)
    for (_, truth), index in zip(opened(manifest), range(6), strict=True):
        assert np.array_equal(truth, make("smear", seed=1, index=index, size=256).layers["instances"])


# DICOM segmentation objects -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_segmentation_objects_of_a_tree(tmp_path, overlap):
    from vesalius.io.dicom_seg_out import write_dicom_seg

    write_tree("ct", tmp_path / "t", layout="dicom", cases=2, seed=1, **CT)
    names = ("heart", "bone") if not overlap else ("heart", "all")
    planes = {}
    for index in range(2):
        phantom = make("ct", seed=1, index=index, **CT)
        heart = phantom.mask == phantom.structures.index("heart")
        other = phantom.mask == phantom.structures.index("bone") if not overlap else phantom.mask > 0
        order = (0, 1) if index == 0 else (1, 0)  # another number for the same name in the second patient
        layers = np.stack([heart, other])[list(order)].astype(np.uint8)
        folder = next((tmp_path / "t").rglob(phantom.case.case_id))
        labels = Labels(tuple(names[at] for at in order), multilabel=True)
        write_dicom_seg(tmp_path / "t" / f"{index}.dcm", layers, phantom.case.image().grid, labels,
                        source=folder, algorithm="test", version="1")  # fmt: skip
        planes[phantom.case.patient_id] = {names[0]: heart, names[1]: other}
    manifest = discover(tmp_path / "t", task="segment")
    assert manifest.labels.multilabel is overlap
    assert set(manifest.labels.structures) == set(names)
    for (_, truth), patient in zip(opened(manifest), manifest.cases["patient_id"], strict=True):
        found = dict(zip(manifest.labels.structures, region_planes(truth, manifest.labels), strict=True))
        for name, plane in planes[patient].items():
            assert np.array_equal(found[name], plane), (patient, name)


def test_few_truths_do_not_make_a_tree_a_segmentation(tmp_path):
    MASK_LAYOUTS["dicom-outlines"](Cohort("ct", 4, 1, None, CT), tmp_path)
    for index in (1, 2, 3):
        (tmp_path / f"ct{index:05d}" / "RTSTRUCT.dcm").unlink()
    assert discover(tmp_path).task == "unlabelled"
    asked = discover(tmp_path, task="segment")
    assert len(asked) == 1
    assert "3 series have no truth" in said(asked)


# Descriptions -------------------------------------------------------------------------------------------------------


def described(root: Path, labels) -> Manifest:
    touch(root, *(f"{folder}/c_{index}.nii.gz" for folder in ("imagesTr", "labelsTr") for index in range(2)))
    pairs = [{"image": f"./imagesTr/c_{i}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"} for i in range(2)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "training": pairs, "modality": {"0": "CT"}}))
    return discover(root)


def test_regions_and_the_ignored_label_of_nnunet(tmp_path):
    for case in ("a", "b"):
        nifti(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", np.zeros((2, 2, 2)))
        nifti(tmp_path / "labelsTr" / f"{case}.nii.gz", np.array([0, 1, 2, 3, 4, 0, 1, 2]).reshape(2, 2, 2))
    data = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3],
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    manifest = discover(tmp_path)
    labels = manifest.labels
    assert (labels.names, labels.regions, labels.ignore) == (
        ("whole", "core", "enhancing"),
        ((1, 2, 3), (2, 3), (3,)),
        4,
    )
    for _, truth in opened(manifest):
        assert label_counts(truth, labels) == {"whole": 5, "core": 3, "enhancing": 1}
        assert (truth == 4).sum() == 1
    data["labels"] = {"background": 0, "tumour": 1, "ignore": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    manifest = discover(tmp_path)
    assert (manifest.labels.names, manifest.labels.ignore) == (("background", "tumour"), 2)
    assert "voxels of the value 2 are ignored" in said(manifest)
    with pytest.raises(DataError, match=r"labelsTr/a.nii.gz: the values 3, 4; expected .*, 2 ignored"):
        list(opened(manifest))


def test_values_that_are_far_apart_are_counted_through(tmp_path):
    manifest = described(tmp_path, {"0": "background", "255": "tumour"})
    assert manifest.labels.names == ("background", "tumour")
    assert manifest.frame["mask_values"].tolist() == ["", "0=0 255=1"] * 2
    assert "are counted as classes 0 to 1" in said(manifest)
    kept = Manifest.from_parquet(manifest.to_parquet(tmp_path / "kept.parquet"))
    assert kept.content_hash() == manifest.content_hash()
    manifest = described(tmp_path, {"background": 0, "ignore": 1, "tumour": 2})
    assert (manifest.labels.names, manifest.labels.ignore) == (("background", "tumour"), 2)
    assert manifest.frame["mask_values"].iloc[1] == "0=0 2=1 1=2"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "a": 1, "b": 1}, "gives one value two names"),
        ({"background": 0, "all": [0, 1]}, "joins the value 0"),
        ({"background": 0, "a": -1}, "maps 'a' to -1"),
        ({"background": 0, "ignore": [1, 2], "a": 3}, "maps 'ignore' to"),
        ({}, "expected for example"),
    ],
)
def test_descriptions_that_contradict_themselves(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        described(tmp_path, labels)


# Files whose values nobody explains ---------------------------------------------------------------------------------


def paired(root: Path, masks, suffix=".png") -> Manifest:
    for index, values in enumerate(map(np.asarray, masks)):
        if suffix == ".nii.gz":
            nifti(root / "images" / f"{index}{suffix}", np.zeros(values.shape))
            nifti(root / "labels" / f"{index}{suffix}", values)
        else:
            gray(root / "images" / f"{index}.png", np.zeros(values.shape[:2], np.uint8))
            gray(root / "labels" / f"{index}{suffix}", values.astype(np.uint8))
    return discover(root)


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_sparse_values_become_classes(tmp_path, suffix):
    shape = (6, 6) if suffix == ".png" else (6, 6, 2)
    made = [np.array([0, 50, 100, 200])[RNG.integers(0, 4, shape)] for _ in range(3)]
    manifest = paired(tmp_path, made, suffix)
    assert manifest.labels.names == ("background", "label 50", "label 100", "label 200")
    assert "hold the values [0, 50, 100, 200], counted as classes 0 to 3" in said(manifest)
    for (_, truth), values in zip(opened(manifest), made, strict=True):
        expected = np.searchsorted([0, 50, 100, 200], values)
        assert np.array_equal(truth, expected if suffix == ".png" else expected.T)


def test_a_value_in_one_mask_of_many_is_found(tmp_path):
    made = [np.zeros((4, 4)) for _ in range(60)]
    made[41] = np.full((4, 4), 3)
    made[7] = np.full((4, 4), 1)
    assert len(paired(tmp_path, made).labels) == 4


def test_maps_of_many_organs_are_no_objects(tmp_path):
    organs = [np.unique(np.append(0, RNG.choice(np.arange(1, 105), 50, replace=False))) for _ in range(12)]
    made = [np.resize(values, (16, 16)) for values in organs]
    manifest = paired(tmp_path, made)
    assert not manifest.labels.instances
    cells = [np.minimum(np.arange(400), top).reshape(20, 20) % 200 for top in range(15, 27)]
    assert paired(tmp_path / "cells", cells).labels.instances


def test_two_values_without_zero(tmp_path):
    manifest = paired(tmp_path, [np.where(RNG.random((5, 5)) < 0.5, 1, 2) for _ in range(2)])
    assert manifest.frame["mask_values"].iloc[1] == "1=0 2=1"
    assert "the values 1 and 2, which are taken as background and foreground" in said(manifest)


def test_masks_of_lossy_compression(tmp_path):
    shown = np.zeros((64, 64), bool)
    shown[10:40, 20:50] = True
    gray(tmp_path / "images" / "a.png", np.zeros((64, 64), np.uint8))
    (tmp_path / "masks").mkdir()
    Pillow.fromarray((shown * 255).astype(np.uint8)).save(tmp_path / "masks" / "a.jpg", quality=60)
    manifest = discover(tmp_path)
    assert "JPEG" in said(manifest, "warning")
    assert np.array_equal(next(opened(manifest))[1], shown)
    Pillow.fromarray(RNG.integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "masks" / "a.jpg")
    with pytest.raises(DataError, match="masks are JPEG pictures"):
        discover(tmp_path)


def test_pictures_are_no_masks(tmp_path):
    gray(tmp_path / "images" / "a.png", np.zeros((32, 32), np.uint8))
    gray(tmp_path / "masks" / "a.png", RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    with pytest.raises(DataError, match="look like pictures"):
        discover(tmp_path)


def test_names_beside_the_masks(tmp_path):
    made = [np.array([0, 1, 7])[RNG.integers(0, 3, (6, 6))] for _ in range(2)]
    for given in (
        {"background": 0, "liver": 1, "tumour": 7},
        {"labels": {"0": "background", "1": "liver", "7": "tumour"}},
    ):
        touch(tmp_path, "labels.json", content=json.dumps(given).encode())
        manifest = paired(tmp_path, made)
        assert manifest.labels.names == ("background", "liver", "tumour")
        for (_, truth), values in zip(opened(manifest), made, strict=True):
            assert np.array_equal(truth, np.searchsorted([0, 1, 7], values))
    touch(tmp_path, "labels.json", content=b'["background", "liver"]')
    with pytest.raises(DataError, match=r"the masks hold the values 7, which have no name, first labels/0.png"):
        discover(tmp_path)
    touch(tmp_path, "labels.json", content=b'{"liver": "red"}')
    with pytest.raises(DataError, match=r"labels.json: maps 'liver' to 'red'"):
        discover(tmp_path)


def test_two_named_classes_and_255(tmp_path):
    for case in ("a", "b"):
        gray(tmp_path / "imagesTr" / f"{case}_0000.png", np.zeros((4, 4), np.uint8))
        gray(tmp_path / "labelsTr" / f"{case}.png", np.eye(4, dtype=np.uint8) * 255)
    data = {"channel_names": {"0": "xray"}, "labels": {"background": 0, "rib": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    manifest = discover(tmp_path)
    assert "the masks hold 255 where the description says 1" in said(manifest)
    assert all(np.array_equal(truth, np.eye(4)) for _, truth in opened(manifest))


def test_masks_named_by_a_table_get_a_look(tmp_path):
    for index in range(2):
        gray(tmp_path / f"i{index}.png", np.zeros((4, 4), np.uint8))
        gray(tmp_path / f"m{index}.png", np.tri(4, dtype=np.uint8) * 255)
    touch(tmp_path, "manifest.csv", content=b"path,mask\ni0.png,m0.png\ni1.png,m1.png\n")
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task) == ("manifest", "segment")
    assert all(np.array_equal(truth, np.tri(4)) for _, truth in opened(manifest))


# Files of single structures or objects ------------------------------------------------------------------------------


def test_structures_that_overlap_may_hold_together(tmp_path):
    lung, nodule = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    lung[1:7, 1:7], nodule[3:5, 3:5] = 255, 255
    for case in ("a", "b"):
        gray(tmp_path / "images" / f"{case}.png", np.zeros((8, 8), np.uint8))
        gray(tmp_path / "masks" / case / "lung.png", lung)
    gray(tmp_path / "masks" / "a" / "nodule.png", nodule)
    manifest = discover(tmp_path)
    assert (manifest.labels.names, manifest.labels.multilabel) == (("lung", "nodule"), True)
    planes = [truth for _, truth in opened(manifest)]
    assert np.array_equal(planes[0], np.stack([lung, nodule]) > 0)
    assert np.array_equal(planes[1], np.stack([lung > 0, np.zeros((8, 8))]))
    assert "1 images lack the file of a structure, first images/b.png" in said(manifest)
    assert "structures may overlap" in said(manifest)


def test_one_file_per_object(tmp_path):
    counts = {"x1": 3, "y2": 5, "z3": 4}
    for case, count in counts.items():
        gray(tmp_path / case / "images" / f"{case}.png", np.zeros((6, 6), np.uint8))
        for number in range(count):
            values = np.zeros((6, 6), np.uint8)
            values[number] = 255
            gray(tmp_path / case / "masks" / f"{case}{number:04x}ab.png", values)
    manifest = discover(tmp_path)
    assert (manifest.labels.names, manifest.labels.instances) == (("background", "object"), True)
    assert [len(np.unique(truth)) - 1 for _, truth in opened(manifest)] == [3, 5, 4]
    assert all(np.array_equal(truth[:3, 0], [1, 2, 3]) for _, truth in opened(manifest))


def test_a_mask_beside_each_image(tmp_path):
    for case in ("benign (1)", "benign (2)"):
        gray(tmp_path / "benign" / f"{case}.png", np.zeros((4, 4), np.uint8))
        gray(tmp_path / "benign" / f"{case}_mask.png", np.tri(4, dtype=np.uint8) * 255)
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, len(manifest)) == ("structure-masks", "segment", 2)
    assert all(np.array_equal(truth, np.tri(4)) for _, truth in opened(manifest))
    # A second mask of the same image shows more of the same.
    gray(tmp_path / "benign" / "benign (1)_mask_1.png", np.flipud(np.tri(4, dtype=np.uint8)) * 255)
    manifest = discover(tmp_path)
    assert manifest.labels.names == ("background", "foreground")
    assert np.array_equal(next(opened(manifest))[1], (np.tri(4) + np.flipud(np.tri(4))) > 0)


def test_folders_of_cases(tmp_path):
    for case in ("case_00000", "case_00001"):
        nifti(tmp_path / case / "imaging.nii.gz", np.zeros((3, 3, 3)))
        nifti(tmp_path / case / "segmentation.nii.gz", np.arange(27).reshape(3, 3, 3) % 3)
    manifest = discover(tmp_path)
    assert manifest.cases["case_id"].tolist() == ["case_00000", "case_00001"]
    assert manifest.labels.names == ("background", "label 1", "label 2")
    assert all(label_counts(truth, manifest.labels) == {"label 1": 9, "label 2": 9} for _, truth in opened(manifest))


def test_pictures_of_classes_stay_a_classification(tmp_path):
    for name in ("cat", "dog"):
        for index in range(3):
            gray(tmp_path / name / f"{index}.png", np.zeros((4, 4), np.uint8))
    assert discover(tmp_path).task == "classify"


def test_stacks_of_different_lengths(tmp_path):
    import tifffile

    for name, pages in (("volume", 3), ("labels", 2)):
        pixels = np.zeros((pages, 8, 8), np.uint8)
        tifffile.imwrite(tmp_path / f"train-{name}.tif", pixels, photometric="minisblack", metadata=None)
    with pytest.raises(DataError, match=r"train-labels.tif: 2 pages, but train-volume.tif has 3"):
        discover(tmp_path)


# Real data ----------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_segments_of_one_series(tmp_path, real_data):
    import pydicom

    source = real_data / "dicom" / "dcmqi" / "segmentations"
    shutil.copytree(source / "ct-3slice", tmp_path / "ct")
    for name in ("liver.dcm", "partial_overlaps.dcm"):
        shutil.copy(source / name, tmp_path)
    manifest = discover(tmp_path)
    assert (manifest.task, len(manifest), manifest.labels.multilabel) == ("segment", 1, True)
    _, truth = next(opened(manifest))
    counts = label_counts(truth, manifest.labels)
    for name in ("liver.dcm", "partial_overlaps.dcm"):
        stored = pydicom.dcmread(tmp_path / name)
        names = {segment.SegmentNumber: segment.SegmentLabel for segment in stored.SegmentSequence}
        sums: dict[str, int] = {}
        planes: dict[str, list] = {}
        for frame, group in zip(stored.pixel_array, stored.PerFrameFunctionalGroupsSequence, strict=True):
            label = names[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
            position = tuple(group.PlanePositionSequence[0].ImagePositionPatient)
            planes.setdefault(label, []).append((position, frame))
        for label, frames in planes.items():
            by_place: dict[tuple, np.ndarray] = {}
            for position, frame in frames:
                by_place[position] = np.maximum(by_place.get(position, 0), frame)
            sums[label] = int(sum(plane.sum() for plane in by_place.values()))
        for label, total in sums.items():
            assert counts[label] == total, label
