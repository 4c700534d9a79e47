"""Mesh files: what stands in them byte by byte, and there and back."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vesalius.core.errors import LimitError, UnreadableFile, UsageError
from vesalius.io.limits import read_limits
from vesalius.io.mesh_in import read_surfaces
from vesalius.io.mesh_out import Frame, Surface, write_surface_files, write_surfaces

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ["a.stl", "a.ply", "a.obj", "a.vtk"]


def tetrahedron(shift=0.0, **words):
    places = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10.0]]) + shift
    return Surface(places, np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]), **words)


def volume(surface):
    a, b, c = np.moveaxis(surface.vertices[surface.faces], 1, 0)
    return np.einsum("fi,fi->", a, np.cross(b, c)) / 6


def corners(surface):
    """As stored: text holds the nine digits that a 32-bit float needs."""
    return surface.vertices[surface.faces].astype(np.float32)


def test_stl_byte_by_byte(tmp_path):
    one = tetrahedron(5)
    data = write_surfaces(one, tmp_path / "a.stl").read_bytes()
    assert len(data) == 84 + 50 * 4
    assert not data.startswith(b"solid")
    assert b"SPACE=LPS" in data[:80]
    assert struct.unpack("<I", data[80:84]) == (4,)
    record = struct.unpack("<12fH", data[84:134])
    assert record[:3] == (0, 0, -1)
    np.testing.assert_allclose(np.array(record[3:12]).reshape(3, 3), corners(one)[0])
    assert record[12] == 0


def test_ply_byte_by_byte(tmp_path):
    data = write_surfaces(tetrahedron(name="left lung", label=3, colour=(1, 2, 3)), tmp_path / "a.ply").read_bytes()
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment surface 3 left lung" in lines
    assert any("SPACE=LPS" in line for line in lines)
    assert len(body) == 4 * (12 + 3 + 4) + 4 * 13
    assert struct.unpack("<3f3Bi", body[19:38]) == (10, 0, 0, 1, 2, 3, 3)
    assert struct.unpack("<B3i", body[76:89]) == (3, 0, 2, 1)


def test_obj_and_vtk_as_text(tmp_path):
    text = write_surfaces([tetrahedron(name="a b", label=2), tetrahedron(20, name="c")], tmp_path / "a.obj").read_text()
    lines = text.splitlines()
    assert lines.count("o a_b") == lines.count("o c") == 1
    assert "f 1 3 2" in lines
    assert "f 5 7 6" in lines  # numbers run on over the objects
    assert "v 20 20 30" in lines
    text = write_surfaces(tetrahedron(label=7), tmp_path / "a.vtk", ascii_vtk=True).read_text()
    assert text.startswith(
        "# vtk DataFile Version 3.0\nVesalius SPACE=LPS unit=mm\nASCII\nDATASET POLYDATA\nPOINTS 4 float"
    )
    assert "POLYGONS 4 16\n3 0 2 1\n" in text
    assert text.endswith("LOOKUP_TABLE default\n7\n7\n7\n7\n")
    data = write_surfaces(tetrahedron(label=7), tmp_path / "b.vtk").read_bytes()
    at = data.index(b"POINTS 4 float\n") + len(b"POINTS 4 float\n")
    assert struct.unpack(">6f", data[at : at + 24]) == (0, 0, 0, 10, 0, 0)


@FEW
@given(st.sampled_from(KINDS), st.sampled_from(list(Frame)), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_there_and_back(tmp_path, name, frame, seed, coloured, text):
    draw = np.random.default_rng(seed)
    parts = []
    for label in (4, 2, 9)[: draw.integers(1, 4)]:
        places = draw.normal(size=(7, 3)).astype(np.float32) * 100
        faces = np.stack([draw.permutation(7)[:3] for _ in range(5)])
        used, numbers = np.unique(faces, return_inverse=True)
        colour = (int(draw.integers(256)), 7, 255) if coloured else None
        parts.append(Surface(places[used], numbers.reshape(-1, 3), f"part {label}", label, colour))
    path = write_surfaces(parts, tmp_path / name, frame=frame, ascii_vtk=text)
    assert path.read_bytes() == write_surfaces(parts, tmp_path / name, frame=frame, ascii_vtk=text).read_bytes()
    back = read_surfaces(path)
    if name == "a.stl":
        np.testing.assert_array_equal(corners(back[0]), np.concatenate([corners(part) for part in parts]))
        return
    assert [one.label for one in back] == [part.label for part in parts]
    for one, part in zip(back, parts, strict=True):
        np.testing.assert_array_equal(corners(one), corners(part))
        if name != "a.vtk":
            assert one.name == part.name
            assert one.colour == part.colour


def test_ras_turns_x_and_y_and_keeps_the_outside(tmp_path):
    one = tetrahedron()
    path = write_surfaces(one, tmp_path / "a.ply", frame="RAS")
    assert b"SPACE=RAS" in path.read_bytes()
    raw = read_surfaces(path, frame="LPS")[0]
    np.testing.assert_array_equal(raw.vertices, one.vertices * [-1, -1, 1])
    assert volume(raw) == pytest.approx(volume(one))
    np.testing.assert_array_equal(read_surfaces(path)[0].vertices, one.vertices)


def test_a_file_per_surface(tmp_path):
    parts = [tetrahedron(name="liver", label=1), tetrahedron(3, name="left/lung", label=2)]
    paths = write_surface_files(parts, tmp_path, suffix=".obj")
    assert paths[0].name == "1-liver.obj"
    assert len({path.parent for path in paths}) == 1
    assert read_surfaces(paths[1])[0].label == 2
    with pytest.raises(UsageError, match="different labels"):
        write_surface_files([parts[0], parts[0]], tmp_path)


PLY_ASCII = """ply
format ascii 1.0
element vertex 4
property double x
property double y
property double z
element face 1
property list uchar uint vertex_index
end_header
0 0 0
1 0 0
1 1 0
0 1 0
4 0 1 2 3
"""
STL_ASCII = """solid name
 facet normal 0 0 1
  outer loop
   vertex 0 0 0
   vertex 1 0 0
   vertex 0 1e0 0
  endloop
 endfacet
