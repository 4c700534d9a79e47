#!/usr/bin/env python3
"""Runs an exported model. Needs Python, numpy and onnxruntime, and nothing of the program that trained it.

    python run.py model.onnx scan.nii.gz                     # prints JSON; a segmentation also writes scan-mask.nii.gz
    python run.py model.onnx picture.png --out answers

What the model wants and says is in its own file, as JSON under the name ``vesalius.contract``. This program is the
reference of how to follow it: reading (PNG, NIfTI, one uncompressed DICOM image), asking, writing. Arrays have axes
(channels, z, y, x) or (channels, y, x); positions are those of DICOM (LPS, mm).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
Contract = dict[str, Any]
Call = Callable[[Contract], Any]


class Scan:
    """Values ``(C, *S)``; affine (4, 4) from index (z, y, x) to LPS mm, or None; spacing in mm, or None."""

    def __init__(self, values: Array, affine: Any = None, spacing: Any = None, header: Any = None) -> None:
        self.values, self.affine, self.header = values, affine, header
        if spacing is None and affine is not None:
            steps = np.linalg.norm(affine[:3, :3], axis=0)
            spacing = tuple(float(v) for v in steps[3 - (values.ndim - 1) :])
        self.spacing = spacing


# --- reading ---------------------------------------------------------------------------------------------------------


def read(path: Any) -> Scan:
    """A PNG, NIfTI-1 or uncompressed DICOM file; another one ends the program with one line."""
    path = Path(path)
    data = content(path)
    try:
        return _scan(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, path)
    except (ValueError, LookupError, TypeError, EOFError, OSError, struct.error, zlib.error) as error:
        raise SystemExit(f"{path}: is damaged or cut off ({error}); write it again") from error


def content(path: Path) -> bytes:
    """All bytes of a file; one that cannot be opened ends the program with one line."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be opened ({error.strerror})") from error


def _scan(data: bytes, path: Path) -> Scan:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return Scan(_png(data, path))
    if data[128:132] == b"DICM":
        return _dicom(data, path)
    if data[344:348] in (b"n+1\0",):
        return _nifti(data, path)
    raise SystemExit(f"{path}: expected a PNG, a NIfTI-1 file or an uncompressed DICOM file; convert it to one of them")


def _png(data: bytes, path: Path) -> Array:
    head: Any = None
    palette: Any = None
    packed, at = b"", 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            head = struct.unpack(">IIBBBBB", body)
        elif kind == b"PLTE":
            palette = np.frombuffer(body, np.uint8).reshape(-1, 3)
        elif kind == b"IDAT":
            packed += body
        at += 12 + size
    width, height, depth, kind, _, _, interlaced = head
    if interlaced or depth not in (8, 16):
        raise SystemExit(f"{path}: expected a PNG of 8 or 16 bit without interlacing; save it again")
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    step = samples * depth // 8
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * step)
    out = np.zeros((height, width * step), np.uint8)
    above = np.zeros(width * step, np.int64)
    for y, row in enumerate(rows):
        above = out[y] = _unfilter(int(row[0]), row[1:].astype(np.int64), above.astype(np.int64), step)
    if depth == 16:
        out = out.reshape(height, -1, 2).astype(np.uint16)
        out = out[..., 0] << 8 | out[..., 1]
    out = out.reshape(height, width, samples)
    if kind == 3:
        out = palette[out[..., 0]]
        out = out[..., :1] if (out == out[..., :1]).all() else out
    if samples in (2, 4):  # what shows through is black
        alpha = out[..., -1:].astype(np.float64) / (2**depth - 1)
        out = np.rint(out[..., :-1] * alpha).astype(out.dtype)
    return np.ascontiguousarray(out.transpose(2, 0, 1))


def _unfilter(kind: int, row: Array, above: Array, step: int) -> Array:
    """One line of a PNG (ISO/IEC 15948, section 9.2)."""
    if kind == 0:
        return row.astype(np.uint8)
    if kind == 2:
        return (row + above).astype(np.uint8)
    if kind == 1:
        return np.cumsum(row.reshape(-1, step), axis=0).reshape(-1).astype(np.uint8)
    line = row.tolist()
    up = above.tolist()
    for x in range(len(line)):
        left = line[x - step] if x >= step else 0
        if kind == 3:
            add = (left + up[x]) // 2
        else:
            corner = up[x - step] if x >= step else 0
            a, b, c = abs(up[x] - corner), abs(left - corner), abs(left + up[x] - 2 * corner)
            add = left if a <= b and a <= c else up[x] if b <= c else corner
        line[x] = (line[x] + add) & 255
    return np.array(line, np.uint8)


