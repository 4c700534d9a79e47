#!/usr/bin/env python3
"""Runs a LiteRT (.tflite) or ExecuTorch (.pte) file, and shows what a mobile app has to do around it.

    python run_mobile.py model.tflite picture.png            # prints one line of JSON for each image
    python run_mobile.py model.tflite scan.nii.gz --out out  # a segmentation also writes out/scan-mask.nii.gz

Needs Python, numpy, one runtime (`ai-edge-litert`, or `executorch` with torch) and, for reading files and for masks,
`run.py` beside this file. The graph of a classifier wants one image of one size: `sized` makes it from the pixels of a
file, `told` turns the answer into words. The graph of a segmentation wants one tile at a time, which `run.py` lays.
All follow the contract, JSON that lies in the model file and beside it. Arrays have axes (channels, z, y, x) or
(channels, y, x). The arithmetic is that of training, in the same order, so that every bit agrees.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
Contract = dict[str, Any]
Call = Callable[[Contract], Any]

INSIDE = "vesalius.contract.json"
"""Name of the contract in the archive behind the model; unzip reads it."""
_MOST = 1 << 20
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


# --- the image of the size of the graph ------------------------------------------------------------------------------


def sized(values: Array, contract: Contract, spacing: Any = None) -> Array:
    """Pixels of a file ``(C, *S)`` of any type as the graph wants them, float32 ``(channels, *size)``.

    Parameters
    ----------
    spacing
        Distance of the pixels (z, y, x) or (y, x) in mm; None where the file does not say it.

    Raises
    ------
    SystemExit
        If the image has other dimensions or channels than the model, or values that are no numbers.
    """
    dims, rule = contract["dims"], contract["resize"]
    if values.ndim == 4 and dims == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != dims + 1:
        raise SystemExit(f"the model needs {dims} dimensions, the image has {values.ndim - 1}")
    x = values.astype(np.float32)
    if not np.isfinite(x).all():
        raise SystemExit(f"{int((~np.isfinite(x)).sum())} pixels are not finite numbers; replace them")
    if rule["crop"] == "foreground":
        x = foreground(x, rule["threshold"])
    wanted = contract.get("spacing_mm")
    if wanted is not None and spacing is not None:
        steps = zip(x.shape[1:], tuple(spacing)[-dims:], wanted, strict=True)
        x = resized(x, [max(1, round(side * old / new)) for side, old, new in steps])
    x = with_channels(x, contract["channels"])
    if rule["crop"] == "center_square":
        side = min(x.shape[-2:])
        top, left = ((whole - side) // 2 for whole in x.shape[-2:])
        x = x[..., top : top + side, left : left + side]
    return fitted(x, rule["size"], rule["fit"])


def foreground(x: Array, threshold: float | None) -> Array:
    """The box around values above `threshold` (None: 5 % of the range above the minimum); all if there are none."""
    if threshold is None:
        low, high = float(x.min()), float(x.max())
        threshold = low + 0.05 * (high - low)
    above = (x > np.float32(threshold)).any(axis=0)
    if not above.any():
        return x
    hits = np.nonzero(above)
    return x[(slice(None), *(slice(int(line.min()), int(line.max()) + 1) for line in hits))]


def with_channels(x: Array, wanted: int) -> Array:
    """Gray as three equal colours, colours as gray."""
    if len(x) == wanted:
        return x
    if len(x) == 1 and wanted == 3:
        return np.repeat(x, 3, axis=0)
    if len(x) == 3 and wanted == 1:
        red, green, blue = (part * np.float32(weight) for part, weight in zip(x, _LUMINANCE, strict=True))
        return (red + green + blue)[None]
    raise SystemExit(f"the model needs {wanted} channels, the image has {len(x)}")


def fitted(x: Array, size: Any, fit: str) -> Array:
    """``(C, *S)`` as ``(C, *size)``: stretched; at its aspect ratio filled (pad) or cut (crop); not scaled (place)."""
    sides = x.shape[1:]
    ratios = [new / old for new, old in zip(size, sides, strict=True)]
    inner = list(size) if fit == "stretch" else list(sides)
    if fit in ("pad", "crop"):
        ratio = min(ratios) if fit == "pad" else max(ratios)
        inner = [max(1, round(side * ratio)) for side in sides]
    # Only the middle of what is larger than the result is computed.
    firsts = [max(0, (middle - new) // 2) for middle, new in zip(inner, size, strict=True)]
    shown = [min(middle, new) for middle, new in zip(inner, size, strict=True)]
    x = resized(x, inner, firsts, shown, ratios)
    if shown == list(size):
        return x
    edges = [x.take([0, -1], axis).min(axis=tuple(range(1, x.ndim))) for axis in range(1, x.ndim)]
    out = np.empty((len(x), *size), np.float32)
    out[:] = np.minimum.reduce(edges).reshape(-1, *(1,) * len(sides))
    starts = [(new - have) // 2 for new, have in zip(size, shown, strict=True)]
    out[(slice(None), *(slice(at, at + have) for at, have in zip(starts, shown, strict=True)))] = x
    return out


def resized(x: Array, inner: Any, firsts: Any = None, shown: Any = None, ratios: Any = None) -> Array:
    """``(C, *S)`` with `inner` pixels, of which `shown` from `firsts` on are kept.

    The axis that shrinks most goes first; sums in another order would have other bits.
    """
    sides = x.shape[1:]
    firsts, shown = firsts or [0] * len(sides), shown or list(inner)
    ratios = ratios or [new / old for new, old in zip(inner, sides, strict=True)]
    order = sorted((ratio, k if ratio < 1 else -k, k) for k, ratio in enumerate(ratios))
    for _, _, k in order:
        first, count = firsts[k], shown[k]
        if sides[k] == inner[k]:
            x = x[(slice(None),) * (1 + k) + (slice(first, first + count),)]
        else:
            x = along(x, weights(sides[k], inner[k])[first : first + count], 1 + k)
    return np.ascontiguousarray(x)


def weights(source: int, target: int) -> Array:
    """``(target, source)``: a triangle around the centre of each new pixel, as wide as the wider of both pixels."""
    step = source / target
    centre = ((np.arange(target) + 0.5) * step - 0.5)[:, None]
    line = np.clip(1 - np.abs(np.arange(source)[None] - centre) / max(step, 1.0), 0, None)
    return (line / line.sum(axis=1, keepdims=True)).astype(np.float32)


def along(x: Array, matrix: Array, axis: int) -> Array:
    """One axis of `x` times the rows of `matrix`: the few weights of each row, added from left to right."""
    used = matrix != 0
    first, last = used.argmax(axis=1), matrix.shape[1] - 1
    column = (-1,) + (1,) * (x.ndim - 1 - axis)
    total: Any = None
    for tap in range(int(used.sum(axis=1).max())):
        place = np.minimum(first + tap, last)
        weight = np.where(first + tap <= last, matrix[np.arange(len(matrix)), place], np.float32(0))
        part = x.take(place, axis) * weight.reshape(column)
        total = part if total is None else total + part
    return total


# --- the answer ------------------------------------------------------------------------------------------------------


def classify(call: Call, contract: Contract, scan: Any) -> Contract:
    """Probabilities by class, and what the model says; `scan` has `values` ``(C, *S)`` and `spacing` in mm or None."""
    return told(contract, call({"image": sized(scan.values, contract, scan.spacing)[None]})[0][0])


def told(contract: Contract, probabilities: Any) -> Contract:
    """Probabilities ``(classes,)`` by name, and the class (of several questions: the classes) that they decide for."""
    names, rule = contract["labels"]["names"], contract["decision"]
    found: Contract = {"probabilities": {name: float(p) for name, p in zip(names, probabilities, strict=True)}}
    if rule["kind"] == "each":
        found["classes"] = [name for name, p in zip(names, probabilities, strict=True) if p >= rule["threshold"]]
    elif rule["kind"] == "positive":
        positive = rule["positive"]
        found["class"] = names[positive if probabilities[positive] >= rule["threshold"] else 1 - positive]
    else:
        found["class"] = names[int(np.argmax(probabilities))]
    return found


# --- files and starting ----------------------------------------------------------------------------------------------


def contract_in(path: Any) -> Any:
    """The contract in a model file; None if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(INSIDE).file_size > _MOST:
                return None
            return json.loads(archive.read(INSIDE))
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None


