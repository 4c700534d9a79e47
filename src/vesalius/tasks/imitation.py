"""The loss of a student that imitates a teacher (Hinton, Vinyals and Dean, NIPS workshop 2014)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def imitation(logits: Tensor, wanted: Tensor, *, temperature: float, exclusive: bool) -> Tensor:
    """How far the student's probabilities are from the teacher's: a mean divergence, zero where they agree.

    Parameters
    ----------
    logits, wanted
        Of student and teacher, ``(B, K)`` or ``(B, K, *S)``.
    temperature
        Both are divided by it; the loss is multiplied by its square, so that gradients keep their size.
    exclusive
        One class holds (soft-max, Kullback-Leibler divergence over the classes) or several may (a sigmoid each,
        mean over the classes).
    """
    ours, theirs = logits.float() / temperature, wanted.float() / temperature
    if exclusive:
        terms = F.kl_div(F.log_softmax(ours, 1), F.log_softmax(theirs, 1), log_target=True, reduction="none").sum(1)
    else:
        target = torch.sigmoid(theirs)
        entropy = -(target * F.logsigmoid(theirs) + (1 - target) * F.logsigmoid(-theirs))
        terms = F.binary_cross_entropy_with_logits(ours, target, reduction="none") - entropy
    return terms.mean() * temperature**2
