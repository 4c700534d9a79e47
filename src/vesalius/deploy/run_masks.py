"""Masks from the tiles of an exported segmentation.

Turning and cutting, laying tiles, the way back to the voxels of the file, cleaning. A part of ``run.py``, see
`vesalius.deploy.one_file`; it needs Python and numpy.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from vesalius.deploy.runner import ANSWERS, Array, Call, Contract, Scan, resample, with_channels

ROBUST, AIR, SAMPLES = (0.5, 99.5), 0.1, 1 << 21


def segment(call: Call, contract: Contract, scan: Scan) -> Array:
    """The label map ``(*S)`` on the grid of the file; of overlapping structures one layer each ``(K, *S)``."""
    case = Case(contract, scan)
    return case.back(tiles(call, contract, case))


ANSWERS["segment"] = segment


class Case:
    """A scan as the network sees it, and the way back."""

    def __init__(self, contract: Contract, scan: Scan) -> None:
        spec, values = contract["conform"], scan.values
        self.contract, self.spacing = contract, scan.spacing
        self.dims = values.ndim - 1
        if self.dims != spec["dims"]:
            raise SystemExit(f"the model needs {spec['dims']} dimensions, the image has {self.dims}")
        turned_too = self.dims == 3 and spec.get("orient", True)
        plain = (tuple(range(self.dims)), (False,) * self.dims)
        way: Any = pose(scan.affine) if turned_too else plain
        self.axes, self.flips = way
        turned = self.turn(with_channels(values, spec["channels"]))
        self.whole = turned.shape[1:]
        low, high = used_box(turned) if spec.get("crop") == "border" else ((0,) * self.dims, self.whole)
        self.box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        cut = turned[(slice(None), *self.box)]
        self.cut = cut.shape[1:]
        spacing = None if scan.spacing is None else [scan.spacing[axis] for axis in self.axes]
        self.scale, self.shift = normal(cut, spec)
        window = spec.get("window")
        values = cut.astype(np.float32)
        values = values if window is None else values.clip(*map(np.float32, window))
        self.values = resample(values, self._sides(spec, spacing))

    def _sides(self, spec: Contract, spacing: Any) -> Any:
        if spec.get("spacing_mm") is not None and spacing is not None:
            return [max(1, round(n * a / b)) for n, a, b in zip(self.cut, spacing, spec["spacing_mm"], strict=True)]
        factor = float(spec.get("scale") or 1.0)
        return [max(1, round(n * factor)) for n in self.cut]

    def turn(self, array: Array) -> Array:
        """The array with its axes closest to patient z, y, x."""
        view = array.transpose(0, *(1 + axis for axis in self.axes))
        return view[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in self.flips))]

    def back(self, logits: Array) -> Array:
        """The decision on the grid of the file."""
        full, regions = resample(logits, self.cut), self.contract["decide"] == "regions"
        kind = np.uint8 if regions or len(full) < 256 else np.uint16
        found = self.turned_back((full > 0 if regions else full.argmax(axis=0)[None]).astype(kind))
        unit = 1.0 if self.spacing is None else float(np.prod(self.spacing))
        for step in self.contract.get("post") or []:
            if regions and step["label"] is not None:
                clean(found[step["label"]], {**step, "label": 1}, unit)
            elif regions:
                union = found.any(axis=0).astype(np.uint8)
                clean(union, step, unit)
                found *= union
            else:
                clean(found[0], step, unit)
        return found if regions else found[0]

    def turned_back(self, cut: Array) -> Array:
        """Layers ``(K, *cut)`` on the whole grid of the file, 0 where nothing was looked at."""
        whole = np.zeros((len(cut), *self.whole), cut.dtype)
        whole[(slice(None), *self.box)] = cut
        whole = whole[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in self.flips))]
        return np.ascontiguousarray(whole.transpose(0, *(1 + int(axis) for axis in np.argsort(self.axes))))


def pose(affine: Any) -> Any:
    """Which axis of the file runs along patient z, y, x, and whether it runs the other way."""
    if affine is None:
        return (0, 1, 2), (False,) * 3
    along = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))[::-1]
    best = max(itertools.permutations(range(3)), key=lambda order: sum(abs(along[k, a]) for k, a in enumerate(order)))
    return best, tuple(bool(along[k, axis] < 0) for k, axis in enumerate(best))


def used_box(values: Array) -> Any:
    """The box outside which every plane has one and the same value in all channels."""
    corner = np.array([channel.flat[0] for channel in values]).reshape(-1, *(1,) * (values.ndim - 1))
    differs = (values != corner).any(axis=0)
    low, high = [], []
    for axis in range(differs.ndim):
        used = np.flatnonzero(differs.any(axis=tuple(k for k in range(differs.ndim) if k != axis)))
        low.append(int(used[0]) if used.size else 0)
        high.append(int(used[-1]) + 1 if used.size else differs.shape[axis])
    return tuple(low), tuple(high)


def normal(cut: Array, spec: Contract) -> tuple[Array, Array]:
    """Factor and shift of every channel."""
    rule, channels = spec["normalise"], spec["channels"]
    if rule["kind"] == "none":
        return np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if rule["kind"] == "fixed":
        mean, std = (np.resize(np.asarray(rule[key], np.float64), channels) for key in ("mean", "std"))
        return (1 / std).astype(np.float32), (-mean / std).astype(np.float32)
    step = max(1, int(np.ceil(np.prod(cut.shape[1:]) / SAMPLES)))
    every = 1 if step == 1 else max(1, round(step ** (1 / (cut.ndim - 1))))
    some = cut[(slice(None), *(slice(None, None, every),) * (cut.ndim - 1))].astype(np.float32)
    some = some.reshape(len(cut), -1)
    if spec.get("window") is not None:
        some = some.clip(*map(np.float32, spec["window"]))
    if rule["kind"] == "percentile":
        low, high = np.percentile(some, ROBUST)
        width = max(float(high - low), 1e-6)
        return np.full(channels, 4 / width, np.float32), np.full(channels, -4 * low / width - 2, np.float32)
    mean, std = np.empty(channels), np.empty(channels)
    for channel, values in enumerate(some):
        smallest = float(values.min())
        low, high = np.percentile(values, ROBUST)
        air = smallest if float((values == smallest).mean()) > 0.02 else float(low + AIR * (high - low))
        inside = values[values > air]
        inside = inside if inside.size > 16 else values
        mean[channel], std[channel] = inside.mean(), max(float(inside.std()), 1e-6)
    return (1 / std).astype(np.float32), (-mean / std).astype(np.float32)


def starts(side: int, patch: int, overlap: float, slack: float) -> list[int]:
    """First voxels of the tiles along one axis."""
    step = max(1, int(patch * (1 - overlap)))
    steps, fewer = int(np.ceil((side - patch) / step)), int(np.ceil((side - patch) / step - slack))
    if 0 < fewer < steps and side - patch <= fewer * patch:
        return [round(k * (side - patch) / fewer) for k in range(fewer + 1)]
    return [min(k * step, side - patch) for k in range(steps + 1)]


def tiles(call: Call, contract: Contract, case: Case) -> Array:
    """Logits ``(K, *S)``: the mean of all tiles over a voxel, weighted by a Gaussian."""
    rule = contract["tile"]
    patch, sides = rule["patch"], case.values.shape[1:]
    padded = [max(side, own) for side, own in zip(sides, patch, strict=True)]
    before = [(long - side) // 2 for long, side in zip(padded, sides, strict=True)]
    # The network must see 0 outside of the volume: the value that becomes 0.
    empty = -case.shift / case.scale
    whole = np.empty((len(case.values), *padded), np.float32)
    whole[:] = empty.reshape(-1, *(1,) * case.dims)
    inner = tuple(slice(a, a + n) for a, n in zip(before, sides, strict=True))
    whole[(slice(None), *inner)] = case.values
    line = np.ones((), np.float32)
    for side in patch:
        place = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        line = line[..., None] * np.exp(place**2 / np.float32(-2 * (rule["sigma"] * side) ** 2))
    line = np.maximum(line, np.float32(max(float(line.min()), rule["floor"])))
    total: Any = None
    weight = np.zeros(padded, np.float32)
    grid = [starts(n, own, rule["overlap"], rule["slack"]) for n, own in zip(padded, patch, strict=True)]
    for corner in itertools.product(*grid):
        cut = tuple(slice(a, a + n) for a, n in zip(corner, patch, strict=True))
        found = call({"tiles": whole[(slice(None), *cut)][None], "scale": case.scale, "shift": case.shift})[0][0]
        total = np.zeros((len(found), *padded), np.float32) if total is None else total
        total[(slice(None), *cut)] += found * line
        weight[cut] += line
    total /= weight
    return total[(slice(None), *inner)]


def clean(labels: Array, step: Contract, unit: float) -> None:
    """Components below a volume and all but the largest go, holes are filled; `labels` is changed."""
    inside = labels != 0 if step["label"] is None else labels == step["label"]
    if not inside.any():
        return
    near = step.get("connectivity") or (26 if labels.ndim == 3 else 8)
    parts = components(inside, near)
    voxels = np.bincount(parts.reshape(-1))[1:]
    stay = voxels * unit >= step.get("min_volume", 0.0) * (1 - 1e-9)
    if step.get("keep") == "largest" and stay.any():
        stay &= voxels == voxels[stay].max()
    kept = np.concatenate([[False], stay])[parts]
    labels[inside & ~kept] = 0
    if step.get("fill_holes") and step["label"] is not None:
        around = {26: 6, 18: 6, 6: 26, 8: 4, 4: 8}[near]
        outside = components(np.pad(~kept, 1, constant_values=True), around)
        hidden = ((outside > 0) & (outside != outside.flat[0]))[(slice(1, -1),) * labels.ndim]
        labels[hidden & (labels == 0)] = step["label"]


def components(mask: Array, near: int) -> Array:
    """Connected parts, numbered from 1: a voxel takes the largest number near it, and that of the voxel it names."""
    reach = {4: 1, 6: 1, 8: 2, 18: 2, 26: 3}[near]
    moves = [move for move in itertools.product((-1, 0, 1), repeat=mask.ndim) if 0 < sum(map(abs, move)) <= reach]
    number = np.pad(np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0), 1)
    inner = (slice(1, -1),) * mask.ndim
    while True:
        best = number[inner].copy()
        for move in moves:
            near_by = tuple(slice(1 + a, n - 1 + a) for a, n in zip(move, number.shape, strict=True))
            np.maximum(best, number[near_by], out=best, where=mask)
        best = np.concatenate([[0], best.reshape(-1)])[best]
        if (best == number[inner]).all():
            return np.unique(best, return_inverse=True)[1].reshape(mask.shape) + (0 if (best == 0).any() else 1)
        number[inner] = best