endsolid name
"""
VTK_51 = """# vtk DataFile Version 5.1
vtk output
ASCII
DATASET POLYDATA
POINTS 4 double
0 0 0 1 0 0 1 1 0
0 1 0
POLYGONS 2 4
OFFSETS vtktypeint64
0 4
CONNECTIVITY vtktypeint64
0 1 2 3
"""
OBJ_FOREIGN = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\ng sheet\nf 1/1/1 2/1/1 -2//1 -1//1\n"


@pytest.mark.parametrize(
    ("name", "text", "area"),
    [("a.ply", PLY_ASCII, 1), ("a.stl", STL_ASCII, 0.5), ("a.vtk", VTK_51, 1), ("a.obj", OBJ_FOREIGN, 1)],
)
def test_files_of_others(tmp_path, name, text, area):
    (tmp_path / name).write_text(text)
    (one,) = read_surfaces(tmp_path / name)
    a, b, c = np.moveaxis(corners(one), 1, 0)
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 == pytest.approx(area)


def test_binary_polygons_of_mixed_length(tmp_path):
    head = (
        b"ply\nformat binary_big_endian 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
    )
    head += b"element face 2\nproperty list uchar short vertex_indices\nproperty float quality\nend_header\n"
    places = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0, 0]], ">f4").tobytes()
    faces = struct.pack(">B4hfB3hf", 4, 0, 1, 2, 3, 0.5, 3, 1, 4, 2, 0.25)
    (tmp_path / "a.ply").write_bytes(head + places + faces)
    (one,) = read_surfaces(tmp_path / "a.ply")
    np.testing.assert_array_equal(one.faces, [[0, 1, 2], [0, 2, 3], [1, 4, 2]])


@pytest.mark.parametrize("name", KINDS)
def test_broken_files_are_refused_in_one_line(tmp_path, name):
    whole = write_surfaces(tetrahedron(label=2), tmp_path / name).read_bytes()
    path = tmp_path / f"b{name[1:]}"
    refused = []
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        try:
            read_surfaces(path)
        except UnreadableFile as error:
            refused.append(str(error))
    assert len(refused) > 3
    assert all(line.startswith(str(path)) and "\n" not in line for line in refused)
    path.write_bytes(b"\x89PNG\r\n" + bytes(200))
    with pytest.raises(UnreadableFile):
        read_surfaces(path)


def test_counts_are_checked_before_memory_is_taken(tmp_path):
    data = bytearray(write_surfaces(tetrahedron(), tmp_path / "a.stl").read_bytes())
    data[80:84] = struct.pack("<I", 2**32 - 1)
    (tmp_path / "b.stl").write_bytes(data)
    with pytest.raises(UnreadableFile, match="4294967295 triangles"):
        read_surfaces(tmp_path / "b.stl")
    text = write_surfaces(tetrahedron(), tmp_path / "a.ply").read_bytes()
    (tmp_path / "b.ply").write_bytes(text.replace(b"element vertex 4", b"element vertex 4000000000"))
    with pytest.raises(UnreadableFile, match="bytes"):
        read_surfaces(tmp_path / "b.ply")
    with read_limits(max_file_bytes=10), pytest.raises(LimitError):
        read_surfaces(tmp_path / "a.stl")


def test_bad_calls(tmp_path):
    with pytest.raises(UsageError, match="no surface"):
        write_surfaces([], tmp_path / "a.stl")
    with pytest.raises(UsageError, match="ends in"):
        write_surfaces(tetrahedron(), tmp_path / "a.glb")
    with pytest.raises(UsageError, match="LPS or RAS"):
        write_surfaces(tetrahedron(), tmp_path / "a.stl", frame="RPS")
    with pytest.raises(UsageError, match="name vertices"):
        Surface(np.zeros((2, 3)), np.array([[0, 1, 2]]))
    with pytest.raises(UsageError, match="finite"):
        Surface(np.full((3, 3), np.nan), np.array([[0, 1, 2]]))
    with pytest.raises(UsageError, match="colour"):
        tetrahedron(colour=(1, 2, 300))
    with pytest.raises(UsageError, match="read from"):
        read_surfaces(tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())


def test_an_empty_surface_can_be_written_and_read(tmp_path):
    nothing = Surface(np.zeros((0, 3)), np.zeros((0, 3), int))
    for name in KINDS[:2] + KINDS[3:]:
        (back,) = read_surfaces(write_surfaces(nothing, tmp_path / name))
        assert len(back.vertices) == len(back.faces) == 0