def _nifti(data: bytes, path: Path) -> Scan:
    order = "<" if struct.unpack("<i", data[:4])[0] == 348 else ">"

    def field(kind: str, at: int) -> Any:
        return np.frombuffer(data, order + kind, offset=at, count=1)[0]

    dim = np.frombuffer(data, order + "i2", 8, 40)
    sides = [int(v) for v in dim[1 : 1 + dim[0]]]
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    kinds = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
    code = int(field("i2", 70))
    if code not in kinds or len(sides) > 4:
        raise SystemExit(f"{path}: expected real numbers in 2 to 4 axes, found type {code} and sides {sides}")
    start = int(field("f4", 108))
    stored = np.frombuffer(data, order + kinds[code], int(np.prod(sides)), start).reshape(sides, order="F")
    values = stored.T if len(sides) == 4 else stored.T[None]
    slope, inter = float(field("f4", 112)), float(field("f4", 116))
    if slope not in (0.0,) and np.isfinite(slope) and (slope, inter) != (1.0, 0.0):
        values = values.astype(np.float64) * slope + inter
    unit = {1: 1000.0, 2: 1.0, 3: 0.001}.get(data[123] & 7)  # mm per step: metres, millimetres, micrometres
    affine = _nifti_affine(data, order)
    spacing = None
    if affine is not None:
        affine[:3] *= unit or 1.0
    elif unit is not None:
        steps = np.frombuffer(data, order + "f4", 8, 76)[1 : 1 + min(len(sides), 3)]
        spacing = tuple(abs(float(v)) * unit for v in steps[::-1])
    return Scan(np.ascontiguousarray(values), affine, spacing, (data[:348], order))


def _nifti_affine(data: bytes, order: str) -> Any:
    """Index (z, y, x) to LPS mm from the sform, else the qform (nifti1.h, method 3 and 2)."""
    qform, sform = np.frombuffer(data, order + "i2", 2, 252)
    pixdim = np.frombuffer(data, order + "f4", 8, 76).astype(np.float64)
    full = np.eye(4)
    if sform > 0:
        full[:3] = np.frombuffer(data, order + "f4", 12, 280).reshape(3, 4)
    elif qform > 0:
        b, c, d, x, y, z = np.frombuffer(data, order + "f4", 6, 256).astype(np.float64)
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        turn = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ])  # fmt: skip
        full[:3, :3] = turn * (pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1))
        full[:3, 3] = x, y, z
    else:
        return None
    full[:2] *= -1  # RAS to LPS
    return full[:, [2, 1, 0, 3]]


def _dicom(data: bytes, path: Path) -> Scan:
    """One image without compression, rescaled; MONOCHROME1 is turned round."""
    meta, at = _elements(data, 132, len(data), True, lambda tag: tag[0] != 2)
    syntax = meta.get((2, 0x10), b"").rstrip(b"\0 ").decode()
    if syntax not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
        raise SystemExit(f"{path}: expected uncompressed little-endian DICOM, found transfer syntax {syntax}")
    one, _ = _elements(data, at, len(data), syntax.endswith(".1"), lambda tag: False)

    def numbers(group: int, element: int) -> Any:
        text = one.get((group, element), b"").decode().strip("\0 ")
        return [float(part) for part in text.split("\\")] if text else None

    def number(element: int, default: int = 0) -> int:
        return struct.unpack("<H", one[0x28, element][:2])[0] if (0x28, element) in one else default

    rows, columns, samples, bits, signed = (number(e, d) for e, d in ((16, 0), (17, 0), (2, 1), (256, 16), (259, 0)))
    if (0x7FE0, 0x10) not in one or numbers(0x28, 8) not in (None, [1.0]):
        raise SystemExit(f"{path}: expected the pixels of one image; convert series to NIfTI")
    kind = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
    flat = np.frombuffer(one[0x7FE0, 0x10], kind, rows * columns * samples)
    if samples == 1 or number(6):
        values = flat.reshape(samples, rows, columns)
    else:
        values = flat.reshape(rows, columns, samples).transpose(2, 0, 1)
    if one.get((0x28, 4), b"").strip(b"\0 ") == b"MONOCHROME1":
        stored = number(0x101, bits)
        ends = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
        values = sum(ends) - values.astype(np.int64)
    slope, shift = numbers(0x28, 0x1053), numbers(0x28, 0x1052)
    if slope or shift:
        values = values * (slope or [1.0])[0] + (shift or [0.0])[0]
    steps = numbers(0x28, 0x30) or numbers(0x18, 0x1164)
    return Scan(values, spacing=None if steps is None else tuple(steps))


