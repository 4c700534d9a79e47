"""Triangle meshes in: STL, PLY, OBJ and legacy VTK, binary or text, as surfaces in patient LPS millimetres.

The counts in a header are checked against the size of the file before any memory is taken. Polygons of more than three
corners become fans of triangles. A file that says ``SPACE=RAS`` is turned to LPS; one that says nothing is taken for
LPS unless the caller knows better.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UnreadableFile, UsageError, VesaliusError
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes
from vesalius.io.mesh_out import STL_RECORD, Frame, Surface

_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_VTK_TYPES = {
    "float": ">f4", "double": ">f8", "int": ">i4", "unsigned_int": ">u4", "short": ">i2", "unsigned_short": ">u2",
    "char": ">i1", "unsigned_char": ">u1", "long": ">i8", "vtktypeint64": ">i8", "vtkidtype": ">i8",
}  # fmt: skip


def read_surfaces(
    path: str | Path, *, frame: Frame | str | None = None, limits: ReadLimits | None = None
) -> list[Surface]:
    """The surfaces of a mesh file, in the order of the file; one, without triangles, for a file that holds none.

    Parameters
    ----------
    path
        ``.stl``, ``.ply``, ``.obj`` or ``.vtk``; STL vertices of equal places become one.
    frame
        Axes of the file, ``LPS`` or ``RAS``; None for what the file says, LPS where it says nothing.

    Raises
    ------
    UsageError
        For another file ending or frame.
    UnreadableFile, LimitError
        For a broken or truncated file, one of another kind, or one that is too large.
    """
    path = Path(path)
    decode = _DECODERS.get(path.suffix.lower())
    if decode is None:
        raise UsageError(f"{path}: meshes are read from {', '.join(_DECODERS)}; convert it first")
    if frame is not None and str(frame) not in tuple(Frame):
        raise UsageError(f"{path}: the axes of a mesh file are LPS or RAS, got {frame!r}")
    try:
        check_file_bytes(path, active_limits(limits))
        data = path.read_bytes()
        surfaces = decode(data, path)
    except VesaliusError:
        raise
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise UnreadableFile(path, found=f"reading the mesh failed: {error}", expected="an intact mesh file") from error
    said = re.search(rb"SPACE=(LPS|RAS)", data[:4096])
    axes = Frame(frame) if frame is not None else Frame(said.group(1).decode() if said else "LPS")
    if axes is Frame.LPS:
        return surfaces
    turn = np.array([-1.0, -1.0, 1.0])
    return [Surface(one.vertices * turn, one.faces, one.name, one.label, one.colour) for one in surfaces]


def _stl(data: bytes, path: Path) -> list[Surface]:
    count = int(np.frombuffer(data[80:84].ljust(4, b"\0"), "<u4")[0])
    # Some writers begin the binary header with "solid": the size decides.
    if len(data) >= 84 and 84 + 50 * count == len(data):
        corners = np.frombuffer(data, STL_RECORD, count, 84)["corners"].astype(np.float64)
        return [_welded(corners.reshape(-1, 3))]
    if not data.lstrip().startswith(b"solid"):
        _short(path, f"{len(data)} bytes for {count} triangles", f"{84 + 50 * count} bytes")
    found = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", data)
    if len(found) % 3 or b"endsolid" not in data:
        _short(path, f"{len(found)} corners and {'no ' if b'endsolid' not in data else ''}endsolid", "whole triangles")
    return [_welded(np.array(found, dtype=np.float64).reshape(-1, 3))]


def _welded(corners: NDArray[np.float64]) -> Surface:
    """Triangles from their corners ``(3 F, 3)``, equal places as one vertex."""
    if not len(corners):
        return Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    places, numbers = np.unique(corners + 0.0, axis=0, return_inverse=True)
    return Surface(places, numbers.reshape(-1, 3))


def _short(path: Path, found: str, expected: str) -> None:
    raise UnreadableFile(path, found=found, expected=expected, do="get the file again from its source")


def _ply(data: bytes, path: Path) -> list[Surface]:
    end = re.search(rb"end_header\r?\n", data[: 1 << 20])
    if not data.startswith(b"ply") or end is None:
        raise UnreadableFile(path, found="no PLY header", expected="'ply' to 'end_header'")
    lines = [line.split() for line in data[: end.start()].decode("latin-1").splitlines()]
    style = next((words[1] for words in lines if words[:1] == ["format"]), "")
    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in lines:
        if words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
    names = {int(words[2]): " ".join(words[3:]) for words in lines if words[:2] == ["comment", "surface"]}
    source: _Binary | _Text
    if style == "ascii":
        source = _Text(data[end.end() :].split(), path)
    elif style in ("binary_little_endian", "binary_big_endian"):
        source = _Binary(data, end.end(), "<" if "little" in style else ">", path)
    else:
        raise UnreadableFile(path, found=f"PLY format {style!r}", expected="ascii or binary_little/big_endian")
    tables = {name: source.table(count, properties) for name, count, properties in elements}
    vertex, face = tables.get("vertex", {}), tables.get("face", {})
    if not {"x", "y", "z"} <= vertex.keys():
        raise UnreadableFile(path, found="PLY without vertices", expected="an element vertex with x, y and z")
    places = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], axis=-1)
    corners = face.get("vertex_indices", face.get("vertex_index", []))
    faces, polygon = _fans(corners)
    labels = np.asarray(face["label"], dtype=np.int64)[polygon] if "label" in face else None
    if labels is None and "label" in vertex and len(faces):
        labels = np.asarray(vertex["label"], dtype=np.int64)[faces[:, 0]]
    colours = None
    if {"red", "green", "blue"} <= vertex.keys() and len(places):
        colours = np.stack([np.asarray(vertex[name]) for name in ("red", "green", "blue")], axis=-1)
    return _by_label(places, faces, labels, names, colours)


class _Text:
    """Words of a text file, taken from the front."""

    def __init__(self, words: list[bytes], path: Path) -> None:
        self.words, self.at, self.path = words, 0, path

    def take(self, count: int) -> list[bytes]:
        if count < 0 or self.at + count > len(self.words):
            _short(self.path, f"{len(self.words)} numbers", f"at least {self.at + count}")
        self.at += count
        return self.words[self.at - count : self.at]

    def table(self, count: int, properties: list[list[str]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if all(kind[0] != "list" for kind in properties):
            rows = np.array(self.take(count * len(properties)), dtype=np.float64).reshape(count, len(properties))
            return {kind[-1]: rows[:, column] for column, kind in enumerate(properties)}
        for kind in properties:
            out[kind[-1]] = []
        for _ in range(count):
            for kind in properties:
                if kind[0] == "list":
                    out[kind[-1]].append([int(word) for word in self.take(int(self.take(1)[0]))])
                else:
                    out[kind[-1]].append(float(self.take(1)[0]))
        return out


class _Binary:
    """Records of a binary file, taken from the front."""

    def __init__(self, data: bytes, at: int, order: str, path: Path) -> None:
        self.data, self.at, self.order, self.path = data, at, order, path

    def take(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        if count < 0 or self.at + count * dtype.itemsize > len(self.data):
            _short(self.path, f"{len(self.data)} bytes", f"at least {self.at + count * dtype.itemsize}")
        out = np.frombuffer(self.data, dtype, count, self.at)
        self.at += count * dtype.itemsize
        return out

    def table(self, count: int, properties: list[list[str]]) -> dict[str, Any]:
        lists = [kind for kind in properties if kind[0] == "list"]
        if not lists:
            fields = [(kind[-1], self.order + _PLY_TYPES[kind[0]]) for kind in properties]
            rows = self.take(np.dtype(fields), count)
            return {name: rows[name] for name in rows.dtype.names or ()}
        start = self.at
        # Nearly every file has triangles only: then the rows are of one length and are read as one table.
        fields3: list[tuple[Any, ...]] = []
        for kind in properties:
            if kind[0] == "list":
                fields3 += [
                    (f"{kind[-1]} count", self.order + _PLY_TYPES[kind[1]]),
                    (kind[-1], self.order + _PLY_TYPES[kind[2]], 3),
                ]
            else:
                fields3.append((kind[-1], self.order + _PLY_TYPES[kind[0]]))
        dtype = np.dtype(fields3)
        if self.at + count * dtype.itemsize <= len(self.data):
            rows = self.take(dtype, count)
            if all((rows[f"{kind[-1]} count"] == 3).all() for kind in lists):
                return {kind[-1]: rows[kind[-1]] for kind in properties}
        self.at = start
        return self._ragged(count, properties)

    def _ragged(self, count: int, properties: list[list[str]]) -> dict[str, Any]:
        out: dict[str, Any] = {kind[-1]: [] for kind in properties}
        for _ in range(count):
            for kind in properties:
                if kind[0] == "list":
                    length = int(self.take(np.dtype(self.order + _PLY_TYPES[kind[1]]), 1)[0])
                    out[kind[-1]].append(self.take(np.dtype(self.order + _PLY_TYPES[kind[2]]), length).tolist())
                else:
                    out[kind[-1]].append(self.take(np.dtype(self.order + _PLY_TYPES[kind[0]]), 1)[0])
        return out


def _fans(polygons: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Triangles ``(F, 3)`` of polygons, each a fan from its first corner, and the polygon of each triangle."""
    if isinstance(polygons, np.ndarray):
        return polygons.astype(np.int64).reshape(-1, 3), np.arange(len(polygons))
    rows = [(p[0], a, b) for p in polygons for a, b in pairwise(p[1:])]
    owner = np.repeat(np.arange(len(polygons)), [max(len(p) - 2, 0) for p in polygons])
    return np.array(rows, dtype=np.int64).reshape(-1, 3), owner


