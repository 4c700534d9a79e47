"""What the values of a mask file mean: decided once per data set, kept beside the path of each mask.

The column ``mask_values`` of a manifest holds, for a row of role ``mask``, the text of a `MaskValues`: empty where the
values of the file are those of the labels already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import FileError

COLUMN = "mask_values"
_ANY, _BRIGHT = "*", "128+"


@dataclass(frozen=True)
class MaskValues:
    """From the values in a file to the values of the label map.

    Parameters
    ----------
    values
        Value in the file to value in the label map (or index of a structure, for structures that overlap).
    colours
        The same for files in colour, keys 0xRRGGBB.
    every
        Value of the label map for everything that is not 0 in the file: one file per structure.
    bright
        Value of the label map for 128 and above: a mask with the noise of lossy compression.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[int, int] = field(default_factory=dict)
    every: int | None = None
    bright: int | None = None

    def __bool__(self) -> bool:
        return bool(self.values or self.colours) or self.every is not None or self.bright is not None

    def __str__(self) -> str:
        parts = [f"{value}={index}" for value, index in self.values.items()]
        parts += [f"#{colour:06x}={index}" for colour, index in self.colours.items()]
        parts += [f"{_ANY}={self.every}"] if self.every is not None else []
        parts += [f"{_BRIGHT}={self.bright}"] if self.bright is not None else []
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str) -> MaskValues:
        """The inverse of ``str``.

        Raises
        ------
        ValueError
            For any other text.
        """
        values: dict[int, int] = {}
        colours: dict[int, int] = {}
        single: dict[str, int] = {}
        for part in text.split():
            key, mark, index = part.partition("=")
            if not mark or not index.isdecimal():
                raise ValueError(f"{part!r} is no VALUE=INDEX of a mask")
            if key in (_ANY, _BRIGHT):
                single[key] = int(index)
            elif key.startswith("#"):
                colours[int(key[1:], 16)] = int(index)
            else:
                values[int(key)] = int(index)
        return cls(values, colours, single.get(_ANY), single.get(_BRIGHT))


def recoded(values: NDArray[Any], meaning: Mapping[int, int]) -> tuple[NDArray[Any], list[int]]:
    """Whole non-negative `values` with every key of `meaning` replaced; also which values `meaning` does not know.

    Returns
    -------
    tuple
        Array of the same shape (unsigned, as small as fits; unknown values become 0), and the unknown values, sorted.
    """
    found, place = np.unique(values, return_inverse=True)
    unknown = [int(value) for value in found.tolist() if value not in meaning]
    table = np.array([meaning.get(int(value), 0) for value in found.tolist()], dtype=np.int64)
    kind = np.uint8 if not table.size or int(table.max()) < 1 << 8 else np.uint16 if table.max() < 1 << 16 else np.int32
    return table.astype(kind)[place.reshape(values.shape)], unknown


def whole_values(values: NDArray[Any], path: str) -> NDArray[Any]:
    """Values as unsigned whole numbers of the smallest type.

    Raises
    ------
    FileError
        If some are not finite, not whole or negative.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            count = int(np.count_nonzero(~np.isfinite(values)))
            raise FileError(path, found=f"{count} values that are NaN or infinite", expected="whole label values",
                            do="clean the mask")  # fmt: skip
        rounded = np.rint(values)
        off = np.abs(values - rounded)
        # A rescale slope in single precision leaves 0.9999999 of a label.
        if float(off.max(initial=0.0)) > 1e-4:
            raise FileError(
                path,
                found=f"fractions, such as {float(values.flat[int(off.argmax())]):.4g}",
                expected="whole label values",
                do="threshold a probability map, or resample masks by nearest neighbour",
            )
        values = rounded.astype(np.int64)
    if values.size and int(values.min()) < 0:
        raise FileError(path, found=f"the value {int(values.min())}", expected="labels of 0 and more",
                        do="correct the mask")  # fmt: skip
    largest = int(values.max()) if values.size else 0
    if largest > np.iinfo(np.int32).max:
        raise FileError(path, found=f"the value {largest}", expected="labels below 2^31", do="renumber the mask")
    return values.astype(np.min_scalar_type(largest), copy=False)
