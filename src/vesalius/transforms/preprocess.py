"""From the pixels of a file to the input of a network, by one spec that training, serving and export share.

Three acts, each with a reason to be separate:

``prepare``
    Depends on what is in the image (foreground crop) or beside it (spacing). Happens once, outside an exported graph.
``fit`` inside ``store``
    Fixed for a fixed input shape: channels, centre crop, size, window, storage type. Done once, kept on disk.
``finish``
    Cheap arithmetic on the device, every time: back to numbers, normalised.

``forward`` is fit and finish in one, and is what an exported graph holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vesalius.core.errors import DataError, PlanError
from vesalius.transforms.resample import apply_matrices, interpolation_matrix, resample_to_spacing

DEFAULTS: dict[str, Any] = {
    "channels": 1,
    "crop": "none",
    "threshold": None,
    "fit": "stretch",
    "spacing_mm": None,
    "window": None,
    "storage": "uint8",
    "scale": None,
    "normalise": {"kind": "none"},
}
"""Every key of a spec but ``dims`` and ``size``, which must be given."""

CROPS = ("none", "foreground", "center_square")
FITS = ("stretch", "pad", "crop", "place")
STORAGE = {"uint8": torch.uint8, "uint16": torch.uint16, "int16": torch.int16, "float32": torch.float32}
_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": (-32768.0, 32767.0), "float32": (0.0, 1.0)}
# Shrinking by simple ratios gives many values of exactly n + 1/2. Where they go must not depend on the order of a sum,
# or another program than this one (an exported graph) rounds some of them the other way: a little less than a half
# rounds up, by far more than any sum is off.
_HALF = 0.5 + 2.0**-10
# ITU-R BT.601, as Pillow and OpenCV turn colour into grey.
_LUMINANCE = (0.299, 0.587, 0.114)
# Float values held at once while a stack is resized: 64 MB.
_STACK_VALUES = 1 << 24


class Preprocess(nn.Module):
    """Pixels of a file to the input of a network; an exportable module without weights.

    Parameters
    ----------
    spec
        Plain data, kept in ``bundle.json``. Keys:

        * ``dims`` 2 or 3; ``size`` (y, x) or (z, y, x).
        * ``channels``: 1 grey goes to 3 by repeating, 3 colours go to 1 by luminance, other numbers must match.
        * ``crop``: ``"none"``, ``"foreground"`` (box around values above ``threshold``; None means 5 % of the range
          above the minimum) or ``"center_square"`` (the largest square of the (y, x) plane).
        * ``fit``: ``"stretch"``; ``"pad"`` keeps the aspect ratio and fills up with the smallest value of the border;
          ``"crop"`` keeps it and cuts the middle; ``"place"`` does not rescale: it cuts or fills at the present scale
          (with ``spacing_mm``, the physical scale is kept).
        * ``spacing_mm``: None or the spacing (z, y, x) to resample to first, where an image knows its own.
        * ``window``: None or [low, high], values outside are clipped.
        * ``scale``: None keeps raw units; {"low", "high"} spreads that range over the storage type, and `finish` then
          sees numbers from 0 to 1.
        * ``storage``: ``uint8``, ``uint16``, ``int16`` (rounded and clamped) or ``float32``.
        * ``normalise``: {"kind": "none"}, {"kind": "per_image"} (zero mean, unit deviation of each image) or
          {"kind": "fixed", "mean": [...], "std": [...]} in the units that `finish` sees.

    Raises
    ------
    PlanError
        Names the key that is unknown, missing or wrong.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self._spec = _checked(spec)
        self.dims: int = self._spec["dims"]
        self.channels: int = self._spec["channels"]
        self.size: tuple[int, ...] = tuple(self._spec["size"])
        normalise = self._spec["normalise"]
        # Not persistent: the spec is the one place these numbers are kept.
        ones = (1,) * self.dims
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            values = torch.tensor(normalise.get(name, [neutral]), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, *ones), persistent=False)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Preprocess:
        """The module that `spec` describes."""
        return cls(spec)

    @property
    def spec(self) -> dict[str, Any]:
        """All keys as plain data for JSON; ``Preprocess.from_spec(p.spec)`` does exactly what ``p`` does."""
        return {key: _plain(value) for key, value in self._spec.items()}

    @property
    def storage(self) -> torch.dtype:
        """Type of stored values."""
        return STORAGE[self._spec["storage"]]

    def extra_repr(self) -> str:
        """Shown by ``print(module)``."""
        return f"{self.channels} x {self.size}, fit={self._spec['fit']}, storage={self._spec['storage']}"

    def prepare(self, pixels: NDArray[Any] | Tensor, spacing_mm: Sequence[float] | None = None) -> Tensor:
        """The part that no exported graph holds: foreground crop and resampling to a spacing.

        Parameters
        ----------
        pixels
            ``(C, *S)`` in any type.
        spacing_mm
            Distance of pixel centres (z, y, x); None where the file does not know it, then nothing is resampled.

        Returns
        -------
        Tensor
            ``(C, *S')`` float32.

        Raises
        ------
        ValueError
            For wrong axes.
        DataError
            If a value is not a finite number.
        """
        x = _float(pixels)
        if x.ndim != self.dims + 1:
            raise ValueError(f"pixels must have axes (C, {self._axes}), got shape {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            count = int((~torch.isfinite(x)).sum())
            raise DataError(f"{count} pixels are not finite numbers; replace them before preprocessing")
        if self._spec["crop"] == "foreground":
            x = _foreground(x, self._spec["threshold"])
        if self._spec["spacing_mm"] is not None and spacing_mm is not None:
            x = resample_to_spacing(x[None], spacing_mm, self._spec["spacing_mm"])[0]
        return x

    def store(self, pixels: NDArray[Any] | Tensor, spacing_mm: Sequence[float] | None = None) -> Tensor:
        """Everything that is worth doing once: ``(C, *S)`` to ``(channels, *size)`` in the storage type."""
        with torch.no_grad():
            return self._fit(self.prepare(pixels, spacing_mm)[None])[0].to(self.storage)

    def store_stack(self, array: NDArray[Any] | Tensor) -> Tensor:
        """Images of one size, ``(N, C, *S)`` to ``(N, channels, *size)``, each as `store` would do it alone.

        Where the stack already has the stored form, the values are returned as they are; the result may then share
        memory with `array`.
        """
        stack = _tensor(array)
        if stack.ndim != self.dims + 2:
            raise ValueError(f"a stack must have axes (N, C, {self._axes}), got shape {tuple(stack.shape)}")
        if self._stored_already(stack):
            return stack
        if self._spec["crop"] == "foreground":
            return torch.stack([self.store(image) for image in stack])
        out = torch.empty((stack.shape[0], self.channels, *self.size), dtype=self.storage, device=stack.device)
        count = max(1, _STACK_VALUES // max(1, int(np.prod(stack.shape[1:]))))
        with torch.no_grad():
            for start in range(0, stack.shape[0], count):
                # Bounds first: types such as uint16 know few operations, slicing is one of them.
                part = stack[start : start + count].to(torch.float32)
                if not bool(torch.isfinite(part).all()):
                    raise DataError(f"images {start} to {start + len(part) - 1} hold values that are not finite")
                out[start : start + count] = self._fit(part).to(self.storage)
        return out

    def finish(self, stored: Tensor) -> Tensor:
        """Stored values ``(B, channels, *size)`` to normalised float32 of the same shape, on their device."""
        if stored.ndim != self.dims + 2 or tuple(stored.shape[1:]) != (self.channels, *self.size):
            wanted = (self.channels, *self.size)
            raise ValueError(f"stored must have axes (B, C, {self._axes}) with {wanted}, got {tuple(stored.shape)}")
        x = stored.to(torch.float32)
        if self._spec["scale"] is not None:
            low, high = _RANGE[self._spec["storage"]]
            x = (x - low) / (high - low)
        kind = self._spec["normalise"]["kind"]
        if kind == "per_image":
            axes = tuple(range(1, self.dims + 2))
            x = x - x.mean(dim=axes, keepdim=True)
            # The floor keeps a blank image at zero instead of blowing up its rounding noise. A product, since LiteRT
            # knows no powers of volumes; it has the same bits.
            return x / (x * x).mean(dim=axes, keepdim=True).sqrt().clamp_min(1e-5)
        return (x - self.mean) / self.std if kind == "fixed" else x

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw pixels ``(B, C, *S)``, already through `prepare` where the spec asks for it, to float32 normalised."""
        return self.finish(self._fit(pixels.to(torch.float32)))

    @property
    def _axes(self) -> str:
        return "Y, X" if self.dims == 2 else "Z, Y, X"

    def _stored_already(self, stack: Tensor) -> bool:
        spec = self._spec
        low, high = _RANGE[spec["storage"]]
        return (
            stack.dtype == self.storage != torch.float32
            and tuple(stack.shape[1:]) == (self.channels, *self.size)
            and spec["window"] is None
            and spec["scale"] in (None, {"low": low, "high": high})
            and (spec["crop"] == "none" or (spec["crop"] == "center_square" and self.size[-1] == self.size[-2]))
        )

    def _fit(self, x: Tensor) -> Tensor:
        """``(B, C, *S)`` float32 to ``(B, channels, *size)`` float32 whose values the storage type can hold."""
        return self._ranged(self._sized(_to_channels(x, self.channels)))

    def _sized(self, x: Tensor) -> Tensor:
        """The part of the image that is used, at the size of the network."""
        if self._spec["crop"] == "center_square":
            x = _centre_square(x)
        return _to_size(x, self.size, self._spec["fit"])

    def _ranged(self, x: Tensor) -> Tensor:
        """Values cut to the window, spread over the storage type and rounded to it."""
        if self._spec["window"] is not None:
            x = x.clamp(*self._spec["window"])
        low, high = _RANGE[self._spec["storage"]]
        if self._spec["scale"] is not None:
            bottom, top = self._spec["scale"]["low"], self._spec["scale"]["high"]
            if (bottom, top) != (low, high):
                x = (x - bottom) * ((high - low) / (top - bottom)) + low
            x = x.clamp(low, high)
        return x if self._spec["storage"] == "float32" else torch.floor(x + _HALF).clamp(low, high)


def _to_channels(x: Tensor, channels: int) -> Tensor:
    have = x.shape[1]
    if have == channels:
        return x
    if have == 1 and channels == 3:
        return x.expand(-1, 3, *x.shape[2:])
    if have == 3 and channels == 1:
        red, green, blue = _LUMINANCE
        return x[:, 0:1] * red + x[:, 1:2] * green + x[:, 2:3] * blue
    raise ValueError(f"images have {have} channels, the plan has {channels}; only 1 -> 3 and 3 -> 1 are converted")


def _centre_square(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side]


def _foreground(x: Tensor, threshold: float | None) -> Tensor:
    """The box around values above `threshold` in any channel; the whole image if there are none."""
    if threshold is None:
        low, high = float(x.min()), float(x.max())
        threshold = low + 0.05 * (high - low)
    above = (x > threshold).any(dim=0)
    if not bool(above.any()):
        return x
    box = [slice(None)]
    for axis in range(above.ndim):
        others = [k for k in range(above.ndim) if k != axis]
        hits = torch.nonzero(above.amax(dim=others)).flatten()
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return x[tuple(box)]


def _to_size(x: Tensor, size: tuple[int, ...], fit: str) -> Tensor:
    """Resize, cut and fill in one product per axis: rows outside the image are zero and filled afterwards."""
    shape = tuple(int(side) for side in x.shape[2:])
    ratios = [new / old for new, old in zip(size, shape, strict=True)]
    if fit == "stretch":
        inner = size
    elif fit == "place":
        inner = shape
    else:
        ratio = min(ratios) if fit == "pad" else max(ratios)
        inner = tuple(max(1, round(side * ratio)) for side in shape)
    matrices: list[NDArray[np.float32] | None] = []
    inside: list[slice] = []
    for old, middle, new in zip(shape, inner, size, strict=True):
        matrix, rows = _axis(old, middle, new)
        matrices.append(matrix)
        inside.append(rows)
    y = apply_matrices(x, matrices)
    if all(rows == slice(0, new) for rows, new in zip(inside, size, strict=True)):
        return y
    filled = np.ones(size, dtype=bool)
    filled[tuple(inside)] = False
    within = y[(slice(None), slice(None), *inside)]
    return torch.where(torch.from_numpy(filled).to(x.device), _border_minimum(within), y)


def _axis(old: int, middle: int, new: int) -> tuple[NDArray[np.float32] | None, slice]:
    """Matrix from `old` to `middle` pixels, cut or filled with zero rows to `new`, and the rows that hold image."""
    if old == middle == new:
        return None, slice(0, new)
    matrix = interpolation_matrix(old, middle)
    if middle >= new:
        start = (middle - new) // 2
        return np.ascontiguousarray(matrix[start : start + new]), slice(0, new)
    start = (new - middle) // 2
    padded = np.zeros((new, old), dtype=np.float32)
    padded[start : start + middle] = matrix
    return padded, slice(start, start + middle)


def _border_minimum(x: Tensor) -> Tensor:
    """Smallest value of the outermost pixels, ``(B, C, 1, ...)``."""
    axes = tuple(range(2, x.ndim))
    edges = [side.amin(dim=axes, keepdim=True)
             for axis in axes for side in (x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1))]  # fmt: skip
    least = edges[0]
    for edge in edges[1:]:
        least = torch.minimum(least, edge)
    return least


def _tensor(array: NDArray[Any] | Tensor) -> Tensor:
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()  # torch wraps neither read-only memory nor negative strides
    return torch.from_numpy(array)


def _float(array: NDArray[Any] | Tensor) -> Tensor:
    return _tensor(array).to(torch.float32)


def _checked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with its defaults, as plain data."""
    known = ["dims", "size", *DEFAULTS]
    unknown = sorted(set(spec) - set(known))
    if unknown:
        raise PlanError(f"preprocess has no key {unknown}; it has {known}")
    missing = [key for key in ("dims", "size") if key not in spec]
    if missing:
        raise PlanError(f"preprocess needs the keys {missing}")
    full = {key: spec.get(key, DEFAULTS.get(key)) for key in known}
    _choice(full, "dims", (2, 3))
    _choice(full, "crop", CROPS)
    _choice(full, "fit", FITS)
    _choice(full, "storage", tuple(STORAGE))
    full["size"] = [int(v) for v in _numbers(full, "size", full["dims"])]
    channels = full["channels"]
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1 or min(full["size"]) < 1:
        raise PlanError(f"preprocess.channels and preprocess.size must be at least 1, got {channels}, {full['size']}")
    if full["threshold"] is not None:
        full["threshold"] = _numbers({"threshold": [full["threshold"]]}, "threshold", 1)[0]
    if full["spacing_mm"] is not None:
        full["spacing_mm"] = _numbers(full, "spacing_mm", full["dims"])
        if min(full["spacing_mm"]) <= 0:
            raise PlanError(f"preprocess.spacing_mm must be positive, got {full['spacing_mm']}")
    if full["window"] is not None:
        full["window"] = _ordered("window", _numbers(full, "window", 2))
    full["scale"] = _checked_scale(full["scale"])
    full["normalise"] = _checked_normalise(full["normalise"], channels)
    return full


def _checked_scale(scale: Any) -> dict[str, float] | None:
    if scale is None:
        return None
    if not isinstance(scale, Mapping) or set(scale) != {"low", "high"}:
        raise PlanError(f"preprocess.scale must be null or hold low and high, got {scale!r}")
    low, high = _ordered("scale", _numbers({"scale": [scale["low"], scale["high"]]}, "scale", 2))
    return {"low": low, "high": high}


def _checked_normalise(given: Any, channels: int) -> dict[str, Any]:
    kinds = {"none": set(), "per_image": set(), "fixed": {"mean", "std"}}
    if not isinstance(given, Mapping) or given.get("kind") not in kinds:
        raise PlanError(f"preprocess.normalise.kind must be one of {', '.join(kinds)}, got {given!r}")
    wanted = {"kind", *kinds[given["kind"]]}
    if set(given) != wanted:
        raise PlanError(
            f"preprocess.normalise of kind {given['kind']} has the keys {sorted(wanted)}, got {sorted(given)}"
        )
    plain: dict[str, Any] = {"kind": given["kind"]}
    for key in sorted(wanted - {"kind"}):
        values = given[key] if isinstance(given[key], Iterable) and not isinstance(given[key], str) else [given[key]]
        values = list(cast("Iterable[Any]", values))
        if len(values) not in (1, channels):
            raise PlanError(f"preprocess.normalise.{key} needs 1 or {channels} numbers, got {values}")
        plain[key] = _numbers({f"normalise.{key}": values}, f"normalise.{key}", len(values))
    if min(plain.get("std", [1.0])) <= 0:
        raise PlanError(f"preprocess.normalise.std must be positive, got {plain['std']}")
    return plain


def _choice(spec: Mapping[str, Any], key: str, choices: tuple[Any, ...]) -> None:
    if isinstance(spec[key], bool) or spec[key] not in choices:
        raise PlanError(f"preprocess.{key} must be one of {', '.join(map(str, choices))}, got {spec[key]!r}")


def _numbers(spec: Mapping[str, Any], key: str, count: int) -> list[float]:
    try:
        values = [float(v) for v in spec[key]]
    except (TypeError, ValueError) as error:
        raise PlanError(f"preprocess.{key} must hold {count} numbers, got {spec[key]!r}") from error
    if len(values) != count or not np.isfinite(values).all():
        raise PlanError(f"preprocess.{key} must hold {count} finite numbers, got {spec[key]!r}")
    return values


def _ordered(key: str, pair: list[float]) -> list[float]:
    if pair[0] >= pair[1]:
        raise PlanError(f"preprocess.{key} must be low then high, got {pair}")
    return pair


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, (list, tuple)) else data
