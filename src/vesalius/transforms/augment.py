"""Random changes to a training batch, drawn for the whole batch and applied in a few large operations.

`Augment.sample` draws everything for the global batch of a step and is a pure function of (seed, step);
`Augment.apply` is deterministic. A process that holds samples ``first`` to ``first + B`` of the batch therefore makes
the same samples as one process that holds them all.

The order is that of the physics: where things are (one interpolation), how bright they are, how sharply they are
seen, what noise is added, what is hidden, and at last which samples are blended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vesalius.core.randomness import generator
from vesalius.transforms import intensity
from vesalius.transforms.augment_spec import AXES, PRESETS, checked
from vesalius.transforms.spatial import SpatialParams, linear_maps, warp_together

__all__ = ["PRESETS", "Augment", "AugmentParams", "Augmented", "Mix"]

Draws = dict[str, NDArray[Any]]

# Channels that colour changes are drawn for, whether or not an image has them: draws must not depend on the image.
_COLOURS = 4


@dataclass(frozen=True, eq=False)
class AugmentParams:
    """What happens to each sample of a batch: host arrays, first axis B.

    Parameters
    ----------
    spatial
        The spatial maps.
    chosen
        Per operation ``(B,)`` bool.
    draws
        Per operation its numbers, each with first axis B.
    """

    spatial: SpatialParams
    chosen: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    draws: Mapping[str, Draws] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.spatial)

    def __getitem__(self, which: slice) -> AugmentParams:
        draws = {name: {key: values[which] for key, values in group.items()} for name, group in self.draws.items()}
        return AugmentParams(self.spatial[which], {k: v[which] for k, v in self.chosen.items()}, draws)


@dataclass(frozen=True, eq=False)
class Mix:
    """How samples were blended, to be applied to their targets.

    Parameters
    ----------
    weight
        ``(B,)`` float32: part of each sample that is its own; None if nothing was blended.
    """

    weight: Tensor | None = None

    def __call__(self, targets: Tensor) -> Tensor:
        """Soft targets ``(B, K)``, blended like the images; `targets` itself if nothing was blended."""
        if self.weight is None:
            return targets
        if not targets.is_floating_point() or targets.shape[0] != self.weight.shape[0]:
            raise ValueError(
                f"targets must be float (B, K) for B of {self.weight.shape[0]}, got {targets.dtype} "
                f"{tuple(targets.shape)}; turn class numbers into one-hot rows first"
            )
        weight = self.weight.to(targets.dtype).view(-1, *(1,) * (targets.ndim - 1))
        return _blend(targets, weight)


@dataclass(frozen=True, eq=False)
class Augmented:
    """A batch after augmentation: image ``(B, C, *S)``, label ``(B, 1, *S)`` or None, and how targets are blended."""

    image: Tensor
    label: Tensor | None
    mix: Mix


class Augment:
    """Random changes as a spec describes them.

    Parameters
    ----------
    spec
        Keys as in `augment_spec.PLAIN` and `augment_spec.SECTIONS`; absent keys do nothing. Probabilities are per
        sample, for mixup and cutmix per pair.
    dims
        2 or 3.
    seed
        The run's seed.

    Raises
    ------
    PlanError
        Names the key that is unknown or wrong.
    """

    def __init__(self, spec: Mapping[str, Any], *, dims: int, seed: int) -> None:
        self.spec = checked(spec, dims)
        self.dims = dims
        self.seed = int(seed)

    def sample(self, step: int, size: int) -> AugmentParams:
        """Everything that happens to the `size` samples of the global batch of `step`."""
        chosen: dict[str, NDArray[np.bool_]] = {}
        draws: dict[str, Draws] = {}
        for name, draw in _DRAWS.items():
            section = self.spec[name]
            if section is not None:
                # One stream per operation: switching one off leaves the numbers of the others as they were.
                rng = self._rng(name, step)
                pairs = name in ("mixup", "cutmix")
                chosen[name] = _per_pair(rng, section["p"], size) if pairs else rng.random(size) < section["p"]
                draws[name] = draw(rng, section, size, self.dims)
        return AugmentParams(self._spatial(step, size), chosen, draws)

    def __call__(
        self, image: Tensor, label: Tensor | None = None, *, step: int, first: int = 0, total: int | None = None
    ) -> Augmented:
        """Augment samples ``first`` to ``first + B`` of the global batch of `step`.

        Parameters
        ----------
        image
            ``(B, C, *S)`` floating point; not changed in place.
        label
            ``(B, 1, *S)`` integer label map, moved with the image.
        step
            Number of the step in the run.
        first, total
            This process's place in the global batch and the size of that batch; by default the batch is all of it.

        Raises
        ------
        ValueError
            For wrong axes or types, a slice outside the batch, or one that cuts a pair that may be blended.
        """
        size = image.shape[0] + first if total is None else total
        if first < 0 or first + image.shape[0] > size:
            raise ValueError(f"samples {first} to {first + image.shape[0]} are outside a batch of {size}")
        cut = first % 2 or (image.shape[0] % 2 and first + image.shape[0] < size)
        if cut and (self.spec["mixup"] or self.spec["cutmix"]):
            raise ValueError(f"samples {first} to {first + image.shape[0]} cut a pair; give each process whole pairs")
        return self.apply(image, label, self.sample(step, size)[first : first + image.shape[0]])

    def apply(self, image: Tensor, label: Tensor | None, params: AugmentParams) -> Augmented:
        """Do what `params` say; no randomness is left here."""
        if not image.is_floating_point():
            raise ValueError(f"image must be floating point, got {image.dtype}; call Preprocess.finish first")
        if label is not None and self.spec["mixup"]:
            raise ValueError("mixup cannot blend a label map; set augment.mixup to 0 (cutmix works)")
        with torch.no_grad():
            x = image.to(torch.float32)
            x, label = warp_together(x, label, params.spatial, padding=self.spec["padding"])
            for name, change in _CHANGES.items():
                if name in params.chosen:
                    x = _on_chosen(x, params.chosen[name], params.draws[name], change)
            x, label, mix = _blend_batch(x, label, params)
        return Augmented(x.to(image.dtype), label, mix)

    def _rng(self, name: str, step: int) -> np.random.Generator:
        return generator(self.seed, f"augment.{name}", step)

    def _spatial(self, step: int, size: int) -> SpatialParams:
        spec, dims = self.spec, self.dims
        rng = self._rng("spatial", step)
        on = rng.random(size) < spec["spatial_p"]
        angles = rng.uniform(-1, 1, (size, 1 if dims == 2 else 3)) * np.deg2rad(spec["rotate_deg"])
        scale = _factor(rng, spec["scale"], (size, 1))
        scale = scale * np.exp(rng.uniform(-1, 1, (size, dims)) * np.log1p(spec["anisotropy"]))
        shear = rng.uniform(-1, 1, (size, dims, dims)) * spec["shear"]
        shift = rng.uniform(-1, 1, (size, dims)) * spec["translate"]
        maps = linear_maps(rotation=angles, scale=scale, shear=shear, spacing=spec["spacing"])
        maps = np.where(on[:, None, None], maps, np.eye(dims))
        shift = np.where(on[:, None], shift, 0.0)
        if spec["crop"]:
            rng = self._rng("crop", step)
            window = _uniform(rng, spec["crop"]["scale"], (size, 1))
            window[rng.random(size) >= spec["crop"]["p"]] = 1.0
            # The window is cut first and then moved as a whole image would be.
            shift = shift * window + rng.uniform(-0.5, 0.5, (size, dims)) * (1 - window)
            maps = maps * window[:, :, None]
        return SpatialParams(maps, shift, self._flips(step, size), self._elastic(step, size))

    def _flips(self, step: int, size: int) -> NDArray[np.bool_]:
        flips = np.zeros((size, self.dims), dtype=bool)
        section = self.spec["flip"]
        if section:
            drawn = self._rng("flip", step).random((size, self.dims)) < section["p"]
            for axis, name in enumerate(AXES[self.dims]):
                flips[:, axis] = drawn[:, axis] & (name in section["axes"])
        return flips

    def _elastic(self, step: int, size: int) -> NDArray[np.float64] | None:
        section = self.spec["elastic"]
        if not section:
            return None
        rng = self._rng("elastic", step)
        on = (rng.random(size) < section["p"]).reshape(-1, *(1,) * (self.dims + 1))
        control = rng.uniform(-1, 1, (size, self.dims, *(section["grid"] + 3,) * self.dims))
        return np.asarray(np.where(on, control * section["alpha"], 0.0))


def _factor(rng: np.random.Generator, ends: list[float], shape: Any) -> NDArray[np.float64]:
    """Uniform on a logarithmic scale: halving is as likely as doubling."""
    return np.asarray(np.exp(rng.uniform(np.log(ends[0]), np.log(ends[1]), shape)))


def _uniform(rng: np.random.Generator, ends: list[float], shape: Any) -> NDArray[np.float64]:
    return np.asarray(rng.uniform(ends[0], ends[1], shape))


def _per_pair(rng: np.random.Generator, p: float, size: int) -> NDArray[np.bool_]:
    """One decision for samples 2 k and 2 k + 1; a last sample without partner is left out."""
    on = np.repeat(rng.random((size + 1) // 2) < p, 2)[:size]
    if size % 2:
        on[-1] = False
    return on


def _draw_factor(key: str, parameter: str) -> Callable[..., Draws]:
    return lambda rng, section, size, dims: {parameter: _factor(rng, section[key], size)}


def _draw_range(key: str, parameter: str) -> Callable[..., Draws]:
    return lambda rng, section, size, dims: {parameter: _uniform(rng, section[key], size)}


def _draw_noise(rng: np.random.Generator, section: Mapping[str, Any], size: int, dims: int) -> Draws:
    sigma = _uniform(rng, section["sigma"], size)
    return {"sigma": sigma, "keys": rng.integers(-(1 << 63), (1 << 63) - 1, size, dtype=np.int64)}


def _draw_bias(rng: np.random.Generator, section: Mapping[str, Any], size: int, dims: int) -> Draws:
    control = rng.uniform(-1, 1, (size, 1, *(section["grid"] + 3,) * dims))
    return {"control": control * section["strength"]}


def _draw_colour(rng: np.random.Generator, section: Mapping[str, Any], size: int, dims: int) -> Draws:
    gain = np.exp(rng.uniform(-1, 1, (size, _COLOURS)) * np.log1p(section["strength"]))
    return {"gain": gain, "shift": rng.uniform(-1, 1, (size, _COLOURS)) * section["strength"]}


def _draw_cutout(rng: np.random.Generator, section: Mapping[str, Any], size: int, dims: int) -> Draws:
    extent = _uniform(rng, section["fraction"], (size, section["count"], dims))
    lower = rng.uniform(0, 1, extent.shape) * (1 - extent)
    return {"lower": lower, "upper": lower + extent}


def _draw_mixup(rng: np.random.Generator, section: Mapping[str, Any], size: int, dims: int) -> Draws:
    weight = rng.beta(section["alpha"], section["alpha"], (size + 1) // 2)
    return {"weight": np.repeat(weight, 2)[:size]}


def _draw_cutmix(rng: np.random.Generator, section: Mapping[str, Any], size: int, dims: int) -> Draws:
    """The box is as large as the part it replaces and lies inside the image (Yun et al., "CutMix", ICCV 2019)."""
    pairs = (size + 1) // 2
    extent = (1 - rng.beta(section["alpha"], section["alpha"], (pairs, 1, 1))) ** (1 / dims)
    lower = rng.uniform(0, 1, (pairs, 1, dims)) * (1 - extent)
    return {"lower": np.repeat(lower, 2, axis=0)[:size], "upper": np.repeat(lower + extent, 2, axis=0)[:size]}


_DRAWS: dict[str, Callable[..., Draws]] = {
    "bias": _draw_bias,
    "gamma": _draw_factor("range", "exponent"),
    "contrast": _draw_factor("range", "factor"),
    "brightness": _draw_range("range", "amount"),
    "colour": _draw_colour,
    "invert": lambda rng, section, size, dims: {},
    "blur": _draw_range("sigma", "sigma"),
    "lowres": _draw_factor("factor", "factor"),
    "noise": _draw_noise,
    "cutout": _draw_cutout,
    "mixup": _draw_mixup,
    "cutmix": _draw_cutmix,
}


def _change_colour(x: Tensor, gain: NDArray[Any], shift: NDArray[Any]) -> Tensor:
    if x.shape[1] > _COLOURS:
        raise ValueError(f"augment.colour is for at most {_COLOURS} channels, the image has {x.shape[1]}")
    return intensity.colour(x, gain[:, : x.shape[1]], shift[:, : x.shape[1]])


_CHANGES: dict[str, Callable[..., Tensor]] = {
    "bias": intensity.bias_field,
    "gamma": intensity.gamma,
    "contrast": intensity.contrast,
    "brightness": intensity.brightness,
    "colour": _change_colour,
    "invert": intensity.invert,
    "blur": intensity.blur,
    "lowres": intensity.low_resolution,
    "noise": intensity.add_noise,
    "cutout": intensity.cutout,
}


def _on_chosen(x: Tensor, on: NDArray[np.bool_], draws: Draws, change: Callable[..., Tensor]) -> Tensor:
    """`x` with `change` applied to the chosen samples; the others keep their bits."""
    rows = np.flatnonzero(on)
    if not rows.size:
        return x
    if rows.size == len(on):
        return change(x, **draws)
    index = torch.from_numpy(rows).to(x.device)
    return x.index_copy(0, index, change(x[index], **{key: values[rows] for key, values in draws.items()}))


def _blend_batch(x: Tensor, label: Tensor | None, params: AugmentParams) -> tuple[Tensor, Tensor | None, Mix]:
    """Mixup (Zhang et al., ICLR 2018) and, for pairs that it left alone, cutmix."""
    nobody = np.zeros(len(params), dtype=bool)
    mixed = params.chosen.get("mixup", nobody)
    pasted = params.chosen.get("cutmix", nobody) & ~mixed
    if not (mixed | pasted).any():
        return x, label, Mix()
    weight = np.ones(len(params))
    if mixed.any():
        weight = np.where(mixed, params.draws["mixup"]["weight"], 1.0)
        x = _blend(x, torch.from_numpy(weight.astype(np.float32)).to(x.device).view(-1, *(1,) * (x.ndim - 1)))
    if pasted.any():
        lower = params.draws["cutmix"]["lower"]
        upper = np.where(pasted[:, None, None], params.draws["cutmix"]["upper"], lower)
        inside = intensity.boxes_mask(lower, upper, x.shape[2:], x.device)
        x = torch.where(inside, x[_partners(len(x), x.device)], x)
        label = None if label is None else torch.where(inside, label[_partners(len(x), x.device)], label)
        edges = [intensity.pixel_bounds(corner, x.shape[2:]) for corner in (lower, upper)]
        hidden = np.prod(edges[1] - edges[0], axis=-1)[:, 0] / np.prod(x.shape[2:])
        weight = np.where(pasted, 1.0 - hidden, weight)
    return x, label, Mix(torch.from_numpy(weight.astype(np.float32)).to(x.device))


def _partners(count: int, device: torch.device) -> Tensor:
    """Sample 2 k is paired with 2 k + 1; a last one without partner with itself."""
    index = torch.arange(count, device=device) ^ 1
    return index.clamp_max_(count - 1)


def _blend(values: Tensor, weight: Tensor) -> Tensor:
    """Own part plus the partner's; samples of weight 1 keep their bits."""
    other = values[_partners(values.shape[0], values.device)]
    return torch.where(weight == 1, values, values * weight + other * (1 - weight))
