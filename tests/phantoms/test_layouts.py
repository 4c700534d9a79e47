"""Cohorts on disk: what was written is what `discover` and readers of other people find."""

import json
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from phantom_cases import SMALL
from PIL import Image as Pillow

from vesalius.core.errors import UsageError
from vesalius.data.discover import discover
from vesalius.phantoms.layouts import LAYOUTS, write_tree
from vesalius.phantoms.layouts_boxes import run_lengths
from vesalius.phantoms.registry import make

HALVES = (0.5, 0.25, 0.25)


def write(kind, folder, layout, cases=8, seed=1, **options):
    return write_tree(kind, folder, layout=layout, cases=cases, seed=seed, **{**SMALL[kind], **options})


def case(kind, index, seed=1):
    return make(kind, seed=seed, index=index, **SMALL[kind])


def warnings(manifest):
    said = [problem.text for problem in manifest.problems if problem.severity != "note"]
    return [text for text in said if "patient ids are known" not in text]


# kind, layout, options -> layout that is recognised, task, cases, cases per class, cases per split
EXPECTED = [
    ("chest", "class-folders", {}, "class-folders", "classify", 8, {"normal": 4, "opacity": 4}, {}),
    ("chest", "class-folders", {"splits": HALVES}, "class-folders", "classify", 8, {"normal": 4, "opacity": 4},
     {"train": 4, "val": 2, "test": 2}),
    ("brain", "class-folders", {}, "class-folders", "classify", 8, {"normal": 4, "enlarged ventricles": 4}, {}),
    ("chest", "csv", {"splits": HALVES}, "manifest", "classify", 8, {"normal": 4, "opacity": 4},
     {"train": 4, "val": 2, "test": 2}),
    ("smear", "medmnist", {"splits": HALVES}, "medmnist", "classify", 8, {"0": 4, "1": 4},
     {"train": 4, "val": 2, "test": 2}),
    ("solid", "medmnist", {"cases": 20}, "medmnist", "classify", 20, {"0": 10, "1": 10},
     {"train": 14, "val": 2, "test": 4}),
    ("ct", "decathlon", {"splits": HALVES}, "decathlon", "segment", 6, {}, {}),
    ("ct", "nnunet", {"splits": HALVES}, "nnunet", "segment", 8, {}, {"train": 6, "test": 2}),
    ("smear", "nnunet", {}, "nnunet", "segment", 8, {}, {}),
    ("smear", "coco", {"splits": HALVES}, "coco", "detect", 8, None, {"train": 4, "val": 2, "test": 2}),
    ("chest", "coco", {}, "coco", "detect", 8, {"opacity": 4}, {}),
    ("smear", "voc", {"splits": HALVES}, "voc", "detect", 8, None, {"train": 4, "val": 2, "test": 2}),
    ("smear", "yolo", {"splits": HALVES}, "yolo", "detect", 8, None, {"train": 4, "val": 2, "test": 2}),
    ("ct", "dicom", {}, "dicom", "classify", 8, {"no nodule": 4, "nodule": 4}, {}),
    ("ct", "dicom", {"labelled_by": "table"}, "dicom", "classify", 8, {"no nodule": 4, "nodule": 4}, {}),
    ("ct", "dicom", {"labelled_by": "table", "dicomdir": True, "cases": 4}, "dicom", "classify", 4,
     {"no nodule": 2, "nodule": 2}, {}),
    ("brain", "dicom", {"splits": HALVES, "labelled_by": "table"}, "dicom", "classify", 8,
     {"normal": 4, "enlarged ventricles": 4}, {"train": 4, "val": 2, "test": 2}),
    ("vessels", "paired-folders", {"splits": HALVES}, "paired-folders", "segment", 8, {},
     {"train": 4, "val": 2, "test": 2}),
    ("ct", "paired-folders", {}, "paired-folders", "segment", 8, {}, {}),
]  # fmt: skip


