"""Array files, JSON descriptions, boxes and DICOM trees are read as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_trees import said, table, touch

from vesalius.core.errors import DataError, UnreadableFile, UsageError
from vesalius.data.discover import discover
from vesalius.data.manifest import targets

# Arrays, JSON, boxes ------------------------------------------------------------------------------------------------


def medmnist(path: Path, **labels: np.ndarray) -> Path:
    arrays = {}
    for split, truth in labels.items():
        arrays[f"{split}_images"] = np.zeros((len(truth), 4, 4), np.uint8)
        arrays[f"{split}_labels"] = truth
    np.savez(path, **arrays)
    return path


def test_medmnist_arrays(tmp_path):
    path = medmnist(tmp_path / "x.npz", train=np.array([[0], [1], [1]]), val=np.array([[1]]), test=np.array([[0], [1]]))
    for given in (path, tmp_path):
        manifest = discover(given)
        assert manifest.frame["path"].tolist()[:2] == ["x.npz#train_images/0", "x.npz#train_images/1"]
        assert targets(manifest).tolist() == [0, 1, 1, 1, 0, 1]
        assert manifest.published
        assert manifest.split_source == "official"
        assert manifest.counts()["splits"] == {"train": 3, "val": 1, "test": 2}


def test_medmnist_several_labels(tmp_path):
    truth = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    manifest = discover(medmnist(tmp_path / "x.npz", train=truth, test=truth[:1]))
    assert manifest.labels.multilabel
    assert targets(manifest).tolist() == [*truth.tolist(), truth[0].tolist()]


def test_array_files_that_are_none_are_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", stuff=np.zeros(3))
    with pytest.raises(UnreadableFile, match="train_images, train_labels"):
        discover(tmp_path / "odd.npz")
    np.savez(tmp_path / "short.npz", train_images=np.zeros((3, 2, 2)), train_labels=np.zeros((2, 1), int))
    with pytest.raises(DataError, match=r"train_images has shape \(3, 2, 2\) but train_labels \(2, 1\)"):
        discover(tmp_path / "short.npz")
    np.savez(tmp_path / "pickled.npz", train_images=np.array([None, {}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableFile, match="Python objects"):
        discover(tmp_path / "pickled.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UnreadableFile, match="not readable as an array file"):
        discover(tmp_path / "broken.npz")
    with pytest.raises(UsageError, match="4 array files"):
        discover(tmp_path)


def decathlon(root: Path, **changes: object) -> Path:
    touch(root, *(f"{folder}/c_{index}.nii.gz" for folder in ("imagesTr", "labelsTr") for index in range(3)))
    data = {
        "labels": {"0": "background", "1": "cyst", "3": "tumour"},
        "modality": {"0": "CT"},
        "test": ["./imagesTs/z.nii.gz"],
        "training": [
            {"image": f"./imagesTr/c_{index}.nii.gz", "label": f"./labelsTr/c_{index}.nii.gz"} for index in range(3)
        ],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(data))
    return root


def test_decathlon(tmp_path):
    for given in (decathlon(tmp_path), tmp_path / "dataset.json"):
        manifest = discover(given)
        assert (manifest.layout, manifest.task) == ("decathlon", "segment")
        # The index of a name is the value in the mask, also where values are skipped.
        assert manifest.labels.names == ("background", "cyst", "unused 2", "tumour")
        assert manifest.frame["case_id"].tolist() == ["c_0", "c_0", "c_1", "c_1", "c_2", "c_2"]
        assert manifest.frame["path"].tolist()[:2] == ["imagesTr/c_0.nii.gz", "labelsTr/c_0.nii.gz"]
        assert "1 test images have no truth" in said(manifest)
    (tmp_path / "labelsTr/c_1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 of 6 files it names do not exist, first labelsTr/c_1.nii.gz"):
        discover(tmp_path)


def test_broken_descriptions_are_named(tmp_path):
    decathlon(tmp_path, labels={"0": "a", "1": "b", "c": "d"})
    with pytest.raises(DataError, match="`labels` maps 'c' to 'd'"):
        discover(tmp_path)
    decathlon(tmp_path, training=[{"image": "x"}])
    with pytest.raises(DataError, match="entry 0 of `training`"):
        discover(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UnreadableFile, match="not readable as JSON"):
        discover(tmp_path)


def test_nnunet_with_two_channels(tmp_path):
    for case in ("a", "b"):
        touch(tmp_path, f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz", f"labelsTr/{case}.nii.gz")
    touch(tmp_path, "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz", "labelsTs/t.nii.gz", "imagesTs/u_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "T1", "1": "T2"},
                "labels": {"background": 0, "lesion": 1},
                "numTraining": 2,
                "file_ending": ".nii.gz",
            }
        )
    )
    manifest = discover(tmp_path)
    assert manifest.layout == "nnunet"
    assert manifest.labels.names == ("background", "lesion")
    assert manifest.frame.loc[manifest.frame["case_id"] == "a", "role"].tolist() == ["image", "image_1", "mask"]
    assert manifest.counts()["splits"] == {"train": 2, "test": 1}
    assert "1 images in imagesTs have no mask" in said(manifest)
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case 'b' has 1 channel\(s\), but dataset.json names 2"):
        discover(tmp_path)


def coco(root: Path, name: str, files: list[str], boxes: list[tuple[int, int, list[float]]]) -> None:
    touch(root, *(f"images/{file}" for file in files))
    data = {
        "images": [{"id": index, "file_name": file, "width": 100, "height": 50} for index, file in enumerate(files)],
        "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "dust"}],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box}
            for number, (image, category, box) in enumerate(boxes)
        ],
    }
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))


def test_coco(tmp_path):
    coco(
        tmp_path,
        "annotations/instances_train2017.json",
        ["a.jpg", "b.jpg"],
        [(0, 7, [0, 0, 100, 50]), (0, 9, [5, 5, 0, 4]), (1, 9, [90, 0, 20, 5]), (1, 8, [0, 0, 1, 1])],
    )
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, manifest.split_source) == ("coco", "detect", "none")
    assert manifest.labels.names == ("cell", "dust")
    images = manifest.cases
    assert images["label"].tolist() == ["cell|dust", "dust"]
    assert manifest.frame["path"].tolist()[1] == "annotations/instances_train2017.json#0"
    assert "2 boxes are empty or outside their image" in said(manifest)
    assert "1 annotations name an image or category that does not exist" in said(manifest)
    coco(tmp_path, "annotations/instances_val2017.json", ["c.jpg"], [(0, 7, [1, 1, 2, 2])])
    assert discover(tmp_path).counts()["splits"] == {"train": 2, "val": 1}
    alone = discover(tmp_path / "annotations/instances_val2017.json")
    assert alone.root == tmp_path
    assert alone.frame["path"].tolist() == ["images/c.jpg", "annotations/instances_val2017.json#0"]


def voc_xml(boxes: list[tuple[str, int, int, int, int]]) -> bytes:
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>"
        for name, a, b, c, d in boxes
    )
    return f"<annotation><size><width>64</width><height>48</height></size>{things}</annotation>".encode()


def test_voc(tmp_path):
    touch(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg")
    touch(
        tmp_path,
        "Annotations/a.xml",
        content=voc_xml([("cell", 1, 1, 9, 9), ("cell", 5, 5, 5, 9), ("dust", 0, 0, 65, 9)]),
    )
    touch(tmp_path, "Annotations/b.xml", content=voc_xml([]))
    touch(tmp_path, "ImageSets/Main/train.txt", content=b"a\n")
    touch(tmp_path, "ImageSets/Main/trainval.txt", content=b"a\nb\n")
    touch(tmp_path, "ImageSets/Main/val.txt", content=b"b 1\n")
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, manifest.split_source) == ("voc", "detect", "official")
    assert manifest.labels.names == ("cell", "dust")
    assert manifest.counts()["splits"] == {"train": 1, "val": 1}
    warned = [(problem.path, problem.text) for problem in manifest.problems if "box " in problem.text]
    assert [path for path, _ in warned] == ["Annotations/a.xml"] * 2
    assert "box 2 (cell; 5, 5, 5, 9) has no area" in warned[0][1]
    assert "leaves the image of 64x48" in warned[1][1]
    assert "1 images have no annotation file" in said(manifest)


def test_voc_does_not_read_entities(tmp_path):
    touch(tmp_path, "JPEGImages/a.jpg")
    touch(tmp_path, "Annotations/a.xml", content=b'<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>')
    with pytest.raises(UnreadableFile, match="defines entities"):
        discover(tmp_path, layout="voc")


def test_yolo(tmp_path):
    touch(tmp_path, "images/train/a.jpg", "images/train/b.jpg", "images/val/c.jpg")
    touch(tmp_path, "labels/train/a.txt", content=b"0 0.5 0.5 1.0 1.0\n1 0.1 0.1 0.05 0\n")
    touch(tmp_path, "labels/train/b.txt", content=b"")
    touch(tmp_path, "labels/val/c.txt", content=b"1 0.1 0.1 0.9 0.1 0.9 0.9\n")
    touch(tmp_path, "data.yaml", content=b"names: [cell, dust]\nnc: 2\n")
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, manifest.split_source) == ("yolo", "detect", "folder")
    assert manifest.cases["label"].tolist() == ["cell|dust", "", "dust"]
    assert manifest.counts()["splits"] == {"train": 2, "val": 1}
    assert "line 2" in said(manifest, "warning")
    touch(tmp_path, "data.yaml", content=b"names: [cell]\n")
    with pytest.raises(DataError, match="a box has class 1, but 1 names"):
        discover(tmp_path)
    touch(tmp_path, "labels/train/a.txt", content=b"cell 0.5 0.5 1 1\n")
    with pytest.raises(UnreadableFile, match=r"line 1 is 'cell 0\.5"):
        discover(tmp_path)


def test_images_beside_masks(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for index in range(3):
            touch(tmp_path, f"{split}/images/{index}.jpg")
            path = tmp_path / split / "masks" / f"{index}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array([[0, 255], [0, 0]], dtype=np.uint8)).save(path)
    touch(tmp_path, "train/images/9.jpg")
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task) == ("paired-folders", "segment")
    assert manifest.labels.names == ("background", "foreground")
    assert manifest.counts()["splits"] == {"train": 3, "val": 3}
    rows = manifest.frame[manifest.frame["case_id"] == "train/images/1"]
    assert rows[["role", "path"]].to_numpy().tolist() == [
        ["image", "train/images/1.jpg"],
        ["mask", "train/masks/1_mask.png"],
    ]
    assert "1 images have no mask, first train/images/9.jpg" in said(manifest)


# DICOM --------------------------------------------------------------------------------------------------------------


def dicom(path: Path, patient: str, series: str, number: int = 1, **tags: object) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = CTImageStorage, f"{series}.{number}"
    item.PatientID, item.StudyInstanceUID, item.SeriesInstanceUID = patient, f"1.2.{series}", series
    item.Modality, item.InstanceNumber, item.PatientAge = "CT", number, "064Y"
    item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, float(number)], [1, 0, 0, 0, 1, 0]
    item.Rows = item.Columns = 2
    item.PixelSpacing, item.SamplesPerPixel, item.PhotometricInterpretation = [1, 1], 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation, item.PixelData = 15, 0, bytes(8)
    for name, value in tags.items():
        setattr(item, name, value)
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path, enforce_file_format=True)


def test_dicom_tree_has_one_case_per_series_and_patients_from_the_tag(tmp_path):
    for number in (1, 2, 3):
        dicom(tmp_path / "s1" / f"{number}.dcm", "P1", "1.2.3.1", number)
        dicom(tmp_path / "mixed" / f"IM{number}", "P1", "1.2.3.2", number)
    dicom(tmp_path / "mixed" / "other.dcm", "P2", "1.2.3.3")
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, manifest.patient_source) == ("dicom", "unlabelled", "dicom")
    found = manifest.frame.set_index("path")["patient_id"].to_dict()
    assert found == {"s1": "P1", "mixed#1.2.3.2": "P1", "mixed/other.dcm": "P2"}
    assert manifest.frame["age"].tolist() == [64, 64, 64]
    from vesalius.io.open import open_image

    sizes = {path: open_image(manifest.absolute(path)).pixels.shape for path in found}
    assert sizes == {"s1": (1, 3, 2, 2), "mixed#1.2.3.2": (1, 3, 2, 2), "mixed/other.dcm": (1, 2, 2)}


def test_dicom_folders_are_classes_only_if_each_holds_several_patients(tmp_path):
    for label in ("ill", "well"):
        for patient in range(2):
            dicom(tmp_path / label / f"p{patient}" / "1.dcm", f"{label}{patient}", f"1.2.{len(label)}.{patient + 1}")
    assert discover(tmp_path).labels.names == ("well", "ill")
    for path in (tmp_path / "well" / "p1").iterdir():
        path.unlink()
    assert discover(tmp_path).task == "unlabelled"
    assert discover(tmp_path, task="classify").counts()["classes"] == {"ill": 2, "well": 1}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("patient_id", ["P1", "P2"]),
        ("series_uid", ["1.2.3.1", "1.2.3.2"]),
        ("path", ["a", "b"]),
        ("file", ["a/1.dcm", "b/1.dcm"]),
    ],
)
def test_dicom_labels_from_a_table(tmp_path, key, values):
    for folder, patient, series in (("a", "P1", "1.2.3.1"), ("b", "P2", "1.2.3.2"), ("c", "P3", "1.2.3.3")):
        dicom(tmp_path / folder / "1.dcm", patient, series)
    path = table(tmp_path, f"{key},label,site\n{values[0]},ill,N\n{values[1]},well,S\n", name="labels.csv")
    for given in (tmp_path, path):
        manifest = discover(given)
        assert manifest.layout == "dicom"
        assert manifest.frame[["patient_id", "label", "site"]].to_numpy().tolist() == [
            ["P1", "ill", "N"],
            ["P2", "well", "S"],
        ]
        assert "1 series are not in labels.csv" in said(manifest)
