"""`vesalius demo segment`: the heads it makes, and the journey with a network too small to be good."""

import json
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest

from vesalius.core.progress import Silent
from vesalius.data.discover import discover
from vesalius.io.dicom_seg_out import mask_on_grid
from vesalius.io.open import open_image
from vesalius.serve import demonstration, demonstration_segment
from vesalius.serve.demonstration_segment import PROTOCOLS, STRUCTURES, make_head, write_cohort

QUICK = {
    "optim.max_steps": 3,
    "optim.precision": "fp32",
    "model.patch": [24, 24, 24],
    "model.strides": [[1, 1, 1], [2, 2, 2]],
    "model.features": [4, 8],
    "predict.overlap": 0.1,
    "predict.views": [],
    "predict.backend": "torch",
}


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """The whole journey on eight heads, and where it went."""
    out = tmp_path_factory.mktemp("demo")
    return out, demonstration_segment.run(out, Silent(), command=None, cases=8, settings=QUICK)


def test_the_protocols_differ_as_scanners_do():
    heads = [make_head(5, index) for index in range(len(PROTOCOLS))]
    grids = [head.case.image().grid for head in heads]
    thick = [int(np.argmax(np.abs(grid.affine[:3, 0]))) for grid in grids]  # patient axis across the slices
    assert sorted(set(thick)) == [0, 1, 2]
    assert len({tuple(np.round(grid.spacing_mm, 3)) for grid in grids}) >= 3


@pytest.mark.parametrize("index", range(4))
def test_masks_hold_the_volumes_of_the_formula(index):
    head = make_head(11, index)
    voxel_ml = float(np.prod(head.case.image().grid.spacing_mm)) / 1000
    counts = np.bincount(np.asarray(head.mask).ravel(), minlength=len(STRUCTURES)) * voxel_ml
    truth = head.truth["volumes_ml"]
    # The label of a voxel is what fills half of it: sums over large bodies agree with the formula.
    assert counts[1:].sum() == pytest.approx(truth["brain"], rel=0.02)
    assert counts[2:].sum() == pytest.approx(truth["white"], rel=0.03)
    assert counts[3] == pytest.approx(truth["ventricles"], rel=0.1)


def test_the_cohort_is_read_as_nnunet_with_a_patient_per_case(tmp_path):
    write_cohort(tmp_path / "heads", 4, Silent())
    found = discover(tmp_path / "heads", patient_pattern=demonstration_segment.PATIENT)
    assert (found.layout, found.task, len(found)) == ("nnunet", "segment", 4)
    assert found.labels.names == STRUCTURES
    assert found.cases["patient_id"].nunique() == 4
    assert found.patient_source == "pattern"


@pytest.mark.slow
def test_new_patients_are_dicom_and_in_no_part_of_the_cohort(journey):
    out, _ = journey
    known = {tuple(make_head(demonstration_segment.SEED, index).truth["volumes_ml"].values()) for index in range(3)}
    for index in range(demonstration_segment.NEW_CASES):
        phantom = make_head(demonstration_segment.SEED + 1, index)
        folder = next((out / "new-patients").glob(f"new-{index}-*"))
        image = open_image(folder)
        assert image.grid.same_place(phantom.case.image().grid)
        assert image.meta["modality"] == "MR"
        assert tuple(phantom.truth["volumes_ml"].values()) not in known
        header = pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)
        assert header.PatientID == phantom.case.patient_id


@pytest.mark.slow
def test_the_journey_leaves_what_it_says(journey):
    out, found = journey
    for name in ("inspect.html", "run/plan.yaml", "run/report/index.html", "run/bundle/bundle.json"):
        assert (out / name).is_file(), name
    for line in found["lines"]:
        path = re.search(r"^(?:data page|plan|report)\s+(\S+)", line)
        assert path is None or Path(path[1]).stat().st_size > 0
    assert set(found["per_class"]) == set(STRUCTURES[1:])
    assert sum(" ml (" in line for line in found["lines"]) == demonstration_segment.NEW_CASES


@pytest.mark.slow
def test_the_volumes_it_prints_are_those_of_its_masks(journey):
    out, found = journey
    shown = [re.match(r"  (new-\S+) +([\d.]+) ml", line) for line in found["lines"]]
    shown = {one[1]: float(one[2]) for one in shown if one}
    for name, volume in shown.items():
        mask = open_image(out / "masks" / f"{name}.nii.gz")
        count = int((mask.pixels[0] == STRUCTURES.index("ventricles")).sum())
        assert count * float(np.prod(mask.grid.spacing_mm)) / 1000 == pytest.approx(volume, abs=0.051)
        assert json.loads((out / "masks" / f"{name}.json").read_text())["kind"] == "mask"


@pytest.mark.slow
def test_the_dicom_masks_lie_on_the_voxels_of_their_series(journey):
    out, found = journey
    for entry in found["predictions"]:
        scan = open_image(entry["source"])
        segments = mask_on_grid(open_image(out / "masks" / f"{entry['case_id']}.dcm"), scan.grid)
        nifti = open_image(out / "masks" / f"{entry['case_id']}.nii.gz")
        assert nifti.grid.shape == scan.grid.shape
        np.testing.assert_allclose(nifti.grid.affine, scan.grid.affine, atol=1e-3)
        np.testing.assert_array_equal(segments.pixels[0], nifti.pixels[0])


def test_the_command_knows_the_journey(monkeypatch, tmp_path):
    seen = []

    def journey(out, progress, *, command):
        seen.append((out, command))
        return {"lines": []}

    monkeypatch.setattr(demonstration_segment, "run", journey)
    demonstration.run("segment", tmp_path, Silent(), force=True, command=["vesalius", "demo", "segment"])
    assert seen == [(tmp_path, ["vesalius", "demo", "segment"])]