def _by_label(
    places: NDArray[np.float64],
    faces: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    names: dict[int, str],
    colours: NDArray[Any] | None = None,
) -> list[Surface]:
    """A surface per label, each with the vertices that it uses; all vertices where there is one label only."""
    if faces.size and (faces.min() < 0 or faces.max() >= len(places)):
        raise ValueError(f"faces name vertices {faces.min()} to {faces.max()}, there are {len(places)}")
    found = list(dict.fromkeys(labels.tolist())) if labels is not None and len(labels) else [1]
    out = []
    for label in found:
        mine = faces if labels is None or len(found) == 1 else faces[labels == label]
        used = np.arange(len(places))
        if len(found) > 1:
            used, numbers = np.unique(mine, return_inverse=True)
            mine = numbers.reshape(-1, 3)
        shade = np.rint(colours[used[0]]) if colours is not None and len(used) else None
        colour = None if shade is None else (int(shade[0]), int(shade[1]), int(shade[2]))
        out.append(Surface(places[used], mine, names.get(label, ""), label, colour))
    return out


def _obj(data: bytes, path: Path) -> list[Surface]:
    places: list[list[float]] = []
    parts: list[tuple[str, list[list[int]]]] = [("", [])]
    told: dict[int, tuple[int, str]] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split()
        if words[:2] == ["#", "surface"]:
            told[len(parts)] = (int(words[2]), " ".join(words[3:]))
        elif words[:1] in (["o"], ["g"]):
            parts.append((" ".join(words[1:]), []))
        elif words[:1] == ["v"]:
            places.append([float(word) for word in words[1:7]])
        elif words[:1] == ["f"]:
            corners = [int(word.split("/")[0]) for word in words[1:]]
            parts[-1][1].append([c - 1 if c > 0 else len(places) + c for c in corners])
    if not places and b"\nv " not in b"\n" + data[:4096]:
        raise UnreadableFile(path, found="no vertices", expected="an OBJ file with lines 'v x y z'")
    table = np.array([place[:3] for place in places], dtype=np.float64).reshape(-1, 3)
    polygons = [polygon for _, part in parts for polygon in part]
    owner = np.repeat(np.arange(len(parts)), [len(part) for _, part in parts])
    faces, polygon = _fans(polygons)
    shades = np.array([place[3:6] for place in places]) * 255 if places and len(places[0]) >= 6 else None
    found = _by_label(table, faces, owner[polygon], {k: name for k, (name, _) in enumerate(parts)}, shades)
    return [_told(one, told) for one in found]


