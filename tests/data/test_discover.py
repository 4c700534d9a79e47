"""Every layout is read as what it is, ambiguity is asked about, and errors name the file and the next step."""

from __future__ import annotations

import os
import time

import pytest
from data_trees import grow, said, table, touch

from vesalius.core.errors import DataError, UsageError, VesaliusError
from vesalius.data.discover import discover
from vesalius.data.manifest import targets

# Folders ------------------------------------------------------------------------------------------------------------


def test_class_folders_at_any_depth(tmp_path):
    touch(tmp_path, "NORMAL/a.png", "NORMAL/deep/er/b.png", "SICK/c.jpeg", "SICK/d.nii.gz")
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task) == ("class-folders", "classify")
    assert manifest.labels.names == ("NORMAL", "SICK")
    assert dict(zip(manifest.frame["case_id"], manifest.frame["label"], strict=True)) == {
        "NORMAL/a": "NORMAL",
        "NORMAL/deep/er/b": "NORMAL",
        "SICK/c": "SICK",
        "SICK/d": "SICK",
    }
    assert (manifest.patient_source, manifest.split_source) == ("none", "none")
    assert "--patient-pattern" in said(manifest, "warning")
    assert all((tmp_path / path).is_file() for path in manifest.frame["path"])


@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("Training", "Validation", "Testing"), ("train", "valid", "test")]
)
@pytest.mark.parametrize("pattern", ["{split}/{label}/x.png", "{label}/{split}/x.png", "chest/{split}/{label}/x.png"])
def test_folders_of_splits(tmp_path, words, pattern):
    for word in words:
        for label in ("cat", "dog", "eel"):
            touch(tmp_path, pattern.format(split=word, label=label))
    manifest = discover(tmp_path)
    assert manifest.labels.names == ("cat", "dog", "eel")
    assert manifest.split_source == "folder"
    assert manifest.counts()["split_classes"] == {s: {"cat": 1, "dog": 1, "eel": 1} for s in ("train", "val", "test")}


def test_litter_is_passed_over_and_empty_files_are_told(tmp_path):
    grow(tmp_path, "a", 3)
    grow(tmp_path, "b", 3)
    touch(
        tmp_path,
        "__MACOSX/a/._000.png",
        "a/.DS_Store",
        "a/Thumbs.db",
        "b/.hidden.png",
        ".git/c/x.png",
        "README.md",
        "LICENSE",
        "LICENSE.txt",
    )
    touch(tmp_path, "a/hollow.png", "b/hollow.jpg", content=b"")
    manifest = discover(tmp_path)
    assert len(manifest) == 6
    assert "2 files hold no byte, first a/hollow.png" in said(manifest, "warning")


def test_same_names_with_different_suffixes_stay_different_cases(tmp_path):
    touch(tmp_path, "a/x.png", "a/x.jpg", "a/y.png", "b/z.png")
    assert sorted(discover(tmp_path).frame["case_id"]) == ["a/x.jpg", "a/x.png", "a/y", "b/z"]


