"""Training that starts from a model, and training that imitates one.

The teacher sees exactly what the student sees, augmentation and mixing included (Beyer et al., "Knowledge distillation:
a good teacher is patient and consistent", CVPR 2022); its answers are computed in each step and never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vesalius.core.errors import PlanError
from vesalius.core.plan import Plan
from vesalius.models.segmenters import fold_batchnorm
from vesalius.predict.bundle import Bundle
from vesalius.tasks.imitation import imitation
from vesalius.train.policy import PlainStep


def started(plan: Plan, network: nn.Module, member: int) -> nn.Module:
    """The network with the weights of ``start.weights``, or as it is where the plan names none.

    Raises
    ------
    PlanError
        If those weights are of another network.
    """
    if plan["start.weights"] is None:
        return network
    source = str(plan["start.weights"])
    members = Bundle.load(source).members
    try:
        network.load_state_dict(members[member % len(members)])
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise PlanError(f"start.weights {source}: does not fit the network of this plan ({line})") from None
    return network


def make_policy(plan: Plan, fabric: Any, task: Any, network: nn.Module) -> PlainStep:
    """The gradient step that a plan means: ordinary, or with a teacher.

    Raises
    ------
    PlanError
        If the teacher answers another question.
    """
    optim = plan.section("optim")
    if plan["distill.teacher"] is None:
        return PlainStep(fabric, task, network, optim)
    source = str(plan["distill.teacher"])
    bundle = Bundle.load(source)
    dims, channels = _inputs(plan)
    theirs = bundle.preprocess
    asked = (task.name, tuple(task.labels.names), dims, channels)
    known = (bundle.task, tuple(bundle.labels.names), int(theirs["dims"]), int(theirs["channels"]))
    if asked != known:
        raise PlanError(f"distill.teacher {source}: answers {known}, this plan asks {asked}; choose its own run")
    teacher = Teacher(bundle.networks(), fabric, exclusive=task.exclusive, channels_last=bool(optim["channels_last"]))
    return DistilledStep(fabric, task, network, optim, teacher, plan.section("distill"))


def _inputs(plan: Plan) -> tuple[int, int]:
    section = "conform" if plan.task == "segment" else "preprocess"
    return int(plan[f"{section}.dims"]), int(plan[f"{section}.channels"])


class Teacher:
    """Networks in evaluation mode whose mean answer is imitated; computed in the precision of the training."""

    def __init__(self, networks: Sequence[nn.Module], fabric: Any, *, exclusive: bool, channels_last: bool) -> None:
        self.fabric, self.exclusive = fabric, exclusive
        self.networks = []
        for network in networks:
            ready = fold_batchnorm(network).eval().requires_grad_(False).to(fabric.device)
            self.networks.append(_ordered(ready) if channels_last else ready)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits ``(B, K)`` or ``(B, K, *S)`` of ``(B, C, *S)``; of several networks their mean log-probabilities."""
        with self.fabric.autocast():
            found = [network(pixels).float() for network in self.networks]
        if len(found) == 1:
            return found[0]
        return torch.stack([F.log_softmax(one, 1) if self.exclusive else one for one in found]).mean(0)


def _ordered(network: nn.Module) -> nn.Module:
    """The network with weights whose channels lie last."""
    volumes = any(isinstance(part, nn.Conv3d) for part in network.modules())
    order: Any = {"memory_format": torch.channels_last_3d if volumes else torch.channels_last}
    return network.to(**order)


class DistilledStep(PlainStep):
    """`PlainStep` with a loss that is partly the truth and partly the answer of a teacher.

    Parameters
    ----------
    settings, distill
        Sections ``optim`` and ``distill`` of the plan.
    """

    def __init__(
        self,
        fabric: Any,
        task: Any,
        network: nn.Module,
        settings: Mapping[str, Any],
        teacher: Teacher,
        distill: Mapping[str, Any],
    ) -> None:
        super().__init__(fabric, task, network, settings)
        self.teacher, self.weight = teacher, float(distill["weight"])
        self.temperature = float(distill["temperature"])

    def loss(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """``(1 - weight)`` of the task's loss and ``weight`` of the imitation, at full resolution."""
        outputs = self.network(pixels)
        finest = outputs if isinstance(outputs, Tensor) else outputs[0]
        truth: Tensor = self.task.loss(outputs, targets)
        alike = imitation(finest, self.teacher(pixels), temperature=self.temperature, exclusive=self.task.exclusive)
        return (1 - self.weight) * truth + self.weight * alike
