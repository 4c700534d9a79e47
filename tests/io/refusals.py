"""What every refusal of a reader must look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vesalius.core.errors import DataError, ResourceError
from vesalius.core.image import Image


def read_or_refused(read: Callable[[Path], Image], path: Path) -> Image | None:
    """The image, or None after a refusal of one line that starts with the path; any other error passes through."""
    try:
        image = read(path)
    except (DataError, ResourceError) as error:
        if not str(error).startswith(str(path)) or "\n" in str(error):
            raise AssertionError(f"not one line that names the file: {error}") from error
        return None
    if image.pixels.shape[1:] != image.grid.shape:
        raise AssertionError(f"pixels {image.pixels.shape} on a grid {image.grid.shape}")
    return image
