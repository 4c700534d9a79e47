"""Where outlines and surfaces of a prediction lie, against the NIfTI mask of the same prediction read by nibabel."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from vesalius.core.labels import Labels
from vesalius.predict.bundle import Bundle
from vesalius.serve import jobs
from vesalius.tasks.segment import Segment

LABELS = Labels(("background", "bright"))
LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """A model that learnt in a second to find what is bright."""
    model = {"name": "unet", "features": [4, 8], "strides": [[1] * 3, [2] * 3], "patch": [16] * 3, "norm": "batch"}
    torch.manual_seed(0)
    network = Segment(LABELS).network(model, dims=3, inputs=1, size=[16] * 3)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    draw = np.random.default_rng(0)
    network.train()
    for _ in range(150):
        smooth = ndimage.gaussian_filter(draw.normal(0, 1, (4, 1, 16, 16, 16)), (0, 0, 2, 2, 2))
        inside = torch.from_numpy(smooth > draw.uniform(-1, 3, (4, 1, 1, 1, 1)) * smooth.std())
        x = 2.7 * inside + 0.05 * torch.randn(4, 1, 16, 16, 16)
        outputs = network(x)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        loss = torch.nn.functional.cross_entropy(logits, inside[:, 0].long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    spec = {"dims": 3, "channels": 1, "orient": True, "crop": "none", "spacing_mm": None, "scale": 1.0,
            "window": None, "normalise": {"kind": "fixed", "mean": [100.0], "std": [300.0]}}  # fmt: skip
    tile = {"patch": [16] * 3, "overlap": 0.5, "batch": 2}
    made = Bundle("segment", LABELS, spec, model, [network.eval().state_dict()],
                  inference={"tile": tile, "backend": "torch"})  # fmt: skip
    folder = tmp_path_factory.mktemp("bright") / "bundle"
    made.save(folder)
    return folder


AFFINES = {
    "axial": np.diag([1.0, 1.0, 1.0, 1.0]),
    "anisotropic": np.diag([0.8, 0.8, 3.0, 1.0]),
    "flipped": np.diag([-1.0, 1.0, -2.0, 1.0]),
    "sagittal": np.array([[0, 0, 1.5, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]),
    "oblique": np.eye(4),
}
AFFINES["oblique"][:3, :3] = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix() * [1.0, 1.2, 2.0]


def corners_of(path):
    """Corners of the triangles of a binary STL file."""
    data = path.read_bytes()
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
    return np.frombuffer(data, record, offset=84)["corners"].reshape(-1, 3).astype(np.float64)


@pytest.mark.parametrize("name", AFFINES)
def test_outlines_and_surfaces_lie_where_the_mask_lies(bright, tmp_path, name):
    affine = AFFINES[name].copy()
    affine[:3, 3] = [12.0, -30.0, 7.0]
    shape = np.array([26, 22, 18])
    # One off-centre ball of 8 mm, so that a swapped or mirrored axis shows.
    centre = nib.affines.apply_affine(affine, shape * [0.4, 0.6, 0.45])
    places = nib.affines.apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    ball = np.linalg.norm((places - centre) / [1.0, 0.8, 0.6], axis=-1) < 6.5
    values = np.where(ball, 900.0, 100.0) + np.random.default_rng(0).normal(0, 10, tuple(shape))
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    done = jobs.predict(bright, path, out=tmp_path / "out", device="cpu", formats=("nifti", "rtstruct", "mesh"))
    files = done.predictions[0]["files"]
    mask = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj) == 1
    overlap = 2 * (mask & ball).sum() / (mask.sum() + ball.sum())
    assert overlap > 0.7, overlap  # the model found the ball, or the rest says nothing
    voxels = nib.affines.apply_affine(affine, np.argwhere(mask)) * LPS
    step = np.abs(affine[:3, :3]).sum(axis=1).max()
    (surface,) = [corners_of(tmp_path / "out" / one) for one in files if one.endswith(".stl")]
    (outline,) = [pydicom.dcmread(tmp_path / "out" / one) for one in files if one.startswith("contours")]
    points = np.concatenate([
        np.reshape([float(v) for v in contour.ContourData], (-1, 3))
        for contour in outline.ROIContourSequence[0].ContourSequence
    ])  # fmt: skip
    for found in (surface, points):
        assert np.abs(found.min(axis=0) - voxels.min(axis=0)).max() < 1.1 * step
        assert np.abs(found.max(axis=0) - voxels.max(axis=0)).max() < 1.1 * step
