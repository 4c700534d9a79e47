"""Images and masks as NIfTI-1 files that any viewer of the field opens at the right place.

Affines are written as sform and, where the axes stand at right angles, also as qform (code 1, scanner). A grid without
position gets neither code, so that nobody takes a made-up place for a measured one.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic
from vesalius.core.geometry import Grid, affine_to_nifti
from vesalius.core.image import Image, Unit
from vesalius.core.prediction import Mask

_INTENT_VECTOR, _INTENT_LABEL = 1007, 1002
_SCANNER = 1
_MM = 2
_STORED_AS = {"bool": np.uint8, "float16": np.float32}
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
# dim of NIfTI-1 is int16.
_LONGEST_SIDE = 32767


def write_nifti(
    image: Image | Mask,
    path: str | Path,
    *,
    description: str = "",
    level: int = 3,
    like: str | Path | None = None,
) -> Path:
    """Write an image or a mask; ``path`` ends in ``.nii`` or ``.nii.gz``. The same input gives the same bytes.

    Parameters
    ----------
    image
        An `Image` ``(C, Y, X)`` or ``(C, Z, Y, X)``, or a `Mask` (label map, or one layer per region). One channel is
        written as a plain volume, 8-bit RGB as RGB24, other channels along the fifth axis (intent: vector).
    description
        Up to 79 Latin-1 characters for the header; put no names of persons there.
    like
        A NIfTI file on the same grid: both of its transforms with their codes and its units are kept to the bit.
    level
        Compression of ``.nii.gz``, 0 to 9. Higher levels than 3 cost much time and save little on images.

    Raises
    ------
    UsageError
        Another file ending, complex values, or a side longer than NIfTI-1 can say.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path}: a NIfTI file name ends in .nii or .nii.gz; rename the output")
    grid, channels, unit = _content(image)
    if channels.dtype.kind not in "iufb" or channels.dtype.itemsize > 8:
        raise UsageError(f"{path}: NIfTI is written from real numbers, got {channels.dtype}; convert them first")
    if max(channels.shape) > _LONGEST_SIDE:
        raise UsageError(f"{path}: NIfTI-1 sides are at most {_LONGEST_SIDE}, got {channels.shape}; split the image")
    stored = _stored(channels, unit)
    file_image = nib.Nifti1Image(stored, None, dtype=stored.dtype)
    if like is None or not _keep_geometry(file_image.header, like):
        _set_geometry(file_image.header, grid)
    if unit is Unit.LABEL:
        file_image.header["intent_code"] = _INTENT_LABEL
    elif stored.ndim == 5:
        file_image.header["intent_code"] = _INTENT_VECTOR
    file_image.header["descrip"] = description.encode("latin-1", "replace")[:79]
    with atomic(path) as file:
        if path.name.endswith(".gz"):
            # mtime and name are left out of the gzip header: equal content gives equal bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=level, mtime=0) as packed:
                file_image.to_stream(packed)
        else:
            whole: Any = file  # nibabel asks for an IOBase, which a BinaryIO is
            file_image.to_stream(whole)
    return path


def _content(image: Image | Mask) -> tuple[Grid, NDArray[Any], Unit]:
    """Grid, channels first, and unit."""
    if isinstance(image, Image):
        return image.grid, image.pixels, image.unit
    layers = image.values if image.values.ndim == image.grid.ndim + 1 else image.values[None]
    if tuple(layers.shape[1:]) != image.grid.shape:
        raise UsageError(
            f"mask of {image.case_id} has shape {image.values.shape}, its grid {image.grid.shape}; "
            "put it on its own grid before writing"
        )
    return image.grid, layers, Unit.LABEL


def _stored(channels: NDArray[Any], unit: Unit) -> NDArray[Any]:
    """``(C, [Z,] Y, X)`` in NIfTI's order: ``(X, Y[, Z])``, RGB records, or ``(X, Y, Z, 1, C)``."""
    channels = channels.astype(_STORED_AS.get(channels.dtype.name, channels.dtype.newbyteorder("=")), copy=False)
    if channels.shape[0] == 1:
        return channels[0].T
    if unit is Unit.RED_GREEN_BLUE and channels.shape[0] == 3 and channels.dtype == np.uint8:
        return np.ascontiguousarray(np.moveaxis(channels, 0, -1)).view(_RGB)[..., 0].T
    moved = channels.T
    if moved.ndim == 3:
        moved = moved[:, :, None]
    return moved[:, :, :, None, :]


_PLACE = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def _keep_geometry(header: Any, like: str | Path) -> bool:
    """Copy the place and units of another file; False if it has other sides (a scanner's file of several volumes)."""
    other: Any = nib.load(like).header
    sides = min(3, int(header["dim"][0]))
    if any(int(header["dim"][axis]) != int(other["dim"][axis]) for axis in range(1, sides + 1)):
        return False
    if not isinstance(other, nib.Nifti1Header):
        return False
    header.set_slope_inter(1.0, 0.0)
    for name in _PLACE:
        header[name] = other[name]
    header["pixdim"][: sides + 1] = other["pixdim"][: sides + 1]
    return True


def _set_geometry(header: Any, grid: Grid) -> None:
    header.set_slope_inter(1.0, 0.0)
    if grid.spacing_mm is not None:
        header["xyzt_units"] = _MM
        header["pixdim"][1 : grid.ndim + 1] = grid.spacing_mm[::-1]
    if grid.affine is None:
        header["sform_code"] = header["qform_code"] = 0
        return
    affine = affine_to_nifti(grid.affine)
    header.set_sform(affine, code=_SCANNER)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() < 1e-6:
        header.set_qform(affine, code=_SCANNER)
        # set_qform writes the steps of all three axes; a two-dimensional file keeps the slice step of its affine.
    else:
        header["qform_code"] = 0
