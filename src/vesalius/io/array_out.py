"""numpy files out: an .npz whose bytes depend on its content only, and which loads without pickle anywhere."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic

# The earliest date a zip file can say: the time of writing must not change the bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_npz(path: str | Path, **arrays: NDArray[Any]) -> Path:
    """Write named arrays of numbers, compressed.

    Raises
    ------
    UsageError
        For an array of Python objects, which could not be read back safely.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise UsageError(f"{path}: array {name} holds Python objects; convert it to numbers or fixed-length text")
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as stream:
                # Not ascontiguousarray, which makes a single number an array of one.
                np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
    return Path(path)
