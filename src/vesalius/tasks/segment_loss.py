"""Losses of segmentation: cross-entropy with an overlap term, over soft-max classes or overlapping regions.

Every loss here is a function of a few sums and one number per voxel. With the probability ``p_k`` of output k and its
truth ``y_k``, the sums ``Σ p_k y_k``, ``Σ p_k`` and ``Σ y_k`` give Dice and Tversky, and the log-likelihood of a voxel
gives cross-entropy, focal loss and top-k. Two autograd functions compute these with one stored copy of the
probabilities and a gradient written down by hand: truth is an index map and never becomes a one-hot tensor of floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vesalius.core.errors import PlanError
from vesalius.measure.boxes import label_boxes
from vesalius.measure.distance import distance_field
from vesalius.tasks.segment_sums import class_sums, sigmoid_sums, soft_max_sums, wide

NAMES = ("dice_ce", "dice_focal", "tversky_ce", "dice_boundary", "dice_topk", "ce")

DEFAULTS: dict[str, Any] = {
    "name": "dice_ce",
    "ce_weight": 1.0,
    "dice_weight": 1.0,
    "batch_dice": False,
    "background": False,
    "smooth": 1e-5,
    "tversky_alpha": 0.3,
    "tversky_beta": 0.7,
    "focal_gamma": 2.0,
    "topk": 0.1,
    "boundary_weight": 0.01,
    "boundary_limit": 32.0,
    "class_weights": None,
    "positive_weights": None,
    "label_smoothing": 0.0,
    "deep_weights": None,
}


class SegmentLoss(nn.Module):
    """The loss of section ``loss`` of a plan.

    ``loss(logits, target)``: `logits` are ``(B, K, *S)`` or, with deep supervision, a list of them, full resolution
    first; `target` is a whole-number label map ``(B, 1, *S)`` at full resolution. The result is a float32 scalar (of
    double logits a double one), computed in float32 also under autocast; the gradient comes in the type of the logits.

    Coarser logits see the target at the centre of their blocks: row i of m looks at row ``floor((2i + 1) n / 2m)`` of
    n (``nearest-exact`` of torch). A block of an even number of rows has no middle row: the one after the centre is
    taken.

    Parameters
    ----------
    settings
        Any keys of `DEFAULTS`; None stands for the default.

        name
            ``dice_ce``: soft Dice (Milletari et al., 3DV 2016) and cross-entropy. ``dice_focal``: focal loss (Lin et
            al., ICCV 2017) instead of cross-entropy. ``tversky_ce``: the Tversky index (Salehi et al., MLMI 2017)
            instead of Dice. ``dice_topk``: cross-entropy over the share `topk` of the valid voxels where it is highest
            (Wu et al., 2016). ``dice_boundary``: Dice, cross-entropy and `boundary_weight` times the boundary loss
            (Kervadec et al., MIDL 2019). ``ce``: cross-entropy alone.
        ce_weight, dice_weight
            Factors of the voxel term and of the overlap term.
        batch_dice
            One overlap over all samples of the batch instead of one for each.
        background
            Whether output 0 takes part in the overlap term of a soft-max.
        smooth
            Added to numerator and denominator of the overlap, so that an output that is neither true nor predicted has
            an overlap of 1.
        tversky_alpha, tversky_beta
            Price of false positives and of false negatives.
        class_weights
            One factor per output for the voxel terms, which become weighted means.
        positive_weights
            Of regions: one factor per output for the voxels where it is true, so that a rare region is learnt early.
        label_smoothing
            Part of the voxel target spread over all outputs (Szegedy et al., CVPR 2016).
        boundary_limit
            Distances in voxels count up to here, which bounds the cost of the distance maps.
        deep_weights
            One weight per resolution, scaled to a sum of 1. None: each half the one before (Lee et al., AISTATS 2015;
            Isensee et al., Nature Methods 2021).
    outputs
        K, the number of outputs of the network.
    regions
        For each output the labels it stands for; outputs may overlap, each is a sigmoid with binary cross-entropy.
        Empty: output k is label k of a soft-max.
    ignore
        Label of voxels without a verdict: they add nothing to any sum or gradient. Samples without any other voxel do
        not count in the mean, and a batch of them has the loss 0.

    Raises
    ------
    PlanError
        For unknown keys and impossible values in `settings`.
    ValueError
        For impossible `outputs` and `regions`, and on call for shapes and labels that do not fit.
    """

    weights: Tensor | None
    table: Tensor | None

    def __init__(
        self,
        settings: Mapping[str, Any],
        outputs: int,
        regions: Sequence[Sequence[int]] = (),
        ignore: int | None = None,
    ) -> None:
        super().__init__()
        chosen = _settings(settings, outputs)
        if outputs < (1 if regions else 2):
            raise ValueError(f"a soft-max needs two outputs, and regions one; got {outputs}")
        if regions and len(regions) != outputs:
            raise ValueError(f"{len(regions)} regions for {outputs} outputs")
        self.name: str = chosen["name"]
        self.outputs, self.ignore = outputs, ignore
        self.settings = chosen
        self.boundary_weight = float(chosen["boundary_weight"])
        self.first = 0 if regions or chosen["background"] else 1
        weights = chosen["class_weights"]
        self.register_buffer(
            "weights", None if weights is None else torch.tensor(weights, dtype=torch.float32), persistent=False
        )
        positive = chosen["positive_weights"]
        if positive is not None and (not regions or len(positive) != outputs or min(positive) <= 0):
            raise PlanError(f"loss.positive_weights needs one positive number per region ({outputs}), got {positive}")
        self.register_buffer(
            "positive", None if positive is None else torch.tensor(positive, dtype=torch.float32), persistent=False
        )
        self.register_buffer("table", _region_table(regions, ignore) if regions else None, persistent=False)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of the class docstring."""
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        self._check(levels, target)
        total = levels[0].new_zeros((), dtype=wide(levels[0].dtype))
        for depth, (weight, level) in enumerate(zip(self._depth_weights(len(levels)), levels, strict=True)):
            if weight:
                truth = target if level.shape[2:] == target.shape[2:] else picked(target, level.shape[2:])
                total = total + weight * self._single(level, truth, finest=depth == 0)
        return total

    def _check(self, levels: list[Tensor], target: Tensor) -> None:
        if not levels:
            raise ValueError("no logits")
        first = levels[0]
        if target.shape != (first.shape[0], 1, *first.shape[2:]) or target.is_floating_point():
            raise ValueError(
                f"logits {tuple(first.shape)} need a whole-number target {(first.shape[0], 1, *first.shape[2:])}, "
                f"got {target.dtype} {tuple(target.shape)}"
            )
        for level in levels:
            if level.shape[:2] != (first.shape[0], self.outputs) or level.ndim != first.ndim:
                raise ValueError(f"logits of shape {tuple(level.shape)} for {self.outputs} outputs")

    def _depth_weights(self, levels: int) -> list[float]:
        given = self.settings["deep_weights"]
        if levels == 1:
            return [1.0]
        if given is not None and len(given) != levels:
            raise PlanError(f"loss.deep_weights has {len(given)} numbers, the network has {levels} resolutions")
        raw = [0.5**k for k in range(levels)] if given is None else [float(w) for w in given]
        return [w / sum(raw) for w in raw]

    def _single(self, logits: Tensor, target: Tensor, *, finest: bool) -> Tensor:
        """Loss at one resolution; `target` ``(B, 1, *S)`` has the size of `logits`."""
        z, label = logits.flatten(2), target.flatten(1)
        valid = None if self.ignore is None else label != self.ignore
        with torch.autocast(z.device.type, enabled=False):
            sums = self._region_sums(z, label, valid) if self.table is not None else self._class_sums(z, label, valid)
            loss = self._voxel_term(sums) if self.settings["ce_weight"] else sums.voxel.new_zeros(())
            loss = loss * float(self.settings["ce_weight"])
            if self.name != "ce" and self.settings["dice_weight"]:
                loss = loss + float(self.settings["dice_weight"]) * self._overlap_term(sums)
            if self.name == "dice_boundary" and finest and self.boundary_weight:
                loss = loss + self.boundary_weight * self._boundary_term(logits, target)
        return loss

    def _class_sums(self, z: Tensor, label: Tensor, valid: Tensor | None) -> _Sums:
        """Sums of a soft-max."""
        batch, outputs = z.shape[:2]
        index = label.long()
        if valid is not None:
            index = index * valid
        if z.device.type == "cpu" and index.numel():
            # Elsewhere this would wait for the device, which reports such an index by itself.
            low, high = (int(v) for v in index.aminmax())
            if low < 0 or high >= outputs:
                raise ValueError(f"target has label {low if low < 0 else high}, the network has {outputs} outputs")
        smoothing = float(self.settings["label_smoothing"])
        weights = None if self.weights is None else self.weights.to(wide(z.dtype))
        shared, said, miss, spread = soft_max_sums(z, index, valid, weights, bool(smoothing))
        here = None if valid is None else valid.to(miss.dtype)
        true = class_sums(index, here, batch, outputs, miss.dtype)
        share = here if weights is None else weights[index] if here is None else weights[index] * here
        voxel = miss if weights is None else miss * weights[index]
        if smoothing:
            voxel = voxel * (1 - smoothing) + spread * (smoothing / outputs)
        return _Sums(shared, said, true, miss, voxel, share, self._present(valid))

    def _region_sums(self, z: Tensor, label: Tensor, valid: Tensor | None) -> _Sums:
        """Sums of sigmoid outputs."""
        table = cast(Tensor, self.table)
        # The last column of the table is that of labels in no region.
        nowhere = table.shape[1] - 1
        index = label.long()
        index = index.masked_fill((index < 0) | (index > nowhere), nowhere)
        truth = torch.stack([row[index] for row in table], dim=1)
        smoothing = float(self.settings["label_smoothing"])
        shared, said, miss = sigmoid_sums(z, truth, valid, smoothing)
        if valid is None:
            true = truth.sum(2, dtype=miss.dtype)
            share = None
        else:
            true = (truth & valid[:, None]).sum(2, dtype=miss.dtype)
            share = valid[:, None].to(miss.dtype)
        voxel = miss
        if self.weights is not None:
            factor = self.weights.to(miss.dtype)[None, :, None]
            voxel, share = miss * factor, factor if share is None else share * factor
        if self.positive is not None:
            factor = cast(Tensor, self.positive).to(miss.dtype)[None, :, None]
            rare = torch.where(truth, factor, 1.0)
            voxel, share = voxel * rare, rare if share is None else share * rare
        return _Sums(shared, said, true, miss, voxel, share, self._present(valid))

    def _present(self, valid: Tensor | None) -> Tensor | None:
        """Samples ``(B,)`` with a voxel that counts; None if all have."""
        return None if valid is None else valid.any(dim=1)

    def _voxel_term(self, sums: _Sums) -> Tensor:
        """Weighted mean of the loss of the voxels: cross-entropy, focal or the highest share."""
        loss, share = sums.voxel, sums.share
        if share is not None:
            share = share.expand_as(loss)
        if self.name == "dice_focal":
            doubt = (-torch.expm1(-sums.miss)).clamp_min(1e-6)
            loss = loss * doubt ** float(self.settings["focal_gamma"])
        if self.name == "dice_topk":
            flat = loss.flatten()
            whole = flat.numel() if sums.valid_voxels is None else sums.valid_voxels
            kept = min(flat.numel(), max(1, math.ceil(float(self.settings["topk"]) * whole)))
            loss, rows = torch.topk(flat, kept, sorted=False)
            share = None if share is None else share.flatten()[rows]
        if share is None:
            return loss.mean()
        return loss.sum() / share.sum().clamp_min(1e-8)

    def _overlap_term(self, sums: _Sums) -> Tensor:
        """1 minus the mean Dice or Tversky index of samples (or the batch) and outputs."""
        parts = [part[:, self.first :] for part in (sums.shared, sums.said, sums.true)]
        present = sums.present
        if self.settings["batch_dice"]:
            parts = [part.sum(0, keepdim=True) for part in parts]
            present = None if present is None else present.any()[None]
        shared, said, true = parts
        smooth = float(self.settings["smooth"])
        if self.name == "tversky_ce":
            false = float(self.settings["tversky_alpha"]) * (said - shared)
            missed = float(self.settings["tversky_beta"]) * (true - shared)
            index = (shared + smooth) / (shared + false + missed + smooth)
        else:
            index = (2 * shared + smooth) / (said + true + smooth)
        loss = 1 - index
        if present is None:
            return loss.mean()
        counted = present.to(loss.dtype)[:, None].expand_as(loss)
        return (loss * counted).sum() / counted.sum().clamp_min(1)

    def _boundary_term(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the voxels of probability times signed distance, background left out (Kervadec et al. 2019)."""
        z = logits.to(wide(logits.dtype))
        p = torch.sigmoid(z) if self.table is not None else torch.softmax(z, dim=1)
        maps = self._distance_maps(target[:, 0].cpu().numpy(), float(self.settings["boundary_limit"]))
        first = 0 if self.table is not None else 1
        term = p[:, first:] * torch.from_numpy(maps).to(device=p.device, dtype=p.dtype)
        if self.ignore is None:
            return term.mean()
        valid = (target != self.ignore).to(p.dtype)
        return (term * valid).sum() / (valid.sum() * term.shape[1]).clamp_min(1)

    def _distance_maps(self, target: NDArray[Any], limit: float) -> NDArray[np.float32]:
        """``(B, outputs without background, *S)`` signed distances in voxels."""
        if self.table is None:
            masks = [[sample == k for k in range(1, self.outputs)] for sample in target]
        else:
            sets = [np.flatnonzero(row) for row in self.table[:, :-1].cpu().numpy()]
            masks = [[np.isin(sample, members) for members in sets] for sample in target]
        return np.stack([np.stack([signed_distance(mask, limit) for mask in row]) for row in masks])


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the losses are made of; C is 1 for a soft-max (voxels ``(B, N)``) and K for regions (``(B, K, N)``)."""

    shared: Tensor
    """``(B, K)`` Σ p y."""
    said: Tensor
    """``(B, K)`` Σ p."""
    true: Tensor
    """``(B, K)`` Σ y."""
    miss: Tensor
    """Negative log-likelihood of each voxel, 0 where it is ignored."""
    voxel: Tensor
    """The same with class weights and label smoothing."""
    share: Tensor | None
    """Weight of each voxel in the mean, 0 where it is ignored; None if all are 1."""
    present: Tensor | None
    """``(B,)`` samples with a voxel that counts; None if all have."""

    @property
    def valid_voxels(self) -> int | None:
        """Voxel terms that count; None if all do."""
        return None if self.share is None else int((self.share.expand_as(self.miss) > 0).sum())


def picked(target: Tensor, size: Sequence[int]) -> Tensor:
    """`target` ``(B, 1, *S)`` at the centres of the blocks of a coarser grid of `size`; nothing is averaged.

    Row i of m is row ``floor((2i + 1) n / 2m)`` of n.
    """
    for axis, (new, old) in enumerate(zip(size, target.shape[2:], strict=True), start=2):
        if new == old:
            continue
        if new > old:
            raise ValueError(f"logits {tuple(size)} are finer than the target {tuple(target.shape[2:])}")
        if old % new == 0:
            target = target[(slice(None),) * axis + (slice(old // new // 2, None, old // new),)]
        else:
            rows = (2 * torch.arange(new, device=target.device) + 1) * old // (2 * new)
            target = target.index_select(axis, rows)
    return target


def signed_distance(mask: NDArray[Any], limit: float = math.inf) -> NDArray[np.float32]:
    """Distance in voxels to a mask ``(Y, X)`` or ``(Z, Y, X)``, negative inside it, at most `limit` either way.

    Voxels next to the border have 1 outside and 0 inside (Kervadec et al., MIDL 2019); all are 0 if the mask is empty
    or full. Only the box around the mask, widened by `limit`, is looked at.
    """
    boxes = label_boxes(np.asarray(mask, dtype=bool))
    if not len(boxes) or boxes.voxels[0] == mask.size:
        return np.zeros(mask.shape, dtype=np.float32)
    out = np.full(mask.shape, np.float32(limit))
    reach = max(mask.shape) if math.isinf(limit) else math.ceil(limit)
    room = boxes.slices(0, margin=reach, shape=mask.shape)
    part = np.ascontiguousarray(mask[room])
    apart = distance_field(part, limit=None if math.isinf(limit) else limit)
    depth = distance_field(~part, limit=None if math.isinf(limit) else limit + 1)
    out[room] = np.where(part, -np.minimum(depth - 1, limit), np.minimum(apart, limit))
    return out


def _region_table(regions: Sequence[Sequence[int]], ignore: int | None) -> Tensor:
    """``(K, L + 1)`` of bool: whether label l is part of output k; the last column is for labels in no region."""
    if any(not len(members) or min(members) < 0 for members in regions):
        raise ValueError(f"every region needs labels of 0 or more, got {[list(members) for members in regions]}")
    if ignore is not None and any(ignore in members for members in regions):
        raise ValueError(f"the label {ignore} is ignored and cannot be part of a region")
    table = torch.zeros((len(regions), max(max(members) for members in regions) + 2), dtype=torch.bool)
    for row, members in enumerate(regions):
        table[row, list(members)] = True
    return table


def _settings(given: Mapping[str, Any], outputs: int) -> dict[str, Any]:
    """`DEFAULTS` with what is `given`, checked."""
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise PlanError(f"loss.{unknown[0]} is not a setting of segmentation; there are {', '.join(DEFAULTS)}")
    chosen = DEFAULTS | {key: value for key, value in given.items() if value is not None}
    if chosen["name"] not in NAMES:
        raise PlanError(f"loss.name is {chosen['name']!r}; expected one of {', '.join(NAMES)}")
    bounds = {
        "ce_weight": (0, math.inf), "dice_weight": (0, math.inf), "smooth": (1e-12, math.inf), "topk": (1e-6, 1),
        "tversky_alpha": (0, math.inf), "tversky_beta": (0, math.inf), "focal_gamma": (0, 10),
        "boundary_weight": (0, math.inf), "boundary_limit": (1, math.inf), "label_smoothing": (0, 0.5),
    }  # fmt: skip
    for key, (low, high) in bounds.items():
        if not low <= chosen[key] <= high:
            raise PlanError(f"loss.{key} is {chosen[key]}; expected {low}..{high}")
    for key in ("class_weights", "deep_weights"):
        values = chosen[key]
        if values is not None and (not len(values) or min(values) < 0 or not sum(values) > 0):
            raise PlanError(f"loss.{key} is {values}; expected numbers of 0 or more, not all 0")
    weights = chosen["class_weights"]
    if weights is not None and len(weights) != outputs:
        raise PlanError(f"loss.class_weights has {len(weights)} numbers for {outputs} outputs")
    return chosen