def test_class_missing_in_a_split_is_told(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    assert "split test has no image of class 'b'" in said(discover(tmp_path), "warning")


def test_folders_that_may_be_patients_are_asked_about(tmp_path):
    for number in range(4):
        grow(tmp_path, f"patient_{number:02d}", 3)
    with pytest.raises(UsageError, match=r"may be classes or patients.*--layout class-folders"):
        discover(tmp_path)
    classes = discover(tmp_path, layout="class-folders")
    assert len(classes.labels) == 4
    people = discover(tmp_path, layout="images", patient_pattern="([^/]+)/")
    assert people.task == "unlabelled"
    assert people.counts()["patients"] == 4


def test_digits_are_classes(tmp_path):
    for digit in range(10):
        grow(tmp_path, str(digit), 2)
    assert discover(tmp_path).labels.names == tuple("0123456789")


def test_images_without_labels(tmp_path):
    grow(tmp_path, "only", 3)
    manifest = discover(tmp_path)
    assert (manifest.layout, manifest.task, manifest.labels) == ("images", "unlabelled", None)
    with pytest.raises(UsageError, match="task classify needs truth, but none was found"):
        discover(tmp_path, task="classify")


def test_video_folders(tmp_path):
    touch(tmp_path, "ill/a.mp4", "ill/b.gif", "well/c.avi", "well/d.mov")
    manifest = discover(tmp_path)
    assert manifest.task == "video"
    assert manifest.labels.names == ("well", "ill")
    assert manifest.counts()["classes"] == {"well": 2, "ill": 2}


def test_patients_by_pattern(tmp_path):
    touch(tmp_path, "a/person1_x.png", "a/person1_y.png", "b/person22_x.png")
    manifest = discover(tmp_path, patient_pattern=r"person(\d+)_")
    assert manifest.frame["patient_id"].tolist() == ["1", "1", "22"]
    assert manifest.patient_source == "pattern"
    named = discover(tmp_path, patient_pattern=r"(?P<folder>\w)/(?P<patient>\w+)_")
    assert named.frame["patient_id"].tolist() == ["person1", "person1", "person22"]
    with pytest.raises(DataError, match=r"does not fit 1 of 3 paths, first b/person22_x.png"):
        discover(tmp_path, patient_pattern=r"person(\d)_")
    for pattern, message in (("person", "has no group"), ("(", "no regular expression")):
        with pytest.raises(UsageError, match=message):
            discover(tmp_path, patient_pattern=pattern)


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", ["path|label|patient_id|split", "Image Path|Diagnosis|Patient ID|Subset", "filename|class|subject|set"]
)
def test_table_with_usual_names_and_separators(tmp_path, mark, header):
    touch(tmp_path, "x/a.png", "x/b.png", "x/c.png")
    rows = ["x/a.png|ill|007|Train", "x\\b.png|well|007|valid", "./x/c.png|ill|12|TEST"]
    table(tmp_path, "\n".join([header, *rows]).replace("|", mark))
    manifest = discover(tmp_path)
    assert manifest.frame["path"].tolist() == ["x/a.png", "x/b.png", "x/c.png"]
    assert manifest.frame["label"].tolist() == ["ill", "well", "ill"]
    assert manifest.frame["patient_id"].tolist() == ["007", "007", "12"]
    assert manifest.frame["split"].tolist() == ["train", "val", "test"]
    assert (manifest.patient_source, manifest.split_source) == ("column", "column")


def test_table_covariates_and_columns_that_give_the_label_away(tmp_path):
    paths = grow(tmp_path, "x", 40)
    lines = ["path,label,cause,age,site,code"]
    for index, path in enumerate(paths):
        lines.append(
            f"{path},{'ill' if index % 4 else 'well'},{['none', 'virus', 'germ', 'virus'][index % 4]},"
            f"{20 + index},{'AB'[index % 3 == 0]},0{index % 3}"
        )
    table(tmp_path, "\n".join(lines))
    manifest = discover(tmp_path)
    assert manifest.covariates == ["cause", "age", "site", "code"]
    assert manifest.frame["age"].tolist() == list(range(20, 60))
    assert manifest.frame["code"].iloc[1] == "01"
    noted = [problem.text.split("'")[1] for problem in manifest.problems if "determines the label" in problem.text]
    assert noted == ["cause"]


def test_table_by_file_name_and_by_stem(tmp_path):
    touch(tmp_path, "deep/er/IMG_1.png", "deep/IMG_2.dcm.png", "other/IMG_3.jpg")
    table(tmp_path, "image_id,dx\nIMG_1,a\nIMG_2.dcm,b\nIMG_3.jpg,a\n", name="meta.csv")
    manifest = discover(tmp_path)
    assert manifest.layout == "table"
    assert manifest.frame["path"].tolist() == ["deep/er/IMG_1.png", "deep/IMG_2.dcm.png", "other/IMG_3.jpg"]
    assert "column 'image_id' of meta.csv names the images" in said(manifest)


def test_a_name_that_two_files_have_needs_its_folder(tmp_path):
    touch(tmp_path, "data/one/x.png", "data/two/x.png")
    table(tmp_path, "path,label\none/x.png,a\ntwo/x.png,b\n", name="meta.csv")
    assert discover(tmp_path).frame["path"].tolist() == ["data/one/x.png", "data/two/x.png"]
    table(tmp_path, "path,label\none/x.png,a\nx.png,b\n", name="meta.csv")
    with pytest.raises(DataError, match=r"1 of 2 files .* first x\.png"):
        discover(tmp_path)


