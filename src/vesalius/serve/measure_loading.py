"""A mask, its image and its reference from the door, checked against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import FileError, GeometryError
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image
from vesalius.data.listing import split_suffix
from vesalius.data.mask_values import whole_values
from vesalius.data.truth_files import segment_names
from vesalius.io.open import open_image
from vesalius.serve.measure_cases import STRUCTURE_SET, MeasureCase, dicom_class

# A mask in colour has one colour per class; more than this many is a photograph.
_MOST_COLOURS = 256
_PLACE_TOLERANCE_MM = 0.05


@dataclass(frozen=True, eq=False)
class Loaded:
    """One case, ready to be measured.

    Parameters
    ----------
    labels
        ``(Y, X)`` or ``(Z, Y, X)`` of whole numbers, 0 for background; ``layers`` holds overlapping structures instead.
    names
        Names of label values as far as they are known.
    image, reference
        On the same grid.
    """

    case_id: str
    source: str
    grid: Grid
    labels: NDArray[Any]
    layers: dict[int, NDArray[Any]]
    names: dict[int, str]
    image: Image | None = None
    reference: NDArray[Any] | None = None
    systole: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """mm per axis, or None."""
        return self.grid.spacing_mm

    def layer_maps(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(label, a label map of it alone) of every overlapping structure."""
        for value, layer in self.layers.items():
            yield value, np.where(layer, value, 0).astype(self.labels.dtype)

    def name_of(self, value: int) -> str:
        """The name of a label value, or the value as text."""
        return self.names.get(int(value), str(int(value)))


def load(
    case: MeasureCase,
    *,
    names: Mapping[int, str],
    only: Sequence[int] = (),
    spacing: Sequence[float] | None = None,
) -> Loaded:
    """Open a case.

    Raises
    ------
    FileError
        If the mask is no label image, or image and reference lie on another grid.
    """
    opened = _mask(case.mask, case.image)
    labels, layers, found = _labels_of(opened, case.mask)
    notes = [f"{case.case_id}: {note.text}" for note in opened.record if note.act is not Act.NOTED]
    grid = opened.grid
    if spacing is not None:
        if grid.spacing_mm is None:
            grid = Grid(grid.shape, spacing=_fitting(spacing, grid, case.mask))
            notes.append(f"{case.case_id}: the file has no physical size; {list(spacing)} mm was given")
        elif not np.allclose(grid.spacing_mm, _fitting(spacing, grid, case.mask), rtol=1e-3):
            raise GeometryError(
                case.mask,
                found=f"--spacing {list(spacing)} but the file says {_steps(grid)} mm",
                expected="one truth",
                do="leave --spacing out, or correct the file",
            )
    if only:
        labels, layers = _chosen(labels, layers, only)
        absent = [value for value in only if value not in layers and not (labels == value).any()]
        notes += [f"{case.case_id}: the mask has no label {', '.join(map(str, absent))}"] if absent else []
    image = None if case.image is None else _image(case.image, opened.grid, case.mask)
    reference = None if case.reference is None else _reference(case.reference, opened.grid, case.mask, layers, only)
    return Loaded(
        case.case_id, case.mask, grid, labels, layers, {**found, **names}, image, reference, case.systole, notes
    )


def _mask(path: str, image: str | None, grid: Grid | None = None) -> Image:
    """A label image; the regions of an RT Structure Set become voxels of the image that they outline."""
    from vesalius.io.rtstruct import label_image, read_rtstruct

    if dicom_class(Path(path)) != STRUCTURE_SET:
        return open_image(path)
    if grid is None:
        if image is None:
            raise FileError(
                path,
                found="an RT Structure Set, which has outlines and no voxels",
                expected="the image that it outlines as well",
                do="give its series with --image",
            )
        grid = open_image(image).grid
    return label_image(read_rtstruct(path), grid)


def _fitting(spacing: Sequence[float], grid: Grid, path: str) -> tuple[float, ...]:
    if len(spacing) != grid.ndim:
        raise GeometryError(
            path,
            found=f"{grid.ndim} axes",
            expected=f"as many as --spacing has ({len(spacing)})",
            do="give one step an axis",
        )
    return tuple(float(step) for step in spacing)


def _labels_of(image: Image, path: str) -> tuple[NDArray[Any], dict[int, NDArray[Any]], dict[int, str]]:
    """The label map of an opened mask, overlapping layers, and names that the file holds."""
    pixels, names = image.pixels, segment_names(image)
    if pixels.shape[0] == 1:
        return whole_values(pixels[0], path), {}, names
    if image.unit.value == "label" or names:
        return _from_segments(pixels, path, names)
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4):
        return _from_palette(path) or _from_colours(pixels, path)
    raise FileError(
        path,
        found=f"{pixels.shape[0]} channels that are not segments",
        expected="one channel of label values",
        do="write a label map",
    )


def _chosen(
    labels: NDArray[Any], layers: Mapping[int, NDArray[Any]], only: Sequence[int]
) -> tuple[NDArray[Any], dict[int, NDArray[Any]]]:
    """Only the labels asked for; layers that no longer overlap become one label map, whole."""
    if not layers:
        return np.where(np.isin(labels, list(only)), labels, 0).astype(labels.dtype), {}
    kept = {value: layer for value, layer in layers.items() if value in only}
    return _merged(kept, labels.shape, labels.dtype)