def _told(surface: Surface, told: dict[int, tuple[int, str]]) -> Surface:
    """A part of an OBJ file with the label and name that our writer put before it."""
    label, name = told.get(surface.label, (surface.label, surface.name))
    colour = surface.colour
    return Surface(surface.vertices, surface.faces, name, max(label, 1), colour)


def _vtk(data: bytes, path: Path) -> list[Surface]:
    head = data[:1024].split(b"\n", 4)
    if not data.startswith(b"# vtk DataFile") or len(head) < 4 or head[3].split() != [b"DATASET", b"POLYDATA"]:
        raise UnreadableFile(path, found="no legacy VTK polygon data", expected="'# vtk DataFile' and DATASET POLYDATA")
    file = _Vtk(data, path, binary=head[2].strip() == b"BINARY")
    points = file.block(rb"POINTS\s+(?P<count>\d+)\s+(?P<kind>\w+)\s*\n", per=3)
    if points is None:
        raise UnreadableFile(path, found="no POINTS", expected="legacy VTK polygon data")
    faces, polygon = _fans(_vtk_polygons(file))
    labels = file.block(rb"CELL_DATA\s+(?P<count>\d+)\s*\nSCALARS\s+label\s+(?P<kind>\w+)[^\n]*\nLOOKUP_TABLE[^\n]*\n")
    per_face = labels.astype(np.int64)[polygon] if labels is not None else None
    return _by_label(points.astype(np.float64).reshape(-1, 3), faces, per_face, {})


