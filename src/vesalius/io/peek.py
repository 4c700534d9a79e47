"""How large an image is, from its header alone."""

from __future__ import annotations

from math import prod
from pathlib import Path

import SimpleITK

# A compressed label image holds many voxels per byte; where a header cannot be read cheaply this many are assumed.
_VOXELS_PER_BYTE = 8


def voxels_of(path: str | Path) -> int:
    """Voxels of the image at `path` (all channels), without reading pixels; a guess from the file size if need be.

    A folder counts as the sum of its files.
    """
    place = Path(str(path).split("#", maxsplit=1)[0]) if not Path(path).exists() else Path(path)
    if place.is_dir():
        return sum(voxels_of(one) for one in place.iterdir() if one.is_file())
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(place))
    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        return prod(reader.GetSize()) * reader.GetNumberOfComponents()
    except RuntimeError:
        return place.stat().st_size * _VOXELS_PER_BYTE
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