def test_every_layout_is_read_in_this_table():
    assert {row[1] for row in EXPECTED} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("kind", "layout", "options", "read_as", "task", "cases", "classes", "splits"),
    EXPECTED,
    ids=[f"{row[0]}-{row[1]}-{'-'.join(row[2]) or 'plain'}" for row in EXPECTED],
)
def test_discover_reads_what_was_written(tmp_path, kind, layout, options, read_as, task, cases, classes, splits):
    manifest = discover(write(kind, tmp_path / "tree", layout, **options))
    counts = manifest.counts()
    assert (manifest.layout, manifest.task, counts["cases"]) == (read_as, task, cases)
    assert counts["splits"] == splits
    if classes is not None:
        assert counts["classes"] == classes
    assert warnings(manifest) == []
    for path in manifest.frame["path"]:
        assert manifest.absolute(path.partition("#")[0]).exists()


def test_patients_and_covariates_of_a_table(tmp_path):
    manifest = discover(write("chest", tmp_path / "t", "csv", cases=16, images_per_patient=2, splits=HALVES))
    frame = manifest.cases
    assert frame["patient_id"].nunique() == 8
    assert (frame.groupby("patient_id")["split"].nunique() == 1).all()
    assert (frame.groupby(["split", "label"]).size() == [2, 2, 4, 4, 2, 2]).all()
    assert manifest.covariates == ["age", "sex", "site"]
    first = make("chest", seed=1, index=0, images_per_patient=2, size=64)
    assert int(frame["age"].iloc[0]) == first.case.covariates["age"]
    with Pillow.open(manifest.absolute(frame["path"].iloc[0])) as picture:
        assert np.array_equal(np.asarray(picture), first.case.image().pixels[0])


def test_file_names_of_class_folders_tell_the_patient(tmp_path):
    root = write("chest", tmp_path / "t", "class-folders", cases=16, images_per_patient=2)
    manifest = discover(root, patient_pattern=r"/(P\d+)_")
    assert manifest.cases["patient_id"].nunique() == 8


def test_dicom_films_of_one_patient_belong_together(tmp_path):
    root = write("chest", tmp_path / "t", "dicom", cases=16, images_per_patient=2, splits=HALVES, bits=12)
    manifest = discover(root)
    assert manifest.counts()["patients"] == 8
    assert manifest.counts()["classes"] == {"normal": 8, "opacity": 8}
    assert manifest.counts()["splits"] == {"train": 8, "val": 4, "test": 4}
    file = next(root.rglob("P00000/chest00001/*.dcm"))
    header = pydicom.dcmread(file)
    truth = make("chest", seed=1, index=1, images_per_patient=2, size=64, bits=12)
    assert (header.Modality, header.PatientID, header.BitsStored) == ("DX", "P00000", 12)
    assert header.PatientAge == f"{truth.case.covariates['age']:03d}Y"
    assert np.array_equal(header.pixel_array, truth.case.image().pixels[0])


def test_pydicom_reads_the_volume_at_its_place(tmp_path):
    write("ct", tmp_path / "t", "dicom", cases=2, orientation="coronal", tilt_degrees=10.0)
    truth = make("ct", seed=1, index=1, orientation="coronal", tilt_degrees=10.0, **SMALL["ct"])
    image = truth.case.image()
    slices = [pydicom.dcmread(path) for path in (tmp_path / "t").rglob("P00001/*/*.dcm")]
    assert len({one.SeriesInstanceUID for one in slices}) == len({one.StudyInstanceUID for one in slices}) == 1
    assert len(slices) == image.grid.shape[0]
    slices.sort(key=lambda one: one.InstanceNumber)
    values = np.stack([one.pixel_array * one.RescaleSlope + one.RescaleIntercept for one in slices])
    assert np.array_equal(values, image.pixels[0])
    for number in (0, 7):
        assert list(slices[number].ImagePositionPatient) == pytest.approx(
            image.grid.to_patient((number, 0, 0)), abs=1e-3
        )


