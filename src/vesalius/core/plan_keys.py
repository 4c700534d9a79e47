"""Every key a plan can have: its kind, its default and what it means.

A new task adds its keys here, so that one table answers what can be set; `docs/plan.md` is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vesalius.core.errors import PlanError


@dataclass(frozen=True)
class Key:
    """Declaration of one key.

    Parameters
    ----------
    kind
        ``bool``, ``int``, ``float``, ``str``, ``list`` or ``dict``.
    default
        The value where nobody decided.
    doc
        One sentence for people.
    low, high
        Bounds of numbers, inclusive.
    choices
        The allowed words.
    optional
        None is allowed and means "not used".
    items
        For a list: the declaration of each of its items.
    """

    kind: type
    default: Any
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    items: Key | None = None

    def accept(self, name: str, value: Any) -> Any:
        """`value` in the declared kind, or a `PlanError` that says what fits."""
        if value is None:
            if self.optional:
                return None
            raise PlanError(f"{name} needs {self._wanted()}, got nothing")
        value = self._converted(value)
        good = isinstance(value, self.kind) and not (self.kind is not bool and isinstance(value, bool))
        if good and self.choices:
            good = value in self.choices
        if good and self.kind is float:
            good = math.isfinite(value)
        if good and self.low is not None:
            good = value >= self.low
        if good and self.high is not None:
            good = value <= self.high
        if not good:
            raise PlanError(f"{name} needs {self._wanted()}, got {value!r}")
        return value if self.items is None else [self.items.accept(f"each item of {name}", item) for item in value]

    def _converted(self, value: Any) -> Any:
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if self.kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if self.kind is list and isinstance(value, tuple):
            return list(value)
        if self.kind is list and isinstance(value, (int, float)):
            return [value]
        return value

    def _wanted(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a text",
            list: "a list",
            dict: "a mapping",
        }[self.kind]
        if self.low is not None and self.high is not None:
            words += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            words += f" of at least {self.low:g}"
        return words + (" or null" if self.optional else "")


def _p(doc: str) -> Key:
    return Key(float, 0.0, doc, 0, 1)


_NUMBER = Key(float, 0.0, "A number.")
_STEP = Key(float, 1.0, "A spacing in mm.", 1e-3, 1e3)
_WHOLE = Key(int, 1, "A whole number.", 1)
_STRIDES = Key(list, [], "Strides of a stage.", items=Key(int, 1, "A stride.", 1, 4))
_AXES = Key(list, [], "Axes of the image.", items=Key(int, 0, "An axis.", 0, 2))

LOSSES = (
    "cross_entropy",
    "focal",
    "dice_ce",
    "dice_focal",
    "tversky_ce",
    "dice_boundary",
    "dice_topk",
    "ce",
)
"""The first two are of classification, the others of segmentation."""

KEYS: dict[str, Key] = {
    "run.seed": Key(int, 0, "Every random decision follows from it.", 0),
    "run.device": Key(str, "auto", "auto, cpu, cuda, cuda:1 or mps."),
    "run.memory_bytes": Key(int, None, "Memory the whole run may take.", 1 << 26, optional=True),
    "run.estimate_bytes": Key(int, None, "Peak memory that the planner expects; the run compares.", 0, optional=True),
    "run.budget_s": Key(float, None, "Wall time from the start to the report.", 1, optional=True),
    "run.reserve_s": Key(float, 0.0, "Part of the budget kept for testing and the report.", 0),
    "run.workers": Key(int, 1, "Processes or threads that decode files.", 1, 256),
    "split.val": Key(float, 0.15, "Part of the patients kept for validation.", 0, 0.9),
    "split.test": Key(float, 0.2, "Part of the patients kept for the test.", 0, 0.9),
    "split.by": Key(str, "patient", "patient, or a covariate whose values are kept whole (site)."),
    "split.folds": Key(int, 0, "Number of cross-validation folds; 0 for a single split.", 0, 20),
    "preprocess.dims": Key(int, 2, "2 for images, 3 for volumes.", 2, 3),
    "preprocess.channels": Key(int, 1, "Channels the network sees.", 1, 64),
    "preprocess.crop": Key(
        str, "none", "Part of the image that is kept.", choices=("none", "foreground", "center_square")
    ),
    "preprocess.threshold": Key(float, None, "For crop = foreground: values above it are kept.", optional=True),
    "preprocess.fit": Key(
        str, "stretch", "How other aspect ratios come to size.", choices=("stretch", "pad", "crop", "place")
    ),
    "preprocess.size": Key(list, None, "Size the network sees, in the order (z, y, x).", optional=True, items=_WHOLE),
    "preprocess.spacing_mm": Key(
        list, None, "Spacing that images are resampled to first.", optional=True, items=_NUMBER
    ),
    "preprocess.window": Key(list, None, "Values are clipped to [low, high].", optional=True, items=_NUMBER),
    "preprocess.storage": Key(str, "uint8", "Type in the store.", choices=("uint8", "uint16", "int16", "float32")),
    "preprocess.scale": Key(dict, None, "Values {low, high} that become 0 and the storage maximum.", optional=True),
    "preprocess.normalise": Key(dict, {"kind": "per_image"}, "fixed {mean, std}, per_image or none."),
    "conform.dims": Key(int, 3, "2 for images, 3 for volumes (segmentation).", 2, 3),
    "conform.channels": Key(int, 1, "Channels the network sees (segmentation).", 1, 64),
    "conform.orient": Key(bool, True, "Turn volumes to the closest patient axes, and the result back."),
    "conform.crop": Key(str, "border", "border cuts planes of padding off.", choices=("none", "border")),
    "conform.spacing_mm": Key(list, None, "Spacing (z, y, x) that cases are resampled to.", optional=True, items=_STEP),
    "conform.scale": Key(float, 1.0, "Magnification of images without physical size.", 0.05, 20),
    "conform.window": Key(list, None, "Values are clipped to [low, high].", optional=True, items=_NUMBER),
    "conform.normalise": Key(
        dict, {"kind": "body"}, "fixed {mean, std}, body (per case inside the body), percentile (per image) or none."
    ),
    "model.name": Key(str, "lean", "A name of the registry: docs/models.md."),
    "model.width": Key(int, None, "Channels of the first stage.", 4, 512, optional=True),
    "model.depths": Key(list, None, "Blocks per stage.", optional=True, items=_WHOLE),
    "model.stem": Key(str, "auto", "How the first layer reduces.", choices=("auto", "small", "half", "patch", "large")),
    "model.patch": Key(list, None, "Sides of a training patch and of a tile (z, y, x).", optional=True, items=_WHOLE),
    "model.strides": Key(
        list, None, "One list of strides per stage, the first of ones.", optional=True, items=_STRIDES
    ),
    "model.features": Key(list, None, "Channels per stage.", optional=True, items=_WHOLE),
    "model.norm": Key(str, "instance", "Normalisation of a segmentation network.", choices=("instance", "batch")),
    "model.activation": Key(str, "leaky", "Activation of a segmentation network.", choices=("relu", "leaky")),
    "model.deep_supervision": Key(bool, True, "Judge the coarser outputs as well while training."),
    "model.dropout": Key(float, 0.0, "Before the last layer.", 0, 0.9),
    "model.widths": Key(
        dict, None, "Shapes of the weights of layers that pruning made narrower, by layer.", optional=True
    ),
    "start.weights": Key(str, None, "A run or bundle whose weights training starts from.", optional=True),
    "distill.teacher": Key(str, None, "A run or bundle whose answers training imitates.", optional=True),
    "distill.weight": Key(float, 0.5, "Part of the loss that imitates the teacher; the rest is the truth.", 0, 1),
    "distill.temperature": Key(
        float, 2.0, "Softens the answers of teacher and student (Hinton et al. 2015).", 0.1, 100
    ),
    "loss.name": Key(str, "cross_entropy", "What is minimised.", choices=LOSSES),
    "loss.label_smoothing": Key(float, 0.0, "Part of the target spread over all classes.", 0, 0.5),
    "loss.focal_gamma": Key(float, None, "Focus on hard cases (Lin et al. 2017).", 0, 10, optional=True),
    "loss.class_weights": Key(list, None, "One weight per class.", optional=True, items=_NUMBER),
    "loss.positive_weights": Key(
        list, None, "Of overlapping regions: weight of voxels inside, one per region.", optional=True, items=_NUMBER
    ),
    "loss.batch_dice": Key(bool, False, "Overlap over the whole batch, for small structures."),
    "loss.ce_weight": Key(float, 1.0, "Weight of the voxel term (segmentation).", 0),
    "loss.dice_weight": Key(float, 1.0, "Weight of the overlap term (segmentation).", 0),
    "loss.tversky_alpha": Key(float, 0.3, "Weight of false positives (Salehi et al. 2017).", 0, 1),
    "loss.tversky_beta": Key(float, 0.7, "Weight of false negatives.", 0, 1),
    "loss.topk": Key(float, 0.1, "For dice_topk: part of the voxels that count.", 0.001, 1),
    "loss.boundary_weight": Key(float, 0.01, "For dice_boundary (Kervadec et al. 2019).", 0),
    "sampling.balance": _p("0 draws cases as they are, 1 draws every class equally often."),
    "sampling.foreground": _p("Part of the patches that lie around a voxel of a structure."),
    "augment.preset": Key(
        str, "medium", "Base of the other augment keys.", choices=("none", "light", "medium", "strong")
    ),
    "augment.change": Key(dict, {}, "Settings that replace those of the preset."),
    "optim.name": Key(str, "sgd", "Gradient step.", choices=("sgd", "adam", "adamw")),
    "optim.lr": Key(float, 0.1, "Largest learning rate.", 0),
    "optim.momentum": Key(float, 0.9, "For sgd (Nesterov).", 0, 0.999),
    "optim.weight_decay": Key(float, 5e-4, "On weights of convolutions and linear layers only.", 0),
    "optim.schedule": Key(
        str, "one_cycle", "Learning rate over time.", choices=("one_cycle", "cosine", "step", "constant")
    ),
    "optim.warmup": Key(float, 0.2, "Part of the schedule in which the rate rises.", 0, 0.9),
    "optim.step_at": Key(
        list, [0.5, 0.75], "For step: where the rate falls to a tenth, as parts of the whole.", items=_NUMBER
    ),
    "optim.epochs": Key(float, None, "Passes over the training cases.", 0.01, optional=True),
    "optim.max_steps": Key(int, None, "Gradient steps; use instead of epochs.", 1, optional=True),
    "optim.batch_size": Key(int, 128, "Cases per gradient step, over all processes.", 1),
    "optim.accumulate": Key(int, 1, "Parts a batch is computed in, to save memory.", 1),
    "optim.clip": Key(float, None, "Largest norm of the gradient.", 0, optional=True),
    "optim.ema": Key(float, 0.0, "Decay of the averaged weights that are kept; 0 for none.", 0, 0.99999),
    "optim.precision": Key(str, "fp32", "Arithmetic of the forward pass.", choices=("fp32", "bf16", "fp16")),
    "optim.channels_last": Key(bool, True, "Memory order of activations."),
    "validate.every": Key(int, None, "Steps between validations.", 1, optional=True),
    "validate.metric": Key(
        str,
        "auroc",
        "What the best weights are chosen by.",
        choices=("auroc", "accuracy", "balanced_accuracy", "nll", "dice"),
    ),
    "validate.patience": Key(int, None, "Validations without a better value before training stops.", 1, optional=True),
    "validate.keep": Key(str, "best", "Weights that go into the bundle.", choices=("best", "last")),
    "predict.views": Key(list, [], "Flips averaged at prediction, each a list of axes.", items=_AXES),
    "predict.batch_size": Key(int, 128, "Cases (or tiles) per forward pass.", 1),
    "predict.overlap": Key(float, 0.5, "Part of a tile that the next one covers again.", 0, 0.9),
    "predict.slack": Key(float, 0.4, "Part of a step by which steps may grow to save a row of tiles.", 0, 0.5),
    "predict.backend": Key(
        str, "auto", "What computes the tiles.", choices=("auto", "torch", "openvino", "onnxruntime")
    ),
    "predict.precision": Key(str, "fp32", "Arithmetic of the tiles.", choices=("fp32", "bf16")),
    "predict.skip_below": Key(
        float, None, "Tiles in which no value of the file is above it are background.", optional=True
    ),
    "post.choose": Key(bool, True, "Choose post-processing by the validation cases."),
    "post.steps": Key(
        list, None, "Post-processing that is used as given.", optional=True, items=Key(dict, {}, "A step.")
    ),
    "calibrate.temperature": Key(bool, True, "Fit a temperature on validation (Guo et al. 2017)."),
    "calibrate.operating_point": Key(str, "half", "Decision for two classes.", choices=("half", "youden")),
}

Contradiction = tuple[tuple[str, ...], Callable[..., bool], str]

CONTRADICTIONS: tuple[Contradiction, ...] = (
    (
        ("optim.epochs", "optim.max_steps"),
        lambda a, b: a is not None and b is not None,
        "give one of them and set the other to null",
    ),
    (
        ("loss.name", "loss.focal_gamma"),
        lambda a, b: a not in ("focal", "dice_focal") and b is not None,
        "a focal_gamma needs loss.name = focal or dice_focal",
    ),
    (
        ("sampling.balance", "loss.class_weights"),
        lambda a, b: a > 0 and b is not None,
        "both correct the same imbalance; keep one",
    ),
    (
        ("preprocess.dims", "preprocess.size"),
        lambda a, b: b is not None and len(b) != a,
        "size needs one number per dimension",
    ),
    (
        ("preprocess.dims", "preprocess.spacing_mm"),
        lambda a, b: b is not None and len(b) != a,
        "spacing needs one number per dimension",
    ),
    (
        ("preprocess.dims", "predict.views"),
        lambda a, b: any(axis >= a for view in b for axis in view),
        "a view flips axes from 0 to one less than the dimensions",
    ),
    (
        ("conform.dims", "predict.views"),
        lambda a, b: any(axis >= a for view in b for axis in view),
        "a view flips axes from 0 to one less than the dimensions",
    ),
    (
        ("optim.batch_size", "optim.accumulate"),
        lambda a, b: a % b != 0,
        "the batch must divide into that many equal parts",
    ),
    (
        ("conform.dims", "conform.spacing_mm"),
        lambda a, b: b is not None and len(b) != a,
        "spacing needs one number per dimension",
    ),
    (
        ("conform.dims", "model.patch"),
        lambda a, b: b is not None and len(b) != a,
        "a patch needs one side per dimension",
    ),
    (
        ("model.strides", "model.features"),
        lambda a, b: a is not None and b is not None and len(a) != len(b),
        "give one list of strides and one number of features per stage",
    ),
    (
        ("conform.dims", "model.strides"),
        lambda a, b: b is not None and any(len(stage) != a for stage in b),
        "every stage needs one stride per dimension",
    ),
    (
        ("model.patch", "model.strides"),
        lambda a, b: (
            None not in (a, b)
            and any(side % math.prod(axis) for side, axis in zip(a, zip(*b, strict=False), strict=False))
        ),
        "every side of the patch must be a multiple of the product of its strides",
    ),
    (("split.val", "split.test"), lambda a, b: a + b > 0.95, "too few patients are left for training"),
    (
        ("split.val", "validate.patience"),
        lambda a, b: a == 0 and b is not None,
        "early stopping needs validation cases",
    ),
)
