"""What a reader may take in, and what it does about odd geometry: frozen settings, scoped by a context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vesalius.core.errors import LimitError, UsageError
from vesalius.core.quantity import show_bytes

_CHOICES = {"irregular": ("refuse", "resample"), "tilt": ("resample", "refuse", "keep")}


@dataclass(frozen=True)
class ReadLimits:
    """Limits and choices of every reader; change them with `read_limits`."""

    max_pixels: int = 2**31
    """Most values (samples x rows x columns x slices) that one image may hold; checked before anything is decoded."""
    max_file_bytes: int = 2**36
    """Largest file that is opened, and the most bytes that a deflated DICOM data set may inflate to."""
    origin_tolerance_mm: float = 0.01
    """Slices nearer than this stand at one position; positions off an even grid by less need no note."""
    gap_tolerance: float = 0.1
    """Largest shift of a slice off the even grid, as a part of the slice distance, that is repaired with a note."""
    spacing_tolerance: float = 1e-3
    """Largest relative difference of the pixel spacings of two slices of one volume."""
    orientation_tolerance_degrees: float = 0.1
    """Largest angle between the row (or column) directions of two slices of one volume."""
    tilt_tolerance_degrees: float = 0.1
    """Smallest angle between the line of slice origins and the slice normal that counts as gantry tilt."""
    irregular: str = "refuse"
    """Missing or uneven slices: ``refuse``, or ``resample`` linearly along the normal on the median distance."""
    tilt: str = "resample"
    """Gantry tilt: ``resample`` onto an orthogonal grid, ``refuse``, or ``keep`` the sheared affine."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"read limit {name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in _CHOICES and not value > 0:
                raise UsageError(f"read limit {field.name} must be more than zero, got {value!r}")


_DEFAULT = ReadLimits()
_active: ContextVar[ReadLimits] = ContextVar("vesalius_read_limits", default=_DEFAULT)


def active_limits(limits: ReadLimits | None = None) -> ReadLimits:
    """`limits` if given, else those of the surrounding `read_limits` block, else the defaults."""
    return limits if limits is not None else _active.get()


@contextmanager
def read_limits(**changes: Any) -> Iterator[ReadLimits]:
    """Readers called inside the block use the changed limits, e.g. ``with read_limits(irregular="resample"):``.

    Raises
    ------
    UsageError
        For a name that is no limit, or a value outside its choices.
    """
    known = [field.name for field in fields(ReadLimits)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise UsageError(f"there is no read limit {', '.join(unknown)}; the limits are {', '.join(known)}")
    token = _active.set(replace(_active.get(), **changes))
    try:
        yield _active.get()
    finally:
        _active.reset(token)


def check_pixels(path: str | Path, shape: Sequence[int], limits: ReadLimits) -> None:
    """Refuse an array of `shape` before it is decoded if it holds more than ``limits.max_pixels`` values."""
    count = 1
    for side in shape:
        count *= int(side)
    if count > limits.max_pixels:
        sides = " x ".join(str(int(side)) for side in shape)
        raise LimitError(
            path,
            found=f"{sides} = {count} values",
            expected=f"at most {limits.max_pixels}",
            do="if the file is to be trusted, raise the limit with read_limits(max_pixels=...)",
        )


def check_file_bytes(path: str | Path, limits: ReadLimits) -> None:
    """Refuse a file of more than ``limits.max_file_bytes`` before it is read."""
    size = Path(path).stat().st_size
    if size > limits.max_file_bytes:
        raise LimitError(
            path,
            found=f"a file of {show_bytes(size)}",
            expected=f"at most {show_bytes(limits.max_file_bytes)}",
            do="if the file is to be trusted, raise the limit with read_limits(max_file_bytes=...)",
        )