def test_tables_per_split(tmp_path):
    touch(tmp_path, *(f"i/{index}.png" for index in range(6)))
    table(tmp_path, "path,label\ni/0.png,a\ni/1.png,b\ni/2.png,b\n", name="train.csv")
    table(tmp_path, "path,label\ni/3.png,a\ni/4.png,b\n", name="test.csv")
    manifest = discover(tmp_path)
    assert manifest.counts()["splits"] == {"train": 3, "test": 2}
    assert manifest.labels.names == ("a", "b")


def test_several_tables_are_asked_about(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    for name in ("one.csv", "two.csv"):
        table(tmp_path, "path,label\na.png,x\nb.png,y\n", name=name)
    with pytest.raises(UsageError, match=r"2 tables name the images \(one.csv, two.csv\); give the one"):
        discover(tmp_path)
    assert len(discover(tmp_path / "two.csv")) == 2


def test_several_labels_in_one_cell_or_in_columns(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    table(tmp_path, "path,label\na.png,x|z\nb.png,\nc.png, z | y\n")
    cells = discover(tmp_path)
    assert cells.labels.multilabel
    assert cells.labels.names == ("x", "y", "z")
    assert targets(cells).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]
    table(tmp_path, "path,label.x,label.y,label.z\na.png,1,0,1\nb.png,0,0,0\nc.png,0,1,1\n")
    columns = discover(tmp_path)
    assert targets(columns).tolist() == targets(cells).tolist()
    table(tmp_path, "path,x,y,z\na.png,1,0,1\nb.png,0,0,0\nc.png,0,1,1\n")
    named = discover(tmp_path, label_column="x,y")
    assert targets(named).tolist() == [[1, 0], [0, 0], [0, 1]]
    table(tmp_path, "path,x,y\na.png,1,0\nb.png,0,1\nc.png,0,1\n")
    single = discover(tmp_path, label_column="x,y")
    assert not single.labels.multilabel
    assert targets(single).tolist() == [0, 1, 1]
    table(tmp_path, "path,x,y\na.png,1,0\nb.png,0,2\nc.png,0,1\n")
    with pytest.raises(DataError, match="column 'y' holds '2'"):
        discover(tmp_path, label_column="x,y")


def test_label_column_of_choice(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    table(tmp_path, "path,label,Grade\na.png,x,g1\nb.png,y,g2\n")
    assert discover(tmp_path, label_column="grade").labels.names == ("g1", "g2")
    with pytest.raises(UsageError, match=r"'grad', which does not exist; it has .*did you mean 'Grade'"):
        discover(tmp_path, label_column="grad")


def test_pandas_floats_in_a_table_become_whole_patients(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    table(tmp_path, "path,label,patient\na.png,x,10.0\nb.png,y,\nc.png,y,3.0\n")
    manifest = discover(tmp_path)
    assert manifest.frame["patient_id"].tolist() == ["10", "b", "3"]
    assert "1 cases have no patient id, first b.png" in said(manifest, "warning")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,x\nnope.png,y\nnada.png,y\n", "2 of 3 files in column 'path' do not exist, first nope.png"),
        (
            "path,label,split\na.png,x,trian\nb.png,y,test\n",
            "'trian' in 1 rows; expected train, val or test, did you mean 'train'",
        ),
        ("path,label,case_id\na.png,x,k\nb.png,y,k\n", "'k' for a.png and b.png"),
        ("path,label\na.png,\nb.png,\n", ""),
        ("path,label\n", "no rows"),
        ("when,where\n1,2\n3,4\n", r"no column names a file .*\['when', 'where'\]"),
        ("", "not readable as a table"),
    ],
)
def test_tables_that_contradict_the_folder_are_refused(tmp_path, text, message):
    touch(tmp_path, "a.png", "b.png")
    table(tmp_path, text)
    if not message:
        assert discover(tmp_path).task == "unlabelled"
        return
    with pytest.raises(DataError, match=message) as caught:
        discover(tmp_path)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_rows_without_label_or_with_an_empty_file_are_left_out_and_told(tmp_path):
    touch(tmp_path, "a.png", "b.png", "c.png")
    touch(tmp_path, "d.png", content=b"")
    table(tmp_path, "path,label\na.png,x\nb.png,\nc.png,y\nd.png,y\n")
    manifest = discover(tmp_path)
    assert manifest.frame["path"].tolist() == ["a.png", "c.png"]
    assert "1 cases have no label, first b.png" in said(manifest, "warning")
    assert "1 files hold no byte, first d.png" in said(manifest, "warning")


def test_a_measurement_is_no_class(tmp_path):
    paths = grow(tmp_path, "x", 80)
    table(tmp_path, "\n".join(["path,label", *(f"{path},{index * 0.37}" for index, path in enumerate(paths))]))
    with pytest.raises(DataError, match="80 different values in 80 rows"):
        discover(tmp_path)


def test_masks_named_by_a_column(tmp_path):
    touch(tmp_path, "i/a.png", "i/b.png", "m/a.png")
    table(tmp_path, "image,mask\ni/a.png,m/a.png\ni/b.png,\n")
    manifest = discover(tmp_path)
    assert manifest.task == "segment"
    assert manifest.frame[["case_id", "role", "path"]].to_numpy().tolist() == [
        ["i/a", "image", "i/a.png"],
        ["i/b", "image", "i/b.png"],
        ["i/a", "mask", "m/a.png"],
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_tables_from_spreadsheets(tmp_path, encoding):
    touch(tmp_path, "a.png", "b.png")
    table(tmp_path, "path;label\r\na.png;müde\r\nb.png;wach\r\n", encoding=encoding)
    assert discover(tmp_path).labels.names == ("müde", "wach")


def test_written_manifests_are_read_again(tmp_path):
    touch(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    manifest = discover(tmp_path, patient_pattern=r"(\d)")
    manifest.to_csv(tmp_path / "manifest.csv")
    again = discover(tmp_path)
    assert again.layout == "manifest"
    assert again.frame.equals(manifest.frame)
    kept = discover(manifest.to_parquet(tmp_path / "elsewhere" / "cohort.parquet"))
    assert kept.layout == "class-folders"
    assert kept.root == tmp_path


def test_a_table_given_by_itself_may_hold_absolute_paths(tmp_path):
    touch(tmp_path, "data/a.png", "data/b.png")
    path = table(tmp_path, f"path,label\n{tmp_path}/data/a.png,x\n{tmp_path}/data/b.png,y\n", name="lists/all.csv")
    manifest = discover(path)
    assert [manifest.absolute(row) for row in manifest.frame["path"]] == [
        tmp_path / "data/a.png",
        tmp_path / "data/b.png",
    ]


def test_values_that_are_class_folders_are_no_paths(tmp_path):
    grow(tmp_path, "ill", 2)
    grow(tmp_path, "well", 2)
    table(tmp_path, "label,meaning\nill,sick\nwell,healthy\n", name="codes.csv")
    manifest = discover(tmp_path)
    assert manifest.layout == "class-folders"
    assert len(manifest) == 4


def test_names_that_hold_a_hash(tmp_path):
    touch(tmp_path, "a#1.png", "a#2.png")
    table(tmp_path, "path,label\na#1.png,x\na#2.png,y\n")
    assert discover(tmp_path).frame["path"].tolist() == ["a#1.png", "a#2.png"]


# Anything else ------------------------------------------------------------------------------------------------------


def test_a_single_image_is_one_unlabelled_case(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    manifest = discover(tmp_path / "a.png")
    assert manifest.frame["path"].tolist() == ["a.png"]
    assert (manifest.root, manifest.task) == (tmp_path, "unlabelled")


def test_a_folder_of_data_sets_is_asked_about(tmp_path):
    touch(tmp_path, "one/a.png", "two/b.png")
    for name in ("one", "two"):
        table(tmp_path, "path,label\n", name=f"{name}/manifest.csv")
    with pytest.raises(UsageError, match=r"several data sets \(one, two\)"):
        discover(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "clasify"}, "did you mean 'classify'"),
        ({"layout": "cocoa"}, "did you mean 'coco'"),
        ({"label_column": "x"}, "--label-column needs a table"),
        ({"layout": "voc"}, "this is not layout voc"),
    ],
)
def test_wrong_options_get_one_line(tmp_path, options, message):
    touch(tmp_path, "a/x.png", "b/y.png")
    with pytest.raises(VesaliusError, match=message):
        discover(tmp_path, **options)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        discover(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images were found"):
        discover(tmp_path)
    touch(tmp_path, "a.png", content=b"")
    with pytest.raises(DataError, match=r"all 1 images are empty files, first a\.png"):
        discover(tmp_path)
    touch(tmp_path, "notes.docx")
    with pytest.raises(DataError, match=r"notes.docx: content of kind text"):
        discover(tmp_path / "notes.docx")


def test_a_circle_of_links_ends(tmp_path):
    touch(tmp_path, "a/x.png", "b/y.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert len(discover(tmp_path)) == 2


def test_many_files_take_seconds(tmp_path):
    touch(tmp_path, "a/x.png", "b/x.png")
    for name in ("a", "b"):
        for index in range(10_000):
            os.link(tmp_path / name / "x.png", tmp_path / name / f"{index}.png")
    start = time.perf_counter()
    manifest = discover(tmp_path)
    # 0.2 s on a quiet machine; 100 000 files must take no more than a few seconds.
    assert time.perf_counter() - start < 2
    assert len(manifest) == 20_002


def test_truth_can_be_left_out_but_not_made_up(tmp_path):
    touch(tmp_path, "a/x.png", "b/y.png")
    plain = discover(tmp_path, task="unlabelled")
    assert (plain.task, plain.labels, len(plain)) == ("unlabelled", None, 2)
    table(tmp_path, "path,label\na/x.png,p\nb/y.png,q\n")
    with pytest.raises(UsageError, match="the data answer task classify, not segment"):
        discover(tmp_path, task="segment")


# Real data ----------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_chest_xray(real_data):
    manifest = discover(real_data / "chest-xray")
    assert manifest.counts()["classes"] == {"normal": 1124, "pneumonia": 2976}
    assert manifest.counts()["patients"] == 1952
    assert manifest.labels.names == ("normal", "pneumonia")
    assert any(
        problem.severity == "note" and "'cause' determines the label" in problem.text for problem in manifest.problems
    )


@pytest.mark.realdata
def test_real_folders_and_arrays(real_data):
    mednist = discover(real_data / "mednist")
    assert set(mednist.counts()["classes"].values()) == {1000}
    assert "--patient-pattern" in said(mednist, "warning")
    pneumonia = discover(real_data / "medmnist" / "pneumoniamnist.npz")
    assert pneumonia.counts()["splits"] == {"train": 4708, "val": 524, "test": 624}
    assert discover(real_data / "mnist").counts()["splits"] == {"train": 55000, "val": 5000, "test": 10000}
    with pytest.raises(UsageError, match="2 array files"):
        discover(real_data / "medmnist")


@pytest.mark.realdata
def test_real_segmentation(real_data):
    hippocampus = discover(real_data / "hippocampus")
    assert hippocampus.labels.names == ("background", "Anterior", "Posterior")
    assert len(hippocampus) == 200
    nuclei = discover(real_data / "nuclei")
    assert (len(nuclei), nuclei.labels.names) == (334, ("background", "object"))


@pytest.mark.realdata
def test_blood_cells(real_data):
    manifest = discover(real_data / "bccd")
    assert manifest.counts()["splits"] == {"train": 205, "val": 87, "test": 72}
    assert manifest.split_source == "official"
    assert "361 Platelets, 4155 RBC, 372 WBC" in said(manifest)
    degenerate = [problem.path for problem in manifest.problems if "has no area" in problem.text]
    assert degenerate == ["Annotations/BloodImage_00338.xml", "Annotations/BloodImage_00343.xml"]


@pytest.mark.realdata
def test_lung_ultrasound(real_data):
    manifest = discover(real_data / "lung-ultrasound")
    assert manifest.task == "video"
    assert manifest.counts()["classes"] == {
        "Bacterial pneumonia": 1,
        "COVID-19": 7,
        "regular": 32,
        "Viral pneumonia": 4,
    }
    assert manifest.counts()["patients"] == 14
    assert "10" in set(manifest.frame["patient_id"])


@pytest.mark.realdata
def test_motion_tables_are_no_images(real_data):
    with pytest.raises(DataError, match=r"no images were found \(there is 4 csv\)"):
        discover(real_data / "rehab-uiprmd")


@pytest.mark.realdata
def test_real_dicom(real_data):
    assert discover(real_data / "dicom" / "t1-series").frame["path"].tolist() == ["."]
    study = discover(real_data / "dicom" / "brain-study")
    assert len(study) == 3
    assert study.frame["patient_id"].unique().tolist() == ["PGBM-002"]
    assert discover(real_data / "dicom").task == "unlabelled"
    with pytest.raises(UsageError, match="several data sets"):
        discover(real_data)
