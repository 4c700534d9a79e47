"""What the losses of segmentation are made of: sums per output and one number per voxel, with written-out gradients.

One copy of the probabilities is kept for the backward pass. Sums are float32, or float64 for float64 logits, whatever
autocast says; the gradient comes in the type of the logits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


class _SoftMaxSums(Function):
    """Sums of a soft-max of ``(B, K, N)`` logits, with the gradient written down.

    With ``q_k = a_k + b_y [k = y]`` the slope of the loss for ``p_k`` (a from Σ p, b from Σ p y), the slope for logit k
    is ``p_k (q_k - Σ_j p_j q_j)``; the log-likelihood adds ``c (p_k - [k = y])``.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, z: Tensor, index: Tensor, valid: Tensor | None, weights: Tensor | None, smooth: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = torch.log_softmax(z.to(wide(z.dtype)), dim=1)
        miss = p.gather(1, index[:, None])[:, 0].neg_()
        spread = _weighted_sum(p, weights).neg_() if smooth else miss.new_zeros(())
        p.exp_()
        inside = torch.exp(-miss)
        if valid is None:
            said = p.sum(2)
        else:
            here = valid.to(p.dtype)
            said = torch.bmm(p, here[:, :, None])[:, :, 0]
            inside.mul_(here)
            miss.mul_(here)
            if smooth:
                spread.mul_(here)
        shared = class_sums(index, inside, p.shape[0], p.shape[1], p.dtype)
        ctx.save_for_backward(p, index, inside, valid, weights)
        ctx.kind = z.dtype
        ctx.smooth = smooth
        return shared, said, miss, spread

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        p, index, inside, valid, weights = ctx.saved_tensors
        to_shared, to_said, to_miss, to_spread = slopes
        with torch.autocast(p.device.type, enabled=False):
            at_truth = to_shared.gather(1, index).mul_(inside)
            # What every p_k is lowered by, and what the true one gains.
            lowered = torch.bmm(to_said[:, None], p)[:, 0].add_(at_truth).sub_(to_miss)
            if ctx.smooth:
                total = p.shape[1] if weights is None else weights.sum()
                lowered.sub_(to_spread * total)
            slope = to_said[:, :, None] - lowered[:, None]
            slope.mul_(p)
            slope.scatter_add_(1, index[:, None], at_truth.sub_(to_miss)[:, None])
            if ctx.smooth:
                one = to_spread[:, None]
                slope.sub_(one if weights is None else one * weights[None, :, None])
            if valid is not None:
                slope.mul_(valid[:, None])
        return slope.to(ctx.kind), None, None, None, None


class _SigmoidSums(Function):
    """Sums of independent outputs ``(B, K, N)`` against truth ``(B, K, N)`` of bool."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, z: Tensor, truth: Tensor, valid: Tensor | None, smoothing: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = z.to(wide(z.dtype))
        goal = truth.to(values.dtype)
        if smoothing:
            goal = goal * (1 - smoothing) + smoothing / 2
        miss = F.binary_cross_entropy_with_logits(values, goal, reduction="none")
        p = torch.sigmoid(values)
        if valid is not None:
            miss.mul_(valid[:, None])
        here = p if valid is None else p * valid[:, None]
        said, shared = here.sum(2), (here * truth).sum(2)
        ctx.save_for_backward(p, truth, valid)
        ctx.kind, ctx.smoothing = z.dtype, smoothing
        return shared, said, miss

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        p, truth, valid = ctx.saved_tensors
        to_shared, to_said, to_miss = slopes
        s = ctx.smoothing
        slope = torch.where(truth, (to_shared + to_said)[:, :, None], to_said[:, :, None])
        slope.mul_(p).mul_(1 - p)
        goal = truth.to(p.dtype)
        if s:
            goal = goal.mul_(1 - s).add_(s / 2)
        slope.add_(goal.sub_(p).mul_(to_miss), alpha=-1)
        if valid is not None:
            slope.mul_(valid[:, None])
        return slope.to(ctx.kind), None, None, None


def soft_max_sums(
    z: Tensor, index: Tensor, valid: Tensor | None, weights: Tensor | None, smooth: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ p y and Σ p ``(B, K)``, -log p_y ``(B, N)`` and, if `smooth`, -Σ w_k log p_k ``(B, N)``."""
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], _SoftMaxSums.apply(z, index, valid, weights, smooth))


def sigmoid_sums(z: Tensor, truth: Tensor, valid: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Σ p y and Σ p ``(B, K)``, and the binary cross-entropy ``(B, K, N)``."""
    return cast(tuple[Tensor, Tensor, Tensor], _SigmoidSums.apply(z, truth, valid, smoothing))


def class_sums(index: Tensor, amount: Tensor | None, batch: int, outputs: int, kind: torch.dtype) -> Tensor:
    """``(B, K)``: sum of `amount` (1 if None) of the voxels ``(B, N)`` of each label."""
    if index.device.type == "cpu":
        rows = [
            torch.bincount(index[b], None if amount is None else amount[b], minlength=outputs) for b in range(batch)
        ]
        return torch.stack(rows).to(kind)
    # Atomic additions of millions of voxels to a handful of numbers are slow there, and their order is left to chance.
    ones = [index == k for k in range(outputs)]
    return torch.stack([(one if amount is None else amount * one).sum(1, dtype=kind) for one in ones], dim=1)


def _weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Σ over dim 1 of ``(B, K, N)``."""
    if weights is None:
        return values.sum(1)
    return torch.bmm(weights.expand(values.shape[0], 1, -1), values)[:, 0]


def wide(kind: torch.dtype) -> torch.dtype:
    """The type to sum in."""
    return torch.float64 if kind == torch.float64 else torch.float32
