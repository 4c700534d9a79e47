"""Files that hold the truth of a segmentation, opened as what they show: label values, colours or segments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import FileError, UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.core.labels import Labels
from vesalius.data.listing import split_suffix
from vesalius.io.sniff import Kind, sniff

CHANNELS = "channels"
_RASTER = (Kind.PNG, Kind.JPEG, Kind.TIFF, Kind.BMP, Kind.GIF)
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66"
_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A truth as it is stored.

    Parameters
    ----------
    pixels
        ``(1, *S)`` of values (0xRRGGBB where `coloured`), or with `overlap` ``(N, *S)``, one per number of `segments`.
    segments
        Numbers of the segments, in the order of `pixels` (with `overlap`) or as values in it.
    partial
        Whether background slices may be absent from the file.
    """

    path: str
    grid: Grid
    pixels: NDArray[Any]
    coloured: bool = False
    overlap: bool = False
    segments: tuple[int, ...] = ()
    partial: bool = False


def open_member(path: str | Path) -> Image:
    """`open_image`, and beyond it single pages of a TIFF (``file.tif#3``) and ``file.nii.gz#channels``.

    The fourth axis of a NIfTI is time unless somebody says that it holds channels, as a Decathlon description does.

    Raises
    ------
    FileError, UsageError
        As `open_image`, or if there is no such page.
    """
    from vesalius.io.open import open_image

    text = str(path)
    place, mark, member = text.rpartition("#")
    if not mark or Path(text).exists() or not Path(place).is_file():
        return open_image(text)
    if member == CHANNELS:
        from vesalius.io.nifti import read_nifti

        return read_nifti(place, fourth="channels")
    if member.isdecimal() and sniff(Path(place)) is Kind.TIFF:
        return _page(_stack(place, Path(place).stat().st_mtime_ns), int(member), text)
    return open_image(text)


def with_channels(path: str | Path, channels: int) -> str:
    """`path`, as ``file.nii.gz#channels`` where it is a NIfTI whose fourth axis is as long as a model has channels."""
    if channels < 2 or not Path(path).is_file() or sniff(Path(path)) is not Kind.NIFTI:
        return str(path)
    import nibabel as nib

    try:
        shape = nib.load(path).shape  # type: ignore[attr-defined]  # every image that nibabel opens has a shape
    except (nib.filebasedimages.ImageFileError, OSError, ValueError, EOFError):
        return str(path)  # what is wrong with it is said when it is read
    return f"{path}#{CHANNELS}" if len(shape) == 4 and shape[3] == channels else str(path)


@lru_cache(maxsize=2)
def _stack(path: str, changed: int) -> Image:
    """A stack, kept while its pages and those of its labels are asked for one by one; `changed` marks a new file."""
    from vesalius.io.tiff import read_tiff

    return read_tiff(path, palette="indices")


def _page(stack: Image, page: int, path: str) -> Image:
    pages = stack.pixels.shape[1] if stack.grid.ndim == 3 else 1
    if page >= pages:
        raise UsageError(f"{path}: there is no such page; the file holds {pages}, from #0")
    if stack.grid.ndim == 2:
        return stack
    pixels = np.ascontiguousarray(stack.pixels[:, page])
    return Image(Grid(stack.grid.shape[1:]), pixels, stack.unit, stack.channels, (), stack.meta, path)


def open_mask(path: str | Path, grid: Grid, labels: Labels) -> MaskFile:
    """The truth at `path`.

    Parameters
    ----------
    grid
        Of the image; outlines become voxels of it.
    labels
        For annotations that name their classes (COCO).

    Raises
    ------
    FileError
        If the file holds no label values.
    """
    text = str(path)
    place = Path(text if Path(text).exists() else text.partition("#")[0])
    if not place.exists():
        raise UsageError(f"{path}: there is no such file; check the path")
    if place.suffix.lower() == ".json":
        from vesalius.data.truth_coco import coco_mask

        return MaskFile(text, grid, coco_mask(place, text.rpartition("#")[2], grid, labels)[None])
    kind = sniff(place)
    if kind is Kind.DICOM:
        return _dicom_mask(place, grid)
    image = _raster(text, place) if kind in _RASTER else open_member(text)
    return _as_mask(image, text)


