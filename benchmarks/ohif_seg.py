"""DICOM segmentations as OHIF opens them: ``python benchmarks/ohif_seg.py`` (needs node and npm, and a package index).

Masks on axial, coronal, sagittal, oblique and turned grids, plain and overlapping, are written beside the series they
belong to. Then the code of the viewer reads them in node: `createFromDICOMSegBuffer` of ``@cornerstonejs/adapters``,
with what OHIF knows of each image. Every voxel must have its structure in the image in which it lies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.io.dicom_out import write_dicom_series
from vesalius.io.dicom_seg_out import write_dicom_seg

PACKAGES = (
    "@cornerstonejs/adapters@3.33.5",
    "@cornerstonejs/core@3.33.5",
    "@cornerstonejs/tools@3.33.5",
    "@kitware/vtk.js@32",
    "@babel/runtime@7",
    "esbuild@0.28",
)
SHAPE, STEPS, ORIGIN = (6, 11, 13), (3.0, 0.7, 0.9), (-100, 250, 1400)
# Directions of the array axes (z, y, x) in LPS, a further turn in degrees, and axes that run the other way.
GRIDS = {
    "axial": ([(0, 0, 1), (0, 1, 0), (1, 0, 0)], (0, 0, 0), (1, 1, 1)),
    "coronal": ([(0, 1, 0), (0, 0, -1), (1, 0, 0)], (0, 0, 0), (1, 1, 1)),
    "sagittal": ([(1, 0, 0), (0, 0, -1), (0, 1, 0)], (0, 0, 0), (1, 1, 1)),
    "oblique": ([(0, 0, 1), (0, 1, 0), (1, 0, 0)], (20, -30, 75), (-1, 1, 1)),
    "turned": ([(0, 0, 1), (0, 1, 0), (1, 0, 0)], (0, 0, 0), (-1, -1, 1)),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ohif"))
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cases = [case(work / f"{name}-{kind}", name, kind) for name in GRIDS for kind in ("plain", "overlapping")]
    (work / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    if not (work / "node_modules").is_dir():
        (work / "package.json").write_text("{}", encoding="utf-8")
        # The viewer's packages ask for several versions of each other.
        subprocess.run(["npm", "install", "--silent", "--legacy-peer-deps", *PACKAGES], cwd=work, check=True)
    script = Path(__file__).with_name("ohif_seg.js")
    (work / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    bundle = ["--bundle", "--platform=node", "--conditions=import", "--format=cjs", "--outfile=all.cjs",
              "--log-level=error", "--external:@cornerstonejs/codec-*", "--external:@icr/*"]  # fmt: skip
    subprocess.run(["npx", "esbuild", script.name, *bundle], cwd=work, check=True)
    subprocess.run(["node", "all.cjs"], cwd=work, check=True)


def case(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """A series and its mask on disk, and what every pixel of every image should say."""
    axes, turn, flips = GRIDS[name]
    affine = np.eye(4)
    turned = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.array(axes, float).T
    affine[:3, :3], affine[:3, 3] = turned * STEPS * flips, ORIGIN
    grid, draw = Grid(SHAPE, affine), np.random.default_rng(1)
    labels = draw.integers(0, 4, SHAPE).astype(np.uint8)
    labels[2] = 0
    values = np.stack([labels > 0, labels > 1]) if kind == "overlapping" else labels
    names = Labels(("background", *(f"part {k}" for k in range(1, 3 if kind == "overlapping" else 4))))
    pixels = draw.integers(-900, 900, (1, *SHAPE)).astype(np.int16)
    files = write_dicom_series(Image(grid, pixels), folder / "series", meta={"patient_id": "P"})
    path = write_dicom_seg(folder / "seg.dcm", values, grid, names, source=files, algorithm="U-Net", version="1")
    headers = [pydicom.dcmread(file) for file in files]
    across = np.cross(*np.reshape(headers[0].ImageOrientationPatient, (2, 3)).astype(float))
    headers.sort(key=lambda one: float(np.dot(across, np.array(one.ImagePositionPatient, float))))
    layers = values.astype(int) if kind == "overlapping" else labels[None].astype(int)
    return {
        "name": folder.name,
        "seg": str(path),
        "layers": kind == "overlapping",
        "truth": [layers[:, *index_of(one, grid)].reshape(len(layers), -1).tolist() for one in headers],
        "images": [image(number, one) for number, one in enumerate(headers)],
    }


def index_of(header: Any, grid: Grid) -> tuple[NDArray[np.intp], ...]:
    """Index in the grid of every pixel of an image, from its position in the patient (PS3.3 C.7.6.2.1.1)."""
    along, down = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
    rows, columns = np.mgrid[: header.Rows, : header.Columns][..., None]
    step_down, step_along = (float(step) for step in header.PixelSpacing)
    points = np.array(header.ImagePositionPatient, float) + rows * down * step_down + columns * along * step_along
    return tuple(np.moveaxis(np.rint(grid.to_index(points)).astype(np.intp), -1, 0))


def image(number: int, header: Any) -> dict[str, Any]:
    """What the viewer knows of an image."""
    return {
        "id": f"image-{number}",
        "sop": header.SOPInstanceUID,
        "series": header.SeriesInstanceUID,
        "frame": header.FrameOfReferenceUID,
        "rows": header.Rows,
        "columns": header.Columns,
        "orientation": [float(v) for v in header.ImageOrientationPatient],
        "position": [float(v) for v in header.ImagePositionPatient],
        "spacing": [float(v) for v in header.PixelSpacing],
    }


if __name__ == "__main__":
    main()
