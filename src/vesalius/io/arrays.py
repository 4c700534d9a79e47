"""numpy files: .npy, and one array or one item of an .npz (the layout of MedMNIST).

Nothing is unpickled. A header is parsed with numpy's own reader (numpy.lib.format, literals only) and checked before
memory is taken; one item of a compressed array is reached by inflating up to it, never by loading the whole.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import LimitError, UnreadableFile
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Image, Note, Unit
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes, check_pixels

_TOO_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    TypeError,
    KeyError,
    OverflowError,
    TokenError,  # numpy tokenises headers that it takes for those of Python 2
)
# Longest header that is parsed: numpy's own limit against slow literals.
_HEADER_BYTES = 10_000
_SKIP_BYTES = 1 << 20


def read_array(path: str | Path, limits: ReadLimits | None = None, *, axes: str | None = None) -> Image:
    """Read one array as an image without geometry.

    Parameters
    ----------
    path
        ``file.npy``, ``file.npy#17``, ``file.npz#key`` or ``file.npz#key/17`` (item 17 along the first axis).
    axes
        Letters of Z, Y, X and C in stored order, such as ``"ZYX"`` or ``"YXC"``. If None they follow from the shape,
        and the record says how: two axes are (Y, X); a last or first axis of length 3 or 4 (last) and at most 4 (first)
        beside larger ones is the channels; else three axes are (Z, Y, X).

    Returns
    -------
    Image
        Pixels ``(C, Y, X)`` or ``(C, Z, Y, X)`` in the stored type; booleans become uint8.

    Raises
    ------
    UnreadableFile
        No such array or item, Python objects, complex numbers or text inside, truncated, or other axes.
    LimitError
        More values than the limits allow.
    """
    file, key, item = split_fragment(path)
    array = load_array(file, key, item, limits)
    names = axes or _guess(path, array)
    pixels = _arranged(path, array, names)
    record = [] if axes or len(names) == 2 else [Note(Act.NOTED, f"axes taken as {names} from the shape {array.shape}")]
    coloured = pixels.shape[0] == 3 and pixels.dtype == np.uint8
    return Image(
        grid=Grid(pixels.shape[1:]),
        pixels=pixels,
        unit=Unit.RED_GREEN_BLUE if coloured else Unit.INTENSITY,
        channels=("red", "green", "blue") if coloured else (),
        record=tuple(record),
        meta={"format": "numpy", "bits": 8 * pixels.dtype.itemsize},
        source=str(path),
    )


def split_fragment(path: str | Path) -> tuple[Path, str | None, int | None]:
    """``"f.npz#key/17"`` as (file, key, item); a file whose own name holds a # is taken as it is."""
    text = str(path)
    if "#" not in text or Path(text).is_file():
        return Path(text), None, None
    file, _, inside = text.rpartition("#")
    key, slash, number = inside.rpartition("/")
    if not slash:
        key, number = (inside, "") if not inside.isdecimal() or file.endswith(".npz") else ("", inside)
    if number and not number.isdecimal():
        raise UnreadableFile(
            path,
            found=f"the item {number!r}",
            expected="a number after the last /",
            do="write for example file.npz#train_images/17",
        )
    return Path(file), key or None, int(number) if number else None