def _raster(text: str, place: Path) -> Image:
    """A picture with a palette by its indices (as of Pascal VOC) if index 0 is black, and few bits as they were."""
    from vesalius.io.raster import read_raster

    if text != str(place):
        return open_member(text)
    image = read_raster(place, palette="indices" if _black_first(place) else "colours")
    steps = _stretched(place)
    if steps > 1 and image.pixels.shape[0] == 1:
        return Image(image.grid, image.pixels // steps, image.unit, image.channels, image.record, image.meta, text)
    return image


def _black_first(path: Path) -> bool:
    if split_suffix(path.name)[1] not in (".png", ".bmp", ".tif", ".tiff", ".gif"):
        return False
    from PIL import Image as Raster

    try:
        with Raster.open(path) as file:
            palette = file.getpalette() if file.mode == "P" else None
    except (OSError, ValueError, SyntaxError):
        return False  # the reader says what is wrong with it
    return palette is not None and not any(palette[:3])


def _stretched(path: Path) -> int:
    """What the values of a PNG of 1, 2 or 4 bits were multiplied with when it was read; 1 for others."""
    with path.open("rb") as file:
        head = file.read(26)
    few = head[:4] == b"\x89PNG" and head[24] < 8 and head[25] == 0
    return 255 // ((1 << head[24]) - 1) if few else 1


def _as_mask(image: Image, path: str) -> MaskFile:
    pixels = image.pixels
    if pixels.shape[0] == 1:
        return MaskFile(path, image.grid, pixels)
    if image.unit is Unit.RED_GREEN_BLUE or (pixels.shape[0] in (3, 4) and image.channels[0] == "red"):
        red, green, blue = pixels[:3]
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return MaskFile(path, image.grid, red[None])
        if pixels.dtype == np.uint8:
            code = (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue
            return MaskFile(path, image.grid, code[None], coloured=True)
    raise FileError(
        path,
        found=f"{pixels.shape[0]} channels of type {pixels.dtype}",
        expected="one channel of label values, or 8-bit colours",
        do="write a label map",
    )


def dicom_class(path: Path) -> str:
    """The SOP Class UID of a DICOM file."""
    from vesalius.io.dicom_header import read_header

    return str(read_header(path, ("SOPClassUID",)).get("SOPClassUID", ""))


def _dicom_mask(path: Path, grid: Grid) -> MaskFile:
    """A segmentation or a structure set; any other object counts as an image of values."""
    from vesalius.io.open import open_image

    kind = dicom_class(path)
    if kind == _STRUCTURES:
        from vesalius.io.rtstruct import label_image, read_rtstruct

        image = label_image(read_rtstruct(path), grid)
    else:
        image = open_image(path)
    numbers = tuple(segment_names(image))
    if image.unit is Unit.LABEL and numbers:
        overlap = image.channels != ("labels",)
        return MaskFile(str(path), image.grid, image.pixels, overlap=overlap, segments=numbers, partial=True)
    if image.unit is not Unit.LABEL and numbers:
        # A fractional segmentation is a probability or an occupancy (PS3.3 C.8.20.2): half of a voxel makes it one.
        shown = (image.pixels >= 0.5).astype(np.uint8)
        return MaskFile(str(path), image.grid, shown, overlap=True, segments=numbers, partial=True)
    return _as_mask(image, str(path))


def segment_names(image: Image) -> dict[int, str]:
    """Numbers and names of the segments of an opened segmentation or structure set."""
    out = {}
    for line in image.meta.get("segments", ()) or ():
        number, _, name = str(line).partition(":")
        if number.strip().isdigit():
            out[int(number)] = name.strip()
    return out
