"""What leaves as one graph: preprocessing, networks, views and the way to probabilities, without weights of its own.

`ClassifyGraph` takes raw pixels of any size and gives calibrated probabilities. `TileGraph` takes tiles of raw values
and gives logits; laying tiles over a volume and back is the runner's part (`deploy.runner`), which the contract of the
file describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.core.errors import UsageError
from vesalius.models.segmenters import fold_batchnorm
from vesalius.predict.bundle import Bundle
from vesalius.transforms.preprocess import Preprocess


class AnySize(Preprocess):
    """`Preprocess.forward` for images of any size: interpolation weights are computed from the size of the image.

    Weights are quotients of whole numbers, so they equal those of `transforms.resample` to the last bit of float32,
    whatever the size.
    """

    def _sized(self, x: Tensor) -> Tensor:
        spec = self._spec
        return _resized(x, self.size, crop=spec["crop"], threshold=spec["threshold"], fit=spec["fit"])


def _resized(x: Tensor, size: Sequence[int], *, crop: str, threshold: float | None, fit: str) -> Tensor:
    """``(B, C, *S)`` cropped, resized and filled to ``(B, C, *size)``."""
    ends = _box(x, crop, threshold)
    counts = [stop - start for start, stop in ends]
    inner = _inner(counts, size, fit)
    rows, inside, border = [], [], []
    for axis, new in enumerate(size):
        matrix, within, edge = _axis_weights(
            x.shape[2 + axis], ends[axis][0], counts[axis], inner[axis], int(new), x.device
        )
        rows.append(matrix)
        inside.append(within)
        border.append(edge)
    y = x
    for axis, matrix in enumerate(rows):
        # (B or 1, new, old) times the axis, which is moved to the end and back.
        moved = y.movedim(2 + axis, -1)
        lead = (slice(None),) + (None,) * (moved.ndim - 3)
        y = torch.matmul(moved, matrix.transpose(1, 2)[lead]).movedim(-1, 2 + axis)
    if fit in ("stretch", "crop"):
        return y
    shown = _outer(inside, all)
    edge = shown & _outer(border, any)
    least = torch.where(edge, y, torch.full_like(y, float("inf"))).amin(dim=tuple(range(2, y.ndim)), keepdim=True)
    return torch.where(shown, y, least)


def _outer(lines: Sequence[Tensor], how: Any) -> Tensor:
    """Per-axis truth values ``(B, n)`` as one array ``(B, 1, *S)``."""
    total: Tensor | None = None
    for axis, line in enumerate(lines):
        shape = [line.shape[0], 1] + [1] * len(lines)
        shape[2 + axis] = line.shape[1]
        part = line.reshape(shape)
        total = part if total is None else (total & part if how is all else total | part)
    if total is None:
        raise ValueError("an image has at least one axis")
    return total


def _box(x: Tensor, crop: str, threshold: float | None) -> list[tuple[Tensor, Tensor]]:
    """First and one past the last pixel of every axis that are used, whole numbers ``(B or 1,)``."""
    sides = [torch.arange(side, device=x.device).amax(dim=0, keepdim=True) + 1 for side in x.shape[2:]]
    zero = torch.zeros(1, dtype=torch.int64, device=x.device)
    if crop == "none":
        return [(zero, side) for side in sides]
    if crop == "center_square":
        square = torch.minimum(sides[-1], sides[-2])
        ends = [(zero, side) for side in sides[:-2]]
        for side in sides[-2:]:
            start = (side - square) // 2
            ends.append((start, start + square))
        return ends
    axes = tuple(range(1, x.ndim))
    if threshold is None:
        low, high = x.amin(dim=axes, keepdim=True), x.amax(dim=axes, keepdim=True)
        above = (x > low + 0.05 * (high - low)).to(torch.int64).amax(dim=1)
    else:
        above = (x > threshold).to(torch.int64).amax(dim=1)
    nothing = above.flatten(1).amax(dim=1) == 0
    ends = []
    for axis in range(above.ndim - 1):
        others = tuple(1 + k for k in range(above.ndim - 1) if k != axis)
        hit = above.amax(dim=others)
        place = torch.arange(above.shape[1 + axis], device=x.device)[None]
        start = torch.where(hit > 0, place, sides[axis]).amin(dim=1)
        stop = torch.where(hit > 0, place + 1, torch.zeros_like(place)).amax(dim=1)
        ends.append((torch.where(nothing, torch.zeros_like(start), start), torch.where(nothing, sides[axis], stop)))
    return ends


def _inner(counts: Sequence[Tensor], size: Sequence[int], fit: str) -> list[Tensor]:
    """Pixels that the image takes in the result, before it is cut or filled."""
    if fit == "stretch":
        return [torch.full_like(count, int(new)) for count, new in zip(counts, size, strict=True)]
    if fit == "place":
        return list(counts)
    ratios = [int(new) / count.to(torch.float64) for count, new in zip(counts, size, strict=True)]
    ratio = ratios[0]
    for other in ratios[1:]:
        ratio = torch.minimum(ratio, other) if fit == "pad" else torch.maximum(ratio, other)
    return [torch.round(count.to(torch.float64) * ratio).clamp_min(1).to(torch.int64) for count in counts]


def _axis_weights(
    side: Any, start: Tensor, count: Tensor, inner: Tensor, new: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ``(B, new, side)`` of one axis, and which of the new pixels show the image and its outermost pixels."""
    pixel = torch.arange(side, device=device)[None, None]
    row = torch.arange(new, device=device)[None]
    n, m, first = count[:, None], inner[:, None], start[:, None]
    # Where the image is larger than the result it is cut in the middle, where it is smaller it stands there.
    shift = torch.where(
        m >= new, torch.div(m - new, 2, rounding_mode="floor"), -torch.div(new - m, 2, rounding_mode="floor")
    )
    place = row + shift
    within = (place >= 0) & (place < m)
    # |pixel - centre| / width with centre = (place + 1/2) n / m - 1/2 and width = max(n / m, 1), in whole numbers.
    apart = ((2 * place + 1) * n - m)[:, :, None] - 2 * m[:, :, None] * (pixel - first[:, :, None])
    reach = 2 * torch.maximum(n, m)[:, :, None]
    used = (pixel >= first[:, :, None]) & (pixel < (first + n)[:, :, None])
    weight = (1 - apart.abs().to(torch.float32) / reach.to(torch.float32)).clamp_min(0) * used
    weight = weight / weight.sum(dim=2, keepdim=True).clamp_min(1e-12)
    edge = within & ((place == 0) | (place == m - 1) | (row == 0) | (row == new - 1))
    return weight * within[:, :, None], within, edge


