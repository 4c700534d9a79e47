"""Triangle meshes out: STL, PLY, OBJ and VTK, in patient millimetres, LPS unless RAS is asked for.

Places are stored as 32-bit floats (a step of 0.00003 mm at half a metre), which is all that STL can hold and what most
readers expect. Where a file has room for words it says ``SPACE=LPS`` or ``SPACE=RAS``, the mark that 3D Slicer looks
for, so that nobody has to guess; LPS is what Slicer assumes without one. The same surfaces give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.files import atomic, safe_stem

_MAKER = "Vesalius"
STL_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


class Frame(StrEnum):
    """Direction of the axes x, y and z of a file; arrays in memory are LPS always."""

    LPS = "LPS"
    """To the patient's left, to posterior, to superior: DICOM, ITK, and this package."""
    RAS = "RAS"
    """To the right, to anterior, to superior: NIfTI, FreeSurfer and Slicer's own scene."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh with what a viewer shows of it.

    Parameters
    ----------
    vertices
        ``(V, 3)``: x, y, z in patient LPS mm.
    faces
        ``(F, 3)``: vertex numbers, counter-clockwise seen from outside.
    name, label
        What it is called, and its value in the label map.
    colour
        Red, green and blue from 0 to 255, or None.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    name: str = ""
    label: int = 1
    colour: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        vertices = np.asarray(self.vertices, dtype=np.float64).reshape(-1, np.shape(self.vertices)[-1])
        faces = np.asarray(self.faces, dtype=np.int64).reshape(-1, np.shape(self.faces)[-1])
        if vertices.shape[1] != 3 or faces.shape[1] != 3:
            raise UsageError(f"a surface has vertices (V, 3) and faces (F, 3), got {vertices.shape} and {faces.shape}")
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise UsageError(
                f"faces of {self.name or 'a surface'} name vertices {faces.min()} to {faces.max()}, "
                f"there are {len(vertices)}"
            )
        if not np.isfinite(vertices).all():
            raise UsageError(f"the vertices of {self.name or 'a surface'} must be finite")
        if self.colour is not None and (len(self.colour) != 3 or not all(0 <= part <= 255 for part in self.colour)):
            raise UsageError(f"a colour is three numbers from 0 to 255, got {self.colour}")
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", faces)


def write_surfaces(
    surfaces: Surface | Sequence[Surface], path: str | Path, *, frame: Frame | str = Frame.LPS, ascii_vtk: bool = False
) -> Path:
    """Write surfaces into one file.

    Parameters
    ----------
    surfaces
        One or several. STL cannot tell them apart and holds their triangles together; PLY holds the label of every
        vertex, VTK of every triangle, OBJ an object per surface. PLY and OBJ hold colours, white where there is none.
    path
        Ends in ``.stl`` (binary), ``.ply`` (binary), ``.obj`` or ``.vtk`` (legacy polygon data).
    frame
        Axes of the file: ``LPS`` or ``RAS``.
    ascii_vtk
        Write ``.vtk`` as text.

    Raises
    ------
    UsageError
        For no surface, another file ending or another frame.
    """
    path = Path(path)
    parts = [surfaces] if isinstance(surfaces, Surface) else list(surfaces)
    if not parts:
        raise UsageError(f"{path}: there is no surface to write")
    if str(frame) not in tuple(Frame):
        raise UsageError(f"{path}: the axes of a mesh file are LPS or RAS, got {frame!r}")
    encode = _ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise UsageError(f"{path}: a mesh file name ends in {', '.join(_ENCODERS)}; rename the output")
    whole = _Whole(parts, Frame(frame))
    data = _vtk(whole, text=True) if ascii_vtk and path.suffix.lower() == ".vtk" else encode(whole)
    with atomic(path) as file:
        file.write(data)
    return path


def write_surface_files(
    surfaces: Sequence[Surface], folder: str | Path, *, suffix: str = ".stl", frame: Frame | str = Frame.LPS
) -> list[Path]:
    """Write each surface into its own file ``LABEL-NAME.stl`` in `folder`; options as `write_surfaces`."""
    names = [
        safe_stem(f"{surface.label}-{surface.name}" if surface.name else str(surface.label)) for surface in surfaces
    ]
    if len(set(names)) < len(names):
        raise UsageError(f"{folder}: surfaces written into one folder need different labels or names, got {names}")
    return [
        write_surfaces(surface, Path(folder) / f"{name}{suffix}", frame=frame)
        for surface, name in zip(surfaces, names, strict=True)
    ]


class _Whole:
    """The surfaces behind each other, in the file's axes."""

    def __init__(self, parts: list[Surface], frame: Frame) -> None:
        self.parts, self.frame = parts, frame
        turn = np.array([-1.0, -1.0, 1.0]) if frame is Frame.RAS else np.ones(3)
        # Turning x and y around is a rotation: triangles keep their outside.
        self.vertices = np.concatenate([part.vertices * turn for part in parts]).astype("<f4") + np.float32(0)
        self.before = np.cumsum([0] + [len(part.vertices) for part in parts])
        self.faces = np.concatenate([part.faces + start for part, start in zip(parts, self.before, strict=False)])
        self.labels = np.repeat([part.label for part in parts], [len(part.faces) for part in parts])
        if len(self.vertices) > np.iinfo(np.int32).max or len(self.faces) > np.iinfo(np.int32).max // 4:
            raise UsageError(
                f"a mesh file holds 32-bit numbers, got {len(self.vertices)} vertices; write several files"
            )
        self.coloured = any(part.colour is not None for part in parts)
        colours = [part.colour or (255, 255, 255) for part in parts]
        self.colours = np.repeat(np.array(colours, np.uint8), [len(part.vertices) for part in parts], axis=0)

    @property
    def title(self) -> str:
        """What a reader has to know, in one line."""
        return f"{_MAKER} SPACE={self.frame} unit=mm"

    def named(self) -> list[str]:
        """``surface LABEL NAME`` of each."""
        return [f"surface {part.label} {_line(part.name)}".rstrip() for part in self.parts]