def _merged(
    layers: dict[int, NDArray[Any]], shape: tuple[int, ...], dtype: Any
) -> tuple[NDArray[Any], dict[int, NDArray[Any]]]:
    """One label map, later layers over earlier ones, and the layers themselves where they overlap."""
    merged = np.zeros(shape, dtype)
    overlap = False
    for value, mask in layers.items():
        overlap = overlap or bool((merged[mask] > 0).any())
        merged[mask] = value
    return merged, layers if overlap else {}


def _from_segments(
    pixels: NDArray[Any], path: str, names: dict[int, str]
) -> tuple[NDArray[Any], dict[int, NDArray[Any]], dict[int, str]]:
    """One label map where segments do not overlap, else one layer each."""
    values = sorted(names) if len(names) == pixels.shape[0] else list(range(1, pixels.shape[0] + 1))
    masks = [whole_values(layer, path) > 0 for layer in pixels]
    merged, layers = _merged(dict(zip(values, masks, strict=True)), pixels.shape[1:], np.min_scalar_type(max(values)))
    return merged, layers, names


def _from_colours(pixels: NDArray[Any], path: str) -> tuple[NDArray[Any], dict[int, NDArray[Any]], dict[int, str]]:
    """A mask in colour: grey if the channels are equal, else the label of a colour is 0xRRGGBB, black 0."""
    colour = pixels[:3]
    if np.array_equal(colour[0], colour[1]) and np.array_equal(colour[0], colour[2]):
        return whole_values(colour[0], path), {}, {}
    code = (colour[0].astype(np.int64) << 16) | (colour[1].astype(np.int64) << 8) | colour[2]
    found = np.unique(code)
    if len(found) > _MOST_COLOURS or pixels.dtype != np.uint8:
        raise FileError(
            path,
            found=f"{len(found)} colours, which looks like a picture",
            expected="a mask with one colour per class",
            do="give the mask as MASK and the picture as --image",
        )
    # The colour itself is the label: counting the colours of each file would give one colour several numbers.
    return code.astype(np.uint32), {}, {value: f"#{value:06x}" for value in found.tolist() if value}


def _from_palette(path: str) -> tuple[NDArray[Any], dict[int, NDArray[Any]], dict[int, str]] | None:
    """The indices of a PNG with a palette, which are the classes (as of Pascal VOC), where index 0 is black."""
    if split_suffix(path)[1] != ".png":
        return None
    from PIL import Image as Raster

    with Raster.open(path) as file:
        palette = file.getpalette() if file.mode == "P" else None
        if palette is None or any(palette[:3]):
            return None
        labels = np.array(file)
    names = {}
    for value in np.unique(labels[labels > 0]).tolist():
        red, green, blue = palette[3 * value : 3 * value + 3]
        names[value] = str(value) if red == green == blue else f"#{red:02x}{green:02x}{blue:02x}"
    return labels, {}, names


def _image(path: str, grid: Grid, mask: str) -> Image:
    image = open_image(path)
    _same_grid(path, image.grid, mask, grid, "image")
    return image


def _reference(path: str, grid: Grid, mask: str, layers: Mapping[int, Any], only: Sequence[int]) -> NDArray[Any]:
    opened = _mask(path, None, grid)
    _same_grid(path, opened.grid, mask, grid, "reference")
    labels, other, _ = _labels_of(opened, path)
    if only:
        labels, other = _chosen(labels, other, only)
    if layers or other:
        raise FileError(
            path if other else mask,
            found="segments that overlap",
            expected="one label per voxel when masks are compared",
            do="compare the segments one by one with --labels",
        )
    return labels


def _same_grid(path: str, grid: Grid, mask_path: str, mask: Grid, what: str) -> None:
    """Refuse an image or reference that lies elsewhere than its mask; a file without geometry needs the same shape."""
    if grid.shape != mask.shape:
        raise GeometryError(
            path,
            found=f"shape {'x'.join(map(str, grid.shape))}",
            expected=f"that of the mask {mask_path}, {'x'.join(map(str, mask.shape))}",
            do=f"resample the {what} to the mask",
        )
    both = grid.affine is not None and mask.affine is not None
    if both and not grid.same_place(mask, tolerance_mm=_PLACE_TOLERANCE_MM):
        raise GeometryError(
            path,
            found=f"another place, direction or spacing ({_steps(grid)} mm, {_ends(grid)})",
            expected=f"that of the mask {mask_path} ({_steps(mask)} mm, {_ends(mask)})",
            do=f"resample the {what} to the mask",
        )
    if (
        not both
        and grid.spacing_mm
        and mask.spacing_mm
        and not np.allclose(grid.spacing_mm, mask.spacing_mm, rtol=1e-3)
    ):
        raise GeometryError(
            path,
            found=f"spacing {_steps(grid)} mm",
            expected=f"that of the mask {mask_path}, {_steps(mask)} mm",
            do="correct the one that is wrong",
        )


def _steps(grid: Grid) -> str:
    return "x".join(f"{step:.4g}" for step in grid.spacing_mm or ())


def _ends(grid: Grid) -> str:
    """Where the first and the last voxel lie: two turned grids may share one of them."""
    ends = ([0.0] * grid.ndim, [side - 1.0 for side in grid.shape])
    first, last = ("(" + ", ".join(f"{value:.2f}" for value in grid.to_patient(end)) + ")" for end in ends)
    return f"first voxel {first}, last {last}"
