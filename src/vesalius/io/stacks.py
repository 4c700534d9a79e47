"""Many items of one array of an ``.npz`` or ``.npy``, in order, without holding the array."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UnreadableFile
from vesalius.io.arrays import _existing, _header, _readable, _skip, _stream, load_array
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels


class StackReader:
    """Reads runs of items; cheap when asked in ascending order, since a compressed array only inflates forwards.

    Use as a context manager. Items have axes ``(N, ...)`` as stored.

    Raises
    ------
    UnreadableFile
        No such array, broken, or Python objects inside.
    """

    def __init__(self, path: str | Path, key: str | None, limits: ReadLimits | None = None) -> None:
        self.path, self.key = _existing(Path(path)), key
        self.limits = active_limits(limits)
        check_file_bytes(self.path, self.limits)
        self._open = ExitStack()
        self._place = 0
        self._stream: IO[bytes] | None = None
        self._whole: NDArray[Any] | None = None
        self._start()

    def __enter__(self) -> StackReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Items `start` to `stop` as ``(stop - start, ...)``."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise UnreadableFile(
                self.path,
                found=f"items {start} to {stop} of an array of shape {self.shape}",
                expected=f"0 to {self.shape[0]}",
                do="correct the item",
            )
        if self._whole is not None:
            return self._whole[start:stop]
        check_pixels(self.path, (stop - start, *self.shape[1:]), self.limits)
        if start < self._place or self._stream is None:
            self._start()
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        stream, self._stream = self._stream, None  # after an error its place is unknown
        with _readable(self.path):
            if stream is None:
                raise EOFError("the array cannot be opened")
            _skip(stream, (start - self._place) * size)
            data = stream.read((stop - start) * size)
            if len(data) != (stop - start) * size:
                raise EOFError(f"the array ends before item {stop}")
        self._stream = stream
        self._place = stop
        items = np.frombuffer(bytearray(data), dtype=self.dtype).reshape(stop - start, *self.shape[1:])
        return np.ascontiguousarray(items, dtype=self.dtype.newbyteorder("="))

    def _start(self) -> None:
        self._open.close()
        with _readable(self.path):
            self._stream = self._open.enter_context(_stream(self.path, self.key))
            self.shape, fortran, self.dtype = _header(self.path, self._stream)
        if not self.shape:
            raise UnreadableFile(self.path, found="a single number", expected="an array of items", do="name another")
        self._place = 0
        if fortran:  # items of such an array are scattered; it has to be held
            self._whole = load_array(self.path, self.key, None, self.limits)