def test_a_dicomdir_lists_every_file(tmp_path):
    root = write("ct", tmp_path / "t", "dicom", cases=2, labelled_by="table", dicomdir=True)
    listed = pydicom.dcmread(root / "DICOMDIR")
    kinds = [record.DirectoryRecordType for record in listed.DirectoryRecordSequence]
    assert kinds.count("PATIENT") == kinds.count("STUDY") == kinds.count("SERIES") == 2
    assert kinds.count("IMAGE") == 2 * SMALL["ct"]["shape"][0]


def test_nibabel_reads_image_mask_and_place(tmp_path):
    write("ct", tmp_path / "t", "decathlon", cases=2)
    truth = case("ct", 1)
    image = nib.load(tmp_path / "t" / "imagesTr" / "ct00001.nii.gz")
    mask = nib.load(tmp_path / "t" / "labelsTr" / "ct00001.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).T, truth.case.image().pixels[0])
    assert np.array_equal(np.asarray(mask.dataobj).T, truth.mask)
    # NIfTI is RAS: x and y of LPS change sign.
    place = nib.affines.apply_affine(image.affine, (3, 5, 7)) * (-1, -1, 1)
    assert place == pytest.approx(truth.case.image().grid.to_patient((7, 5, 3)), abs=1e-3)
    told = json.loads((tmp_path / "t" / "dataset.json").read_text())
    assert told["labels"]["5"] == "nodule"
    assert told["numTraining"] == len(told["training"]) == 2


def test_medmnist_arrays_hold_the_pixels(tmp_path):
    with np.load(write("smear", tmp_path / "t", "medmnist", cases=4, splits=(0.5, 0, 0.5))) as file:
        assert sorted(file) == ["test_images", "test_labels", "train_images", "train_labels"]
        stacked = np.concatenate([file["train_images"], file["test_images"]])
        labels = np.concatenate([file["train_labels"], file["test_labels"]])
        assert stacked.shape == (4, 96, 96, 3)
        for index in range(4):
            truth = case("smear", index)
            place = [bool(np.array_equal(one, np.moveaxis(truth.case.image().pixels, 0, -1))) for one in stacked]
            assert place.count(True) == 1
            assert labels[place.index(True), 0] == truth.case.target


def test_coco_holds_boxes_areas_and_masks(tmp_path):
    data = json.loads((write("smear", tmp_path / "t", "coco", cases=2) / "annotations" / "instances.json").read_text())
    names = {one["id"]: one["name"] for one in data["categories"]}
    for index, image in enumerate(data["images"]):
        truth = case("smear", index)
        mine = [one for one in data["annotations"] if one["image_id"] == image["id"]]
        assert [names[one["category_id"]] for one in mine] == list(truth.box_names)
        for number, one in enumerate(mine, start=1):
            decoded = decode(one["segmentation"])
            assert np.array_equal(decoded, truth.layers["instances"] == number)
            rows, columns = np.nonzero(decoded)
            assert one["area"] == len(rows)
            assert one["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert len({one["id"] for one in data["annotations"]}) == len(data["annotations"])


def decode(segmentation):
    values = np.arange(len(segmentation["counts"])) % 2
    return np.repeat(values, segmentation["counts"]).reshape(segmentation["size"][::-1]).T.astype(bool)


@pytest.mark.parametrize("mask", [np.zeros((3, 4)), np.ones((3, 4)), np.eye(4), np.eye(4)[::-1], np.eye(3)[:, 1:]])
def test_run_lengths_begin_with_zeros_and_add_up(mask):
    runs = run_lengths(mask.astype(bool))
    assert sum(runs["counts"]) == mask.size
    assert np.array_equal(decode(runs), mask.astype(bool))


def test_voc_corners_count_pixels_from_one(tmp_path):
    write("smear", tmp_path / "t", "voc", cases=1)
    root = ElementTree.parse(tmp_path / "t" / "Annotations" / "smear00000.xml").getroot()
    truth = case("smear", 0)
    assert [thing.findtext("name") for thing in root.iter("object")] == list(truth.box_names)
    for number, box in enumerate(root.iter("bndbox"), start=1):
        x0, y0, x1, y1 = (int(box.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
        rows, columns = np.nonzero(truth.layers["instances"] == number)
        assert (x0, y0, x1, y1) == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)


def test_yolo_boxes_are_parts_of_the_picture(tmp_path):
    write("smear", tmp_path / "t", "yolo", cases=1)
    truth = case("smear", 0)
    names = yaml.safe_load((tmp_path / "t" / "data.yaml").read_text())["names"]
    lines = (tmp_path / "t" / "labels" / "smear00000.txt").read_text().split("\n")[:-1]
    assert len(lines) == len(truth.boxes)
    for line, (y0, x0, y1, x1), name in zip(lines, truth.boxes, truth.box_names, strict=True):
        number, x, y, width, height = line.split()
        assert names[int(number)] == name
        corners = float(y) - float(height) / 2, float(x) - float(width) / 2, float(y) + float(height) / 2
        assert np.array(corners) * 96 == pytest.approx((y0, x0, y1), abs=1e-3)
        assert (float(x) + float(width) / 2) * 96 == pytest.approx(x1, abs=1e-3)


def test_paired_masks_number_objects_when_asked(tmp_path):
    for instances in (False, True):
        root = write("smear", tmp_path / str(instances), "paired-folders", cases=1, instances=instances)
        with Pillow.open(root / "labels" / "smear00000.png") as picture:
            mask = np.asarray(picture)
        truth = case("smear", 0)
        assert np.array_equal(mask, truth.layers["instances"] if instances else truth.mask)


def test_the_same_call_writes_the_same_bytes(tmp_path):
    for layout in ("csv", "dicom", "medmnist", "coco"):
        kind = "smear" if layout == "coco" else "chest"
        for name in ("one", "two"):
            write(kind, tmp_path / layout / name, layout, cases=4, splits=(0.5, 0, 0.5))
        one, two = ({path.relative_to(tmp_path / layout / name): path.read_bytes()
                     for path in (tmp_path / layout / name).rglob("*") if path.is_file()}
                    for name in ("one", "two"))  # fmt: skip
        assert one == two
        assert len(one) >= 1


@pytest.mark.parametrize(
    ("kind", "layout", "options", "words"),
    [
        ("chest", "folders", {}, ["folders", "class-folders"]),
        ("ct", "yolo", {}, ["yolo", "ct", "smear"]),
        ("brain", "coco", {}, ["coco", "brain"]),
        ("ct", "medmnist", {"cases": 20}, ["medmnist", "8-bit", "solid"]),
        ("chest", "dicom", {"dicomdir": True}, ["DICOMDIR", "table"]),
        ("chest", "dicom", {"labelled_by": "names"}, ["names", "folders or table"]),
        ("chest", "csv", {"labelled_by": "table"}, ["dicom"]),
        ("chest", "csv", {"instances": True}, ["paired-folders"]),
        ("chest", "paired-folders", {"instances": True}, ["instances"]),
        ("chest", "csv", {"splits": (0.5, 0.5)}, ["three parts"]),
        ("chest", "csv", {"splits": (0.9, 0.05, 0.05)}, ["empty", "more cases"]),
        ("chest", "csv", {"cases": 0}, ["at least one"]),
        ("chest", "csv", {"speed": 3}, ["speed"]),
    ],
)
def test_wrong_wishes_are_refused_and_leave_no_cohort(tmp_path, kind, layout, options, words):
    with pytest.raises(UsageError) as error:
        write(kind, tmp_path / "t", layout, **options)
    assert all(word in str(error.value) for word in words)
    assert not [path for path in (tmp_path / "t").rglob("*") if path.suffix in (".csv", ".json", ".npz", ".dcm")]


def test_a_folder_with_files_is_refused_unless_asked(tmp_path):
    (tmp_path / "old.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="empty folder"):
        write("chest", tmp_path, "csv", cases=1)
    write("chest", tmp_path, "csv", cases=1, over=True)
    assert (tmp_path / "manifest.csv").exists()