def unchanged(path: Any) -> bool:
    """Whether the model is as it was written: its contract knows the digest of all that stands before the archive."""
    contract = contract_in(path)
    if contract is None:
        return False
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(INSIDE).header_offset
    return hashlib.sha256(Path(path).read_bytes()[:start]).hexdigest() == contract.get("sha256")


def opened(path: Any) -> Call:
    """The graph as a function of named float32 arrays, those of ``inputs`` in its contract, to its one answer."""
    return _litert(path) if Path(path).suffix == ".tflite" else _executorch(path)


def _litert(path: Any) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    return lambda inputs: list(run(**inputs).values())


def _executorch(path: Any) -> Call:
    import torch
    from executorch.runtime import Runtime

    method: Any = Runtime.get().load_program(Path(path)).load_method("forward")
    names = list((contract_in(path) or {})["inputs"])

    def call(inputs: Contract) -> Any:
        given = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names]
        return [method.execute(given)[0].numpy().copy()]  # the next call writes to the same place

    return call


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    import run  # it lies beside this file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--out", default=".")
    asked = parser.parse_args(argv)
    if not Path(asked.model).is_file():
        raise SystemExit(f"{asked.model}: there is no such file")
    contract = contract_in(asked.model)
    if contract is None:
        raise SystemExit(f"{asked.model}: holds no contract; expected a .tflite or .pte file of vesalius export")
    if not unchanged(asked.model):
        sys.stderr.write(f"{asked.model}: was changed after it was exported (its checksum is wrong); do not use it\n")
        raise SystemExit(6)
    call = opened(asked.model)
    for name in asked.inputs:
        if contract["task"] == "segment":
            found = run.answered(call, contract, name, asked.out)
        else:
            found = {"input": name, "task": contract["task"], **classify(call, contract, run.read(name))}
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