def _elements(data: bytes, at: int, end: int, explicit: bool, stop: Any) -> Any:
    """Elements from `at` on; sequences are passed over (PS3.5, section 7)."""
    long = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
    found: dict[tuple[int, int], bytes] = {}
    while at + 8 <= end:
        tag = struct.unpack("<HH", data[at : at + 4])
        if stop(tag):
            break
        if explicit and tag[0] != 0xFFFE:
            kind = data[at + 4 : at + 6]
            if kind in long:
                (size,), head = struct.unpack("<I", data[at + 8 : at + 12]), 12
            else:
                (size,), head = struct.unpack("<H", data[at + 6 : at + 8]), 8
        else:
            (size,), head = struct.unpack("<I", data[at + 4 : at + 8]), 8
        at += head
        if tag in ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)):
            return found, at
        if size == 0xFFFFFFFF or tag == (0xFFFE, 0xE000):
            _, at = _elements(data, at, end if size == 0xFFFFFFFF else at + size, explicit, stop)
            continue
        found[tag] = data[at : at + size]
        at += size
    return found, at


# --- classification --------------------------------------------------------------------------------------------------


def classify(call: Call, contract: Contract, scan: Scan) -> Contract:
    """Probabilities by class, and what the model says."""
    values = with_channels(scan.values, contract["channels"])
    if values.ndim == 4 and contract["dims"] == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != contract["dims"] + 1:
        raise SystemExit(f"the model needs {contract['dims']} dimensions, the image has {values.ndim - 1}")
    target = contract.get("spacing_mm")
    values = values.astype(np.float32)
    if target is not None and scan.spacing is not None:
        sides = [max(1, round(n * a / b)) for n, a, b in zip(values.shape[1:], scan.spacing, target, strict=True)]
        values = resample(values, sides)
    probabilities, decision = call({"image": values[None]})
    names = contract["labels"]["names"]
    found: Contract = {"probabilities": {name: float(p) for name, p in zip(names, probabilities[0], strict=True)}}
    if contract["labels"].get("multilabel"):
        found["classes"] = [name for name, said in zip(names, decision[0], strict=True) if said]
    else:
        found["class"] = names[int(decision[0])]
    return found


def with_channels(values: Array, wanted: int) -> Array:
    """Gray as three equal colours, colours as gray."""
    if values.shape[0] == wanted:
        return values
    if values.shape[0] == 1 and wanted == 3:
        return np.repeat(values, 3, axis=0)
    if values.shape[0] == 3 and wanted == 1:
        return np.tensordot(np.array([0.299, 0.587, 0.114]), values.astype(np.float32), axes=1)[None].astype(np.float32)
    raise SystemExit(f"the model needs {wanted} channels, the image has {values.shape[0]}")


def weights(source: int, target: int) -> Array:
    """``(target, source)``: a triangle around the centre of each new pixel, as wide as the wider of both pixels."""
    step = source / target
    centre = ((np.arange(target) + 0.5) * step - 0.5)[:, None]
    line = np.clip(1 - np.abs(np.arange(source)[None] - centre) / max(step, 1.0), 0, None)
    return (line / line.sum(axis=1, keepdims=True)).astype(np.float32)


def resample(values: Array, sides: Any) -> Array:
    """``(C, *S)`` to other sides, one axis after the other."""
    for axis, side in enumerate(sides, start=1):
        if values.shape[axis] != side:
            moved = np.moveaxis(values, axis, -1) @ weights(values.shape[axis], side).T
            values = np.moveaxis(moved, -1, axis)
    return np.ascontiguousarray(values, dtype=np.float32)


ANSWERS: dict[str, Callable[[Call, Contract, Scan], Any]] = {"classify": classify}
"""What each kind of model needs around it; the parts for masks and objects add theirs."""