def _vtk_polygons(file: _Vtk) -> Any:
    """Corners of each polygon; version 5 of the format lists offsets and corners, versions before count each."""
    offsets = file.block(rb"POLYGONS\s+(?P<count>\d+)\s+\d+\s*\nOFFSETS\s+(?P<kind>\w+)\s*\n")
    if offsets is not None:
        corners = file.block(rb"POLYGONS\s+\d+\s+(?P<count>\d+)\s*\n", then=rb"CONNECTIVITY\s+(?P<kind>\w+)\s*\n")
        if corners is None:
            raise ValueError("polygons without CONNECTIVITY")
        return [part.astype(np.int64).tolist() for part in np.split(corners, offsets[1:-1].astype(np.int64))]
    flat = file.block(rb"POLYGONS\s+\d+\s+(?P<count>\d+)\s*\n")
    if flat is None or not len(flat):
        return np.zeros((0, 3), np.int64)
    flat = flat.astype(np.int64)
    if len(flat) % 4 == 0 and (flat[::4] == 3).all():
        return flat.reshape(-1, 4)[:, 1:]
    polygons, at = [], 0
    while at < len(flat):
        polygons.append(flat[at + 1 : at + 1 + flat[at]].tolist())
        at += 1 + max(int(flat[at]), 0)
    return polygons


class _Vtk:
    """Blocks of numbers in a legacy VTK file, found by the words before them."""

    def __init__(self, data: bytes, path: Path, *, binary: bool) -> None:
        self.data, self.path, self.binary = data, path, binary

    def block(self, head: bytes, *, per: int = 1, then: bytes | None = None) -> NDArray[Any] | None:
        """`per` numbers for each that `head` counts, behind `head`, or behind the words `then` that follow it."""
        found = re.search(rb"(?:^|\n)" + head, self.data)
        if found is None:
            return None
        count = int(found["count"]) * per
        if then is not None:
            found = re.compile(then).search(self.data, found.end())
            if found is None:
                return None
        kind = _VTK_TYPES[(found.groupdict().get("kind") or b"int").decode().lower()]
        if self.binary:
            return _Binary(self.data, found.end(), ">", self.path).take(np.dtype(kind), count)
        if 2 * count > len(self.data) - found.end() + 1:  # a digit and a blank for each
            _short(self.path, f"{len(self.data)} bytes", f"{count} numbers")
        words = self.data[found.end() :].split(None, count)[:count]
        if len(words) < count:
            _short(self.path, f"{len(words)} numbers", f"{count}")
        return np.array(words, dtype=np.float64)


_DECODERS: dict[str, Callable[[bytes, Path], list[Surface]]] = {".stl": _stl, ".ply": _ply, ".obj": _obj, ".vtk": _vtk}
