"""DICOM segmentations as 3D Slicer opens them: by dcmqi, whose ``segimage2itkimage`` its importer calls."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.io.dicom_out import write_dicom_series
from vesalius.io.dicom_seg_out import write_dicom_seg

if importlib.util.find_spec("dcmqi") is None:
    pytest.skip("dcmqi is not installed", allow_module_level=True)

PROGRAM = Path(sys.executable).with_name("segimage2itkimage")
LABELS = Labels(("background", "Liver", "liver tumour", "Kidney (left)"))
# Directions of the array axes (z, y, x) in LPS.
PLANES = {
    "axial": [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
    "coronal": [(0, 1, 0), (0, 0, -1), (1, 0, 0)],
    "sagittal": [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
}


def grid_of(plane, turn=(0, 0, 0), flips=(1, 1, 1)):
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.array(PLANES[plane], float).T
    affine = np.eye(4)
    affine[:3, :3] = axes * (3.0, 0.7, 0.9) * flips
    affine[:3, 3] = -100, 250, 1400
    return Grid((6, 11, 13), affine)


def on_grid(image, grid):
    """The mask of a file of dcmqi, voxel by voxel where it lies on the grid."""
    points = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0)) * (-1, -1, 1)  # to LPS
    index = grid.to_index(points)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    found = np.zeros(grid.shape, bool)
    found[tuple(np.rint(index).astype(int).T)] = True
    return found


@pytest.mark.parametrize(
    ("plane", "turn", "flips"),
    [
        ("axial", (0, 0, 0), (1, 1, 1)),
        ("coronal", (0, 0, 0), (1, 1, 1)),
        ("sagittal", (0, 0, 0), (1, 1, 1)),
        ("axial", (20, -30, 75), (-1, 1, 1)),
        ("axial", (0, 0, 0), (-1, -1, 1)),
    ],
)
@pytest.mark.parametrize("with_series", [False, True])
def test_every_voxel_is_where_it_was(plane, turn, flips, with_series, tmp_path):
    grid, draw = grid_of(plane, turn, flips), np.random.default_rng(1)
    labels = draw.integers(0, 4, grid.shape).astype(np.uint8)
    labels[2] = 0
    source = None
    if with_series:
        pixels = draw.integers(-900, 900, (1, *grid.shape)).astype(np.int16)
        source = write_dicom_series(Image(grid, pixels), tmp_path / "series", meta={"patient_id": "P"})
    path = write_dicom_seg(tmp_path / "a.dcm", labels, grid, LABELS, source=source, algorithm="U-Net", version="1")
    done = subprocess.run(
        [PROGRAM, "--inputDICOM", path, "--outputDirectory", tmp_path, "--outputType", "nifti", "--prefix", "s"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "absent" not in said
    about = json.loads((tmp_path / "s-meta.json").read_text(encoding="utf-8"))
    told = {one["labelID"]: one for group in about["segmentAttributes"] for one in group}
    assert [told[k]["SegmentLabel"] for k in (1, 2, 3)] == list(LABELS.names[1:])
    assert told[1]["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Liver"
    for number in (1, 2, 3):
        found = on_grid(nib.load(tmp_path / f"s-{number}.nii.gz"), grid)
        np.testing.assert_array_equal(found, labels == number)