# --- writing and starting --------------------------------------------------------------------------------------------


def write_nifti(path: Any, mask: Array, scan: Scan) -> None:
    """A label map with the geometry of the scan; layers stand along the fourth axis."""
    layers = mask if mask.ndim > scan.values.ndim - 1 else mask[None]
    sides = layers.shape[1:][::-1]
    if scan.header is not None:
        raw, order = bytearray(scan.header[0]), scan.header[1]
    else:
        raw, order = bytearray(348), "<"
        struct.pack_into("<i", raw, 0, 348)
        spacing = scan.spacing or (1.0,) * len(sides)
        struct.pack_into("<8f", raw, 76, 1.0, *spacing[::-1], *(1.0,) * (7 - len(sides)))
        raw[123] = 2 if scan.spacing is not None else 0
        if scan.affine is not None:
            full = scan.affine[:, [2, 1, 0, 3]].copy()
            full[:2] *= -1
            struct.pack_into("<h", raw, 254, 1)
            struct.pack_into("<12f", raw, 280, *full[:3].reshape(-1))
    shape = (*sides, *(() if len(layers) == 1 else (1,) * (3 - len(sides)) + (len(layers),)))
    kind, bits = {1: (2, 8), 2: (512, 16), 4: (8, 32)}[layers.dtype.itemsize]
    struct.pack_into(f"{order}8h", raw, 40, len(shape), *shape, *(1,) * (7 - len(shape)))
    struct.pack_into(f"{order}hh", raw, 70, kind, bits)
    struct.pack_into(f"{order}3f", raw, 108, 352.0, 1.0, 0.0)
    raw[344:348] = b"n+1\0"
    body = np.ascontiguousarray(layers).astype(np.dtype(layers.dtype).newbyteorder(order)).tobytes()
    Path(path).write_bytes(gzip.compress(bytes(raw) + b"\0" * 4 + body, 1))


SEAL = b"vesalius-sha256:"


def unchanged(data: bytes) -> bool:
    """Whether a model file is as it was written: the digest in it is that of all bytes, with zeros in its place."""
    at = data.find(SEAL) + len(SEAL)
    blank = data[:at] + b"0" * 64 + data[at + 64 :]
    return SEAL in data and hashlib.sha256(blank).hexdigest().encode() == data[at : at + 64]


def load(path: Any) -> tuple[Call, Contract]:
    """The model as a function of named arrays, and its contract; one that was changed ends the program with code 6."""
    import onnxruntime

    data = content(Path(path))
    if not unchanged(data):
        sys.stderr.write(f"{path}: was changed after it was exported, or is no model of vesalius; do not use it\n")
        raise SystemExit(6)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map["vesalius.contract"])
    return (lambda inputs: session.run(None, inputs)), contract


def answered(call: Call, contract: Contract, name: Any, out: Any) -> Contract:
    """What the model says about a file, in words and numbers; a mask is written into the folder `out`."""
    kind = "objects" if contract.get("decide") == "objects" else contract["task"]
    if kind not in ANSWERS:
        raise SystemExit("this program came with another kind of model; take the one beside the model")
    scan = read(name)
    found: Contract = {"input": str(name), "task": contract["task"]}
    answer = ANSWERS[kind](call, contract, scan)
    if kind == "classify":
        return found | answer
    Path(out).mkdir(parents=True, exist_ok=True)
    stem = Path(name).name.removesuffix(".gz").rpartition(".")[0] or Path(name).name
    path = Path(out) / f"{stem}-mask.nii.gz"
    write_nifti(path, answer, scan)
    if contract["decide"] == "regions":
        counts = [int(layer.sum()) for layer in answer]
    elif kind == "objects":
        counts, found["objects"] = [int((answer > 0).sum())], int(answer.max())
    else:
        counts = [int((answer == value).sum()) for value in range(1, len(contract["labels"]["names"]))]
    return found | {"mask": str(path), "voxels": dict(zip(contract["structures"], counts, strict=True))}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--out", default=".")
    asked = parser.parse_args(argv)
    call, contract = load(asked.model)
    for name in asked.inputs:
        sys.stdout.write(json.dumps(answered(call, contract, name, asked.out)) + "\n")


if __name__ == "__main__":
    main()