def _line(text: str) -> str:
    """`text` in one line of ASCII."""
    return " ".join(text.split()).encode("ascii", "replace").decode()


def _stl(whole: _Whole) -> bytes:
    # The header must not begin with "solid", which marks the text form.
    out = np.zeros(len(whole.faces), STL_RECORD)
    corners = whole.vertices[whole.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    out["normal"] = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    out["corners"] = corners
    head = whole.title.encode("ascii")[:80].ljust(80)
    return head + np.array(len(out), "<u4").tobytes() + out.tobytes()


def _ply(whole: _Whole) -> bytes:
    vertex: list[tuple[Any, ...]] = [("place", "<f4", 3)]
    lines = ["ply", "format binary_little_endian 1.0", f"comment {whole.title}"]
    lines += [f"comment {name}" for name in whole.named()]
    lines += [f"element vertex {len(whole.vertices)}", *(f"property float {axis}" for axis in "xyz")]
    if whole.coloured:
        vertex.append(("colour", "u1", 3))
        lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    # Labels stand by the vertices: some readers take faces for nothing but lists of corners.
    lines += ["property int label"]
    vertex.append(("label", "<i4"))
    lines += [f"element face {len(whole.faces)}", "property list uchar int vertex_indices", "end_header", ""]
    places = np.zeros(len(whole.vertices), np.dtype(vertex))
    places["place"] = whole.vertices
    if whole.coloured:
        places["colour"] = whole.colours
    places["label"] = np.repeat([part.label for part in whole.parts], [len(part.vertices) for part in whole.parts])
    faces = np.zeros(len(whole.faces), np.dtype([("count", "u1"), ("corners", "<i4", 3)]))
    faces["count"], faces["corners"] = 3, whole.faces
    return "\n".join(lines).encode("ascii") + places.tobytes() + faces.tobytes()


def _obj(whole: _Whole) -> bytes:
    out = io.BytesIO()
    out.write(f"# {whole.title}\n".encode("ascii"))
    for part, name, start, end in zip(whole.parts, whole.named(), whole.before, whole.before[1:], strict=False):
        out.write(f"# {name}\no {_line(part.name).replace(' ', '_') or part.label}\n".encode("ascii"))
        places = whole.vertices[start:end].astype(np.float64)
        if whole.coloured:
            shades = whole.colours[start:end] / 255
            np.savetxt(out, np.column_stack([places, shades]), fmt="v %.9g %.9g %.9g %.6g %.6g %.6g")
        else:
            np.savetxt(out, places, fmt="v %.9g %.9g %.9g")
        np.savetxt(out, part.faces + int(start) + 1, fmt="f %d %d %d")
    return out.getvalue()


def _vtk(whole: _Whole, *, text: bool = False) -> bytes:
    # The title line is limited to 256 characters, so names of surfaces do not fit; their labels stand by the cells.
    out = io.BytesIO()
    kind = "ASCII" if text else "BINARY"
    out.write(f"# vtk DataFile Version 3.0\n{whole.title}\n{kind}\nDATASET POLYDATA\n".encode("ascii"))
    cells = np.column_stack([np.full(len(whole.faces), 3), whole.faces])
    blocks = (
        (f"POINTS {len(whole.vertices)} float", whole.vertices.astype(">f4"), "%.9g"),
        (f"POLYGONS {len(cells)} {cells.size}", cells.astype(">i4"), "%d"),
        (
            f"CELL_DATA {len(cells)}\nSCALARS label int 1\nLOOKUP_TABLE default",
            whole.labels.astype(">i4")[:, None],
            "%d",
        ),
    )
    for head, values, style in blocks:
        out.write(f"{head}\n".encode("ascii"))
        if text:
            np.savetxt(out, values, fmt=style)
        else:
            out.write(values.tobytes() + b"\n")
    return out.getvalue()


_ENCODERS: dict[str, Callable[[_Whole], bytes]] = {".stl": _stl, ".ply": _ply, ".obj": _obj, ".vtk": _vtk}
