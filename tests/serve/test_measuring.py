"""`vesalius measure` from files to tables: what comes back, what is refused, what is done once."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pandas as pd
import pytest

import vesalius
from vesalius.cli.main import main
from vesalius.core.errors import DataError, ResourceError, UsageError
from vesalius.core.geometry import Grid, affine_from_axes
from vesalius.core.image import Image
from vesalius.io.nifti_out import write_nifti
from vesalius.io.raster_out import write_png
from vesalius.phantoms.smear import make_smear

AXES = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def ball(radius_mm, spacing, shape, centre=None):
    steps = np.array(spacing)
    middle = np.array(shape) * steps / 2 if centre is None else np.array(centre)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * steps
    return (np.linalg.norm(places - middle, axis=-1) <= radius_mm).astype(np.uint8)


def save(path, values, spacing=(1.5, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = Grid(values.shape, affine=affine_from_axes((10, -20, 30), AXES, spacing))
    write_nifti(Image(grid=grid, pixels=values[None]), path)
    return path


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    """Two volumes with a ball and a box, their images, and a reference whose box is one voxel longer."""
    root = tmp_path_factory.mktemp("organs")
    for number in range(2):
        mask = ball(10.0, (1.5, 1.0, 1.0), (24, 40, 60), (18.0, 20.0, 15.0))
        mask[4:12, 10:20, 40:50] = 2
        truth = mask.copy()
        truth[4:12, 10:20, 50] = 2
        save(root / "masks" / f"p{number}_seg.nii.gz", mask)
        save(root / "truth" / f"p{number}.nii.gz", truth)
        save(root / "images" / f"p{number}_0000.nii.gz", (mask * 100 + number).astype(np.int16))
    (root / "masks" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball", "2": "box"}}))
    return root


def test_organs_of_a_folder(organs, tmp_path):
    done = vesalius.measure(
        organs / "masks",
        image=organs / "images",
        reference=organs / "truth",
        out=tmp_path / "out",
        extras=["relations"],
    )
    assert (done.kind, done.cases, done.failed) == ("organs", 2, {})
    table = done.table("structures").set_index(["case_id", "name"])
    one = table.loc[("p1_seg", "box")]
    assert one["voxel_volume_mm3"] == pytest.approx(8 * 10 * 10 * 1.5)
    assert one["mean_intensity"] == pytest.approx(201)
    ball_row = table.loc[("p0_seg", "ball")]
    assert ball_row["volume_mm3"] == pytest.approx(4 / 3 * np.pi * 1000, rel=0.02)
    assert ball_row["sphericity"] > 0.9
    compared = done.table("reference").set_index(["case_id", "name"])
    assert compared.loc[("p0_seg", "ball"), "dice"] == 1
    assert compared.loc[("p0_seg", "box"), "dice"] == pytest.approx(2 * 800 / (800 + 880))
    assert compared.loc[("p0_seg", "box"), "hausdorff_distance_mm"] == pytest.approx(1.0)
    assert compared.loc[("p0_seg", "box"), "volume_error_ml"] == pytest.approx(-0.12)
    related = done.table("relations")
    assert related[["first_name", "second_name"]].values.tolist() == [["ball", "box"]] * 2
    words = pd.read_csv(done.dictionary)
    for name, frame in ((name, done.table(name)) for name in done.tables):
        assert set(frame.columns) - {"case_id"} == set(words[words["table"] == name]["column"]), name
    assert (done.out / "index.html").read_text().count("<img") >= 2
    both = pd.read_csv(done.tables["structures"]["csv"])
    assert np.allclose(both["volume_mm3"], done.table("structures")["volume_mm3"])


def test_what_is_done_is_not_done_again(organs, tmp_path, monkeypatch):
    from vesalius.serve import measure_kinds

    counted = []
    measure_one = measure_kinds.Work.__call__

    def spy(self, case):
        counted.append(case.case_id)
        return measure_one(self, case)

    monkeypatch.setattr(measure_kinds.Work, "__call__", spy)
    ask = {"out": tmp_path / "out", "page": False}
    first = vesalius.measure(organs / "masks", **ask).table()
    assert sorted(counted) == ["p0_seg", "p1_seg"]
    again = vesalius.measure(organs / "masks", **ask).table()
    assert len(counted) == 2
    pd.testing.assert_frame_equal(first, again)
    vesalius.measure(organs / "masks", **ask, labels=[2])
    assert len(counted) == 4
    vesalius.measure(organs / "masks", **ask, labels=[2], force=True)
    assert len(counted) == 6


def test_one_bad_file_does_not_stop_the_rest(organs, tmp_path, capsys):
    masks = tmp_path / "masks"
    save(masks / "good.nii.gz", ball(5.0, (1.0, 1.0, 1.0), (14, 14, 14)), (1.0, 1.0, 1.0))
    save(masks / "not-a-mask.nii.gz", np.full((4, 4, 4), np.nan, np.float32))
    (masks / "torn.nii.gz").write_bytes((masks / "good.nii.gz").read_bytes()[:200])
    save(masks / "empty.nii.gz", np.zeros((4, 4, 4), np.uint8))
    code = main(["measure", str(masks), "--out", str(tmp_path / "out"), "--json", "-q"])
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert code == 3
    assert found["cases"] == 2
    assert sorted(found["failed"]) == ["not-a-mask", "torn"]
    assert "2 of 4 cases failed" in told.err
    assert json.loads((tmp_path / "out" / "failed.json").read_text()) == found["failed"]
    assert [row["case_id"] for row in found["values"]["structures"]] == ["good"]
    assert any("empty: the mask is empty" in note for note in found["notes"])


def test_wrong_wishes_are_one_line(organs, tmp_path, capsys):
    mask = str(organs / "masks" / "p0_seg.nii.gz")
    for words, line in (
        (["--kind", "organ"], "--kind 'organ': expected one of auto, organs"),
        (["--mesh", "step"], "--mesh 'step': expected one of stl, ply, obj, vtk"),
        (["--with", "magic"], "--with 'magic'"),
        (["--spacing", "1,0"], "positive numbers"),
        (["--tolerance", "wide"], "not a list of numbers"),
        (["--labels", "1,x"], "not a list of whole numbers"),
        (["--image", str(tmp_path / "none.nii")], "there is no such file"),
        (["--referense", mask], "did you mean --reference?"),
        (["--kind", "cells"], "cells are measured on flat images"),
    ):
        code = main(["measure", mask, "--out", str(tmp_path / "out"), *words])
        told = capsys.readouterr().err
        assert code in (2, 3), words
        assert line in told, told
        assert len([one for one in told.splitlines() if one.startswith("vesalius: ")]) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        vesalius.measure(mask, out=tmp_path / "mine")
    with pytest.raises(ResourceError, match="more than --memory"):
        vesalius.measure(mask, out=tmp_path / "small", memory="60M")
    with pytest.raises(UsageError, match="unexpected keyword"):
        vesalius.measure(mask, out=tmp_path / "o", knd="organs")


def test_without_geometry_columns_are_in_pixels(tmp_path):
    smear = make_smear(seed=3, index=0)
    cells = smear.layers["instances"].astype(np.uint16)
    write_png(tmp_path / "smear.png", cells)
    plain = vesalius.measure(tmp_path / "smear.png", out=tmp_path / "a", page=False, kind="cells")
    table = plain.table("cells")
    assert "area_px2" in table
    assert not [name for name in table if "mm" in name]
    assert len(table) == len(np.unique(cells)) - 1
    said = vesalius.measure(tmp_path / "smear.png", out=tmp_path / "b", page=False, kind="cells", spacing=(0.5, 0.5))
    assert np.allclose(said.table("cells")["area_mm2"], table["area_px2"] * 0.25)
    assert "was given" in said.notes[0]


def test_the_smear_phantom_is_counted_exactly(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    smears = [make_smear(seed=11, index=index) for index in range(3)]
    for index, smear in enumerate(smears):
        write_png(masks / f"{index}.png", smear.layers["instances"].astype(np.uint16))
    cells = vesalius.measure(masks, out=tmp_path / "out", page=False, kind="cells").table("cells")
    for index, smear in enumerate(smears):
        mine = cells[cells["case_id"] == str(index)]
        assert len(mine) == len(smear.truth["cells"])
        whole = (mine["touches_border"] == 0).to_numpy()
        areas = np.array([cell["area_px"] for cell in smear.truth["cells"]])
        assert mine["area_px2"][whole].mean() == pytest.approx(areas[whole].mean(), rel=0.02)


def test_meshes_and_contours_are_written(organs, tmp_path):
    mask = organs / "masks" / "p0_seg.nii.gz"
    done = vesalius.measure(
        mask, out=tmp_path / "out", page=False, meshes=["stl", "ply"], contours=["rtstruct"], names="1=ball,2=box"
    )
    written = sorted(str(path.relative_to(done.out)) for path in done.out.rglob("*") if path.is_file())
    assert {"meshes/p0_seg/1-ball.stl", "meshes/p0_seg/2-box.stl", "meshes/p0_seg.ply", "contours/p0_seg.dcm"} <= set(
        written
    )
    meshes = done.table("meshes").set_index("label")
    assert (meshes["mesh_deviation_max_mm"] <= 0.76).all()
    voxels = done.table("structures").set_index("label")["voxel_volume_mm3"]
    assert meshes["mesh_volume_mm3"].to_numpy() == pytest.approx(voxels.to_numpy(), rel=0.03)


def test_a_structure_set_is_a_mask_of_its_image(organs, tmp_path):
    mask, image = organs / "masks" / "p0_seg.nii.gz", organs / "images" / "p0_0000.nii.gz"
    first = vesalius.measure(mask, out=tmp_path / "a", page=False, contours=["rtstruct"], names={1: "ball", 2: "box"})
    outlines = tmp_path / "a" / "contours" / "p0_seg.dcm"
    again = vesalius.measure(outlines, image=image, reference=mask, out=tmp_path / "b", page=False)
    assert again.table("structures")["name"].tolist() == ["ball", "box"]
    assert np.allclose(again.table("structures")["volume_mm3"], first.table("structures")["volume_mm3"])
    assert again.table("reference")["dice"].tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match="give its series with --image"):
        vesalius.measure(outlines, out=tmp_path / "c", page=False)


def test_ejection_fraction_of_two_phases(tmp_path):
    """Two balls: the ejection fraction is one minus the cube of the ratio of their radii."""
    spacing = (2.0, 1.0, 1.0)
    for phase, radius in (("ED", 24.0), ("ES", 18.0)):
        save(tmp_path / "heart" / f"p1_{phase}.nii.gz", ball(radius, spacing, (30, 60, 60)), spacing)
    done = vesalius.measure(tmp_path / "heart", kind="heart", out=tmp_path / "out", page=False)
    row = done.table("heart").iloc[0]
    assert row["ejection_fraction_percent"] == pytest.approx(100 * (1 - (18 / 24) ** 3), abs=1)
    assert row["end_diastolic_volume_ml"] == pytest.approx(4 / 3 * np.pi * 2.4**3, rel=0.02)
    (tmp_path / "heart" / "p1_ED.nii.gz").unlink()
    with pytest.raises(DataError, match="systole without one of diastole"):
        vesalius.measure(tmp_path / "heart", kind="heart", out=tmp_path / "out2", page=False)


def test_cardiothoracic_ratio(tmp_path):
    film = np.zeros((100, 120), np.uint8)
    film[20:80, 10:50] = film[20:80, 70:110] = 1
    film[50:80, 40:80] = 2
    write_png(tmp_path / "film.png", film)
    done = vesalius.measure(
        tmp_path / "film.png", kind="chest", names="1=lungs,2=heart", out=tmp_path / "o", page=False
    )
    assert done.table("chest").iloc[0]["cardiothoracic_ratio"] == pytest.approx(0.4)
    with pytest.raises(DataError, match="name them"):
        vesalius.measure(tmp_path / "film.png", kind="chest", out=tmp_path / "o2", page=False)


@pytest.mark.slow
def test_a_killed_command_goes_on(organs, tmp_path):
    """SIGKILL in the middle of a cohort; the second run measures the rest only and gives the same tables."""
    masks = tmp_path / "masks"
    for number in range(30):
        save(masks / f"m{number:02d}.nii.gz", ball(8 + number / 5, (1.0, 1.0, 1.0), (48, 48, 48)), (1.0, 1.0, 1.0))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vesalius.cli.main", "measure", str(masks), "--out", str(out), "--no-page"]
    process = subprocess.Popen([*command, "--workers", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and len(list((out / ".parts").glob("*.json"))) < 5:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (out / ".parts").glob("*.json")}
    assert kept
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = vesalius.measure(masks, out=tmp_path / "whole", page=False)
    assert (out / "structures.csv").read_bytes() == whole.tables["structures"]["csv"].read_bytes()


@pytest.mark.realdata
def test_ibsi_reference_values(real_data, tmp_path):
    """Every morphological and first-order value of the IBSI 1 digital phantom that has a reference, from the CSV."""
    folder = real_data / "ibsi"
    mask, image = folder / "ibsi1_phantom_mask.nii.gz", folder / "ibsi1_phantom_image.nii.gz"
    code = main(["measure", str(mask), "--image", str(image), "--out", str(tmp_path / "out"), "--no-page"])
    assert code == 0
    with open(tmp_path / "out" / "structures.csv", newline="") as file:
        row = next(csv.DictReader(file))
    columns = pd.read_csv(tmp_path / "out" / "dictionary.csv").dropna(subset=["ibsi"]).set_index("ibsi")["column"]
    checked = 0
    with open(folder / "ibsi1_digital_phantom_reference.csv", encoding="utf-8-sig") as file:
        for line in csv.DictReader(file, delimiter=";"):
            tag, reference, tolerance = line["tag"], line["reference value"], line["tolerance"]
            if not tag.startswith(("morph_", "loc_", "stat_", "ih_", "ivh_")) or not reference:
                continue
            value = float(row[columns[tag]])
            # A tolerance of 0 means equal in the digits that are given.
            digits = len(reference.lstrip("-0.").replace(".", ""))
            allowed = max(float(tolerance), 0.5 * 10 ** (np.floor(np.log10(abs(float(reference)))) - digits + 1))
            assert abs(value - float(reference)) <= allowed * 1.0001, f"{tag}: {value}, reference {reference}"
            checked += 1
    assert checked > 70


@pytest.mark.realdata
def test_nuclei_are_counted_as_in_the_maps(real_data, tmp_path):
    masks = sorted((real_data / "nuclei" / "labels").glob("*.png"))[:12]
    done = vesalius.measure(*masks, image=real_data / "nuclei" / "images", out=tmp_path / "out", kind="cells")
    from PIL import Image as Raster

    counts = [len(np.setdiff1d(np.unique(np.array(Raster.open(path))), [0])) for path in masks]
    assert done.table("images")["cell_count"].tolist() == counts
    assert "cell_intensity_mean_red_intensity" in done.table("cells")


@pytest.mark.realdata
def test_hippocampus_volumes_are_those_of_nibabel(real_data, tmp_path):
    masks = sorted((real_data / "hippocampus" / "labelsTr").glob("*.nii.gz"))[:4]
    done = vesalius.measure(*masks, out=tmp_path / "out", page=False)
    table = done.table("structures")
    assert set(table["name"]) == {"Anterior", "Posterior"}
    for path in masks:
        image = nibabel.load(path)
        values, size = np.asarray(image.dataobj), abs(np.linalg.det(image.affine[:3, :3]))
        mine = table[table["case_id"] == path.name[:-7]].set_index("label")["voxel_volume_mm3"]
        assert mine.to_dict() == pytest.approx({k: (values == k).sum() * size for k in (1, 2)})