class ClassifyGraph(nn.Module):
    """Raw pixels ``(B, C, *S)`` float32 to probabilities ``(B, K)`` and the decision.

    The decision is the number of the class ``(B,)``, of a multi-label question 0 or 1 for each ``(B, K)``.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        if bundle.task != "classify":
            raise UsageError(f"this bundle is for task {bundle.task}, not for classification")
        spec = dict(bundle.preprocess)
        self.outside = {key: spec.pop(key) for key in ("spacing_mm",) if spec.get(key) is not None}
        self.preprocess = AnySize.from_spec(spec)
        self.networks = nn.ModuleList(fold_batchnorm(network).eval() for network in bundle.networks())
        self.views = [tuple(2 + int(axis) for axis in view) for view in bundle.views] or [()]
        self.temperature, self.threshold = float(bundle.temperature), bundle.threshold
        self.multilabel, self.binary = bundle.labels.multilabel, bundle.labels.binary
        self.positive = int(bundle.labels.positive) if bundle.labels.binary else 0

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and decision."""
        x = self.preprocess(image)
        total: Tensor | None = None
        for view in self.views:
            seen = x.flip(view) if view else x
            for network in self.networks:
                logits = network(seen)
                logits = logits if self.multilabel else F.log_softmax(logits, dim=1)
                total = logits if total is None else total + logits
        if total is None:
            raise ValueError("a bundle has at least one network")
        mean = total / (len(self.views) * len(self.networks)) / self.temperature
        if self.multilabel:
            p = torch.sigmoid(mean)
            return p, (p >= 0.5).to(torch.int64)
        p = torch.softmax(mean, dim=1)
        if self.threshold is not None and self.binary:
            yes = (p[:, self.positive] >= self.threshold).to(torch.int64)
            return p, yes if self.positive == 1 else 1 - yes
        return p, p.argmax(dim=1)


class TileGraph(nn.Module):
    """Tiles ``(B, C, *patch)`` float32 of raw values to logits ``(B, K, *patch)``.

    Values are cut to the window of the plan, multiplied by `scale` and shifted by `shift` ``(C,)``, which the runner
    computes from the whole image (or takes from the contract where they are fixed); then networks and mirrored views
    are averaged.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        if bundle.task != "segment":
            raise UsageError(f"this bundle is for task {bundle.task}, not for segmentation")
        window = bundle.preprocess.get("window")
        self.window = None if window is None else (float(window[0]), float(window[1]))
        self.networks = nn.ModuleList(fold_batchnorm(network).eval() for network in bundle.networks())
        self.views = [tuple(2 + int(axis) for axis in view) for view in bundle.views] or [()]

    def forward(self, tiles: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Logits, averaged over networks and views."""
        x = tiles if self.window is None else tiles.clamp(*self.window)
        column = (1, -1) + (1,) * (x.ndim - 2)
        x = x * scale.reshape(column) + shift.reshape(column)
        total: Tensor | None = None
        for view in self.views:
            seen = x.flip(view) if view else x
            for network in self.networks:
                logits = network(seen)
                logits = logits.flip(view) if view else logits
                total = logits if total is None else total + logits
        if total is None:
            raise ValueError("a bundle has at least one network")
        return total / (len(self.views) * len(self.networks))


def graph_of(bundle: Bundle) -> ClassifyGraph | TileGraph:
    """The graph of a bundle, in evaluation mode, without gradients."""
    made = ClassifyGraph(bundle) if bundle.task == "classify" else TileGraph(bundle)
    return made.eval().requires_grad_(False)


def examples(bundle: Bundle) -> Mapping[str, Tensor]:
    """Inputs of the size of training, by name."""
    spec = bundle.preprocess
    channels = int(spec["channels"])
    if bundle.task == "classify":
        # Two images of another size than the network's: an exporter must not take sides or one batch for granted.
        sides = [int(side) + 3 + 2 * k for k, side in enumerate(spec["size"])]
        return {"image": torch.linspace(0, 255, 2 * channels * _product(sides)).reshape(2, channels, *sides)}
    patch = [int(side) for side in bundle.inference["tile"]["patch"]]
    tiles = torch.linspace(-1, 1, 2 * channels * _product(patch)).reshape(2, channels, *patch)
    return {"tiles": tiles, "scale": torch.ones(channels), "shift": torch.zeros(channels)}


def _product(sides: Sequence[int]) -> int:
    total = 1
    for side in sides:
        total *= side
    return total
