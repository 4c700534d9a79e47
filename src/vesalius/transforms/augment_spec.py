"""The words of an augmentation: its keys, what they allow, and presets for planners."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vesalius.core.errors import PlanError
from vesalius.transforms.spatial import FOLD_FREE, PADDINGS

AXES = {2: ("y", "x"), 3: ("z", "y", "x")}

# Keys of each section with their defaults; p is the probability per sample (or per pair) and must be given.
SECTIONS: dict[str, dict[str, Any]] = {
    "flip": {"axes": []},
    "crop": {"scale": [0.8, 1.0]},
    "elastic": {"alpha": 0.03, "grid": 4},
    "bias": {"strength": 0.3, "grid": 2},
    "gamma": {"range": [0.7, 1.5]},
    "contrast": {"range": [0.75, 1.33]},
    "brightness": {"range": [-0.2, 0.2]},
    "colour": {"strength": 0.1},
    "invert": {},
    "blur": {"sigma": [0.3, 1.0]},
    "lowres": {"factor": [1.2, 2.0]},
    "noise": {"sigma": [0.0, 0.1]},
    "cutout": {"fraction": [0.1, 0.25], "count": 1},
    "mixup": {"alpha": 0.2},
    "cutmix": {"alpha": 1.0},
}
PLAIN: dict[str, Any] = {
    "spatial_p": 0.0,
    "rotate_deg": 0.0,
    "scale": [1.0, 1.0],
    "anisotropy": 0.0,
    "shear": 0.0,
    "translate": 0.0,
    "padding": "border",
    "spacing": None,
}

# Ranges of two numbers: section, key, smallest and largest allowed value.
_RANGES = {
    ("crop", "scale"): (0.05, 1.0),
    ("gamma", "range"): (0.05, 20.0),
    ("contrast", "range"): (0.01, 100.0),
    ("brightness", "range"): (-10.0, 10.0),
    ("blur", "sigma"): (0.0, 50.0),
    ("lowres", "factor"): (1.0, 64.0),
    ("noise", "sigma"): (0.0, 10.0),
    ("cutout", "fraction"): (0.0, 1.0),
}
_SINGLE = {
    ("elastic", "alpha"): (0.0, 0.5),
    ("elastic", "grid"): (1, 64),
    ("bias", "strength"): (0.0, 5.0),
    ("bias", "grid"): (1, 64),
    ("colour", "strength"): (0.0, 0.9),
    ("cutout", "count"): (1, 64),
    ("mixup", "alpha"): (1e-3, 100.0),
    ("cutmix", "alpha"): (1e-3, 100.0),
}

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {
        "spatial_p": 0.8,
        "rotate_deg": 7.0,
        "scale": [0.93, 1.07],
        "translate": 0.04,
        "brightness": {"p": 0.2, "range": [-0.15, 0.15]},
        "contrast": {"p": 0.2, "range": [0.85, 1.18]},
    },
    "medium": {
        "spatial_p": 0.9,
        "rotate_deg": 15.0,
        "scale": [0.85, 1.18],
        "anisotropy": 0.05,
        "shear": 0.05,
        "translate": 0.07,
        "elastic": {"p": 0.2, "alpha": 0.02, "grid": 4},
        "bias": {"p": 0.15, "strength": 0.2},
        "gamma": {"p": 0.25, "range": [0.75, 1.33]},
        "contrast": {"p": 0.25, "range": [0.75, 1.33]},
        "brightness": {"p": 0.25, "range": [-0.2, 0.2]},
        "blur": {"p": 0.1, "sigma": [0.3, 0.8]},
        "noise": {"p": 0.15, "sigma": [0.0, 0.1]},
    },
    "strong": {
        "spatial_p": 0.95,
        "rotate_deg": 25.0,
        "scale": [0.75, 1.33],
        "anisotropy": 0.1,
        "shear": 0.1,
        "translate": 0.1,
        "crop": {"p": 0.25, "scale": [0.75, 1.0]},
        "elastic": {"p": 0.3, "alpha": 0.04, "grid": 4},
        "bias": {"p": 0.25, "strength": 0.4},
        "gamma": {"p": 0.3, "range": [0.6, 1.6]},
        "contrast": {"p": 0.3, "range": [0.65, 1.5]},
        "brightness": {"p": 0.3, "range": [-0.3, 0.3]},
        "blur": {"p": 0.15, "sigma": [0.4, 1.2]},
        "lowres": {"p": 0.15, "factor": [1.2, 2.0]},
        "noise": {"p": 0.2, "sigma": [0.0, 0.2]},
        "cutout": {"p": 0.25, "fraction": [0.1, 0.3], "count": 1},
        "mixup": {"p": 0.3, "alpha": 0.2},
    },
}
"""Starting points for planners. None of them flips: whether left may become right is a question about the anatomy."""


def checked(spec: Mapping[str, Any], dims: int) -> dict[str, Any]:
    """`spec` with its defaults as plain data; absent, null and 0 sections become None.

    Raises
    ------
    PlanError
        Names the key that is unknown or wrong.
    """
    if dims not in AXES:
        raise PlanError(f"augment works in 2 or 3 dimensions, got {dims!r}")
    known = [*PLAIN, *SECTIONS]
    unknown = sorted(set(spec) - set(known))
    if unknown:
        raise PlanError(f"augment has no key {unknown}; it has {known}")
    full: dict[str, Any] = {}
    for key in known:
        full[key] = _plain(key, spec.get(key, PLAIN[key]), dims) if key in PLAIN else _section(key, spec.get(key))
    _check_flip(full["flip"], dims)
    elastic = full["elastic"]
    if elastic and elastic["alpha"] * elastic["grid"] > FOLD_FREE:
        raise PlanError(
            f"augment.elastic.alpha x grid is {elastic['alpha'] * elastic['grid']:.2f}; above {FOLD_FREE} the field "
            "can fold: lower one of them"
        )
    return full


def _section(key: str, given: Any) -> dict[str, Any] | None:
    if given is None or (not isinstance(given, Mapping) and given == 0):
        return None
    wanted = ["p", *SECTIONS[key]]
    if not isinstance(given, Mapping) or "p" not in given:
        raise PlanError(f"augment.{key} must be 0 or hold p and any of {wanted[1:]}, got {given!r}")
    unknown = sorted(set(given) - set(wanted))
    if unknown:
        raise PlanError(f"augment.{key} has no key {unknown}; it has {wanted}")
    full = {"p": _number(f"{key}.p", given["p"], 0.0, 1.0)}
    for name, default in SECTIONS[key].items():
        value = given.get(name, default)
        where = f"{key}.{name}"
        if (key, name) in _RANGES:
            full[name] = _range(where, value, *_RANGES[key, name])
        elif (key, name) in _SINGLE:
            full[name] = _number(where, value, *_SINGLE[key, name])
        else:
            full[name] = value
    return full if full["p"] > 0 else None


def _plain(key: str, value: Any, dims: int) -> Any:
    if key == "padding":
        if value not in PADDINGS:
            raise PlanError(f"augment.padding must be one of {', '.join(PADDINGS)}, got {value!r}")
        return value
    if key == "spacing":
        if value is None:
            return None
        return [_number(key, step, 1e-6, 1e6) for step in _list(key, value, dims)]
    if key == "scale":
        return _range(key, value, 0.1, 10.0)
    if key == "rotate_deg" and isinstance(value, (list, tuple)):
        return [_number(key, angle, 0.0, 180.0) for angle in _list(key, value, 1 if dims == 2 else 3)]
    top = {"spatial_p": 1.0, "rotate_deg": 180.0, "anisotropy": 1.0, "shear": 1.0, "translate": 1.0}[key]
    return _number(key, value, 0.0, top)


def _check_flip(flip: dict[str, Any] | None, dims: int) -> None:
    if flip is None:
        return
    axes = flip["axes"]
    if not isinstance(axes, (list, tuple)) or not set(axes) <= set(AXES[dims]) or len(set(axes)) != len(axes):
        raise PlanError(f"augment.flip.axes must be different ones of {list(AXES[dims])}, got {axes!r}")
    flip["axes"] = list(axes)


def _list(key: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise PlanError(f"augment.{key} must hold {count} numbers, got {value!r}")
    return list(value)


def _number(key: str, value: Any, low: float, high: float) -> Any:
    whole = isinstance(low, int) and isinstance(high, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
        raise PlanError(f"augment.{key} must be a {'whole ' if whole else ''}number, got {value!r}")
    if not low <= value <= high:
        raise PlanError(f"augment.{key} must be from {low} to {high}, got {value}")
    return value if whole else float(value)


def _range(key: str, value: Any, low: float, high: float) -> list[float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise PlanError(f"augment.{key} must be [low, high], got {value!r}")
    pair = [_number(key, end, low, high) for end in value]
    if pair[0] > pair[1]:
        raise PlanError(f"augment.{key} must be low then high, got {value!r}")
    return pair