def list_arrays(path: str | Path, limits: ReadLimits | None = None) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every array of an ``.npz`` from the headers alone, in stored order.

    Raises
    ------
    UnreadableFile
        Not an ``.npz``, or it holds Python objects.
    """
    path = Path(path)
    check_file_bytes(_existing(path), active_limits(limits))
    found = {}
    with _readable(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as stream:
                    shape, _, dtype = _header(path, stream)
                found[member.removesuffix(".npy")] = (shape, dtype)
    return found


def load_array(
    path: str | Path, key: str | None = None, item: int | None = None, limits: ReadLimits | None = None
) -> NDArray[Any]:
    """The array `key` of an ``.npz`` (or the only one of a ``.npy``), whole or one item of its first axis.

    For all items of a large array call this once without `item`: reaching item k of a compressed array inflates all
    before it.
    """
    path = Path(path)
    limits = active_limits(limits)
    check_file_bytes(_existing(path), limits)
    with _readable(path), _stream(path, key) as stream:
        shape, fortran, dtype = _header(path, stream)
        if item is not None and (not shape or item >= shape[0]):
            raise UnreadableFile(
                path,
                found=f"item {item} of an array of shape {shape}",
                expected=f"0 to {shape[0] - 1}" if shape else "an array with items",
                do="correct the part after #",
            )
        wanted = shape if item is None or fortran else shape[1:]
        check_pixels(path, wanted, limits)
        size = int(np.prod(wanted, dtype=np.int64)) * dtype.itemsize
        if item is not None and not fortran:
            _skip(stream, item * size)
        data = stream.read(size)
        if len(data) != size:
            raise EOFError(f"{len(data)} bytes of data where the header says {size}")
    array = np.frombuffer(bytearray(data), dtype=dtype).reshape(wanted, order="F" if fortran else "C")
    if item is not None and fortran:
        array = array[item]
    # Not ascontiguousarray, which makes a single number an array of one.
    return np.asarray(array, dtype=dtype.newbyteorder("="), order="C")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UnreadableFile(path, found="no such file", expected="a .npy or .npz file", do="check the path")
    return path


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever breaks inside becomes one readable line."""
    try:
        yield
    except (UnreadableFile, LimitError):
        raise
    except _TOO_BROKEN as error:
        raise UnreadableFile(
            path,
            found=f"a broken or truncated numpy file ({error})",
            expected=".npy or .npz",
            do="copy or save the file again",
        ) from error


@contextmanager
def _stream(path: Path, key: str | None) -> Iterator[IO[bytes]]:
    """The bytes of one array, header first."""
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            if key is not None:
                raise UnreadableFile(
                    path,
                    found=f"the name {key!r} for a file with one array",
                    expected="a number after #, or nothing",
                    do="leave the name out",
                )
            file.seek(0)
            yield file
            return
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if key is None and len(names) == 1:
            key = names[0]
        if key not in names:
            raise UnreadableFile(
                path,
                found=f"no array {key!r}" if key else f"{len(names)} arrays",
                expected=f"one of {', '.join(names)}",
                do="write it after #, as in file.npz#name",
            )
        with archive.open(f"{key}.npy") as stream:
            yield stream


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type; refuses what is not plain numbers."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream, max_header_size=_HEADER_BYTES)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        kind = "Python objects, which could run code" if dtype.hasobject else f"values of type {dtype}"
        raise UnreadableFile(
            path, found=kind, expected="whole or real numbers", do="save it again as an array of numbers"
        )
    if shape and min(shape) < 0:
        raise ValueError(f"an array of shape {shape}")
    return shape, bool(fortran), dtype


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        piece = len(stream.read(min(count, _SKIP_BYTES)))
        if piece == 0:
            raise EOFError("the array ends before the item")
        count -= piece


def _guess(path: str | Path, array: NDArray[Any]) -> str:
    """Letters for the axes of `array`; the rule stands in `read_array`."""
    shape = array.shape
    if array.size == 0:
        raise UnreadableFile(path, found=f"an empty array of shape {shape}", expected="pixels", do="save it again")
    if array.ndim == 2:
        return "YX"
    if array.ndim == 3:
        if shape[-1] in (3, 4) and min(shape[:2]) > 4:
            return "YXC"
        return "CYX" if shape[0] <= 4 and min(shape[1:]) > 4 else "ZYX"
    if array.ndim == 4 and shape[-1] <= 4 and min(shape[:3]) > 4:
        return "ZYXC"
    if array.ndim == 4 and shape[0] <= 4:
        return "CZYX"
    raise UnreadableFile(
        path,
        found=f"an array of shape {shape}",
        expected="a picture or volume, with or without channels",
        do="name one item (file.npz#key/17), or pass axes such as 'ZYX'",
    )


def _arranged(path: str | Path, array: NDArray[Any], axes: str) -> NDArray[Any]:
    """``(C, [Z,] Y, X)``."""
    if sorted(axes) not in (sorted("YX"), sorted("CYX"), sorted("ZYX"), sorted("CZYX")) or len(axes) != array.ndim:
        raise UnreadableFile(
            path,
            found=f"an array of shape {array.shape} and axes {axes!r}",
            expected="one letter of C, Z, Y, X per axis",
            do="correct the axes",
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if "C" not in axes:
        array, axes = array[None], "C" + axes
    order = [axes.index(letter) for letter in "CZYX" if letter in axes]
    return np.ascontiguousarray(array.transpose(order))
