"""What a synthetic case is, and what the kinds of phantoms share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vesalius.core.case import Case
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.core.labels import Labels
from vesalius.core.randomness import generator

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Phantom:
    """A case and the truth about it.

    Parameters
    ----------
    case
        One image in the role ``"image"``; ``case.target`` is the index of the class.
    label, classes
        Name of the class, and all names that it could have had.
    truth
        Numbers that follow from the construction, not from the pixels; lengths in mm or pixels as the keys say.
    mask
        Label map on the image's grid, uint8 or uint16; None for kinds without one.
    structures
        Names of the values of `mask`, from 0 (background).
    boxes, box_names
        ``(N, 2 * ndim)`` lower and upper corners in index units (z, y, x), upper exclusive, and their classes.
    layers
        Further maps on the grid, such as the exact fraction of each voxel that a nodule fills; ``"instances"`` numbers
        single objects from 1 in the order of `boxes`.
    """

    case: Case
    label: str
    classes: Labels
    truth: Mapping[str, Any] = field(default_factory=dict)
    mask: NDArray[Any] | None = None
    structures: tuple[str, ...] = ()
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    box_names: tuple[str, ...] = ()
    layers: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """Whose picture is made: case `index` of the kind `name`, the patient, and which of `names` he has."""

    name: str
    index: int
    patient: int
    patient_id: str
    facts: dict[str, Any]
    names: tuple[str, ...]
    kind: int

    @property
    def label(self) -> str:
        """Name of the class."""
        return self.names[self.kind]


def subject(
    seed: int, name: str, index: int, names: tuple[str, ...], *, question: str = "", images_per_patient: int = 1
) -> Subject:
    """The subject of case `index`; `question` keeps the classes of several questions about one kind apart."""
    patient = index // images_per_patient
    kind = balanced_class(seed, f"phantom:{name}{question}", patient, len(names))
    return Subject(name, index, patient, f"P{patient:05d}", person(seed, f"phantom:{name}", patient), names, kind)


def assembled(who: Subject, grid: Grid, pixels: NDArray[Any], meta: Mapping[str, Any], **rest: Any) -> Phantom:
    """The phantom of a subject.

    Parameters
    ----------
    pixels
        ``(C, [Z,] Y, X)`` on `grid`.
    meta
        Of the image, with ``unit`` unless that is plain intensity; age and sex are added.
    rest
        Truth, mask and the other fields of `Phantom`.
    """
    facts = {"age": who.facts["age"], "sex": who.facts["sex"]}
    told = {key: value for key, value in meta.items() if key != "unit"}
    unit = meta.get("unit", Unit.INTENSITY)
    channels = ("red", "green", "blue") if unit is Unit.RED_GREEN_BLUE else ()
    image = Image(grid=grid, pixels=pixels, unit=unit, channels=channels, meta={**told, **facts})
    case = Case(
        f"{who.name}{who.index:05d}", who.patient_id, images={"image": image}, covariates=who.facts, target=who.kind
    )
    return Phantom(case=case, label=who.label, classes=Labels(who.names), **rest)


def balanced_class(seed: int, purpose: str, patient: int, count: int) -> int:
    """The class of a patient: every run of `count` patients holds each class once, in random order."""
    block, place = divmod(patient, count)
    return int(generator(seed, f"{purpose}:class", block).permutation(count)[place])


def person(seed: int, purpose: str, patient: int) -> dict[str, Any]:
    """Age in years, sex and site of a patient."""
    draw = generator(seed, f"{purpose}:person", patient)
    return {
        "age": int(np.clip(draw.normal(58, 16), 18, 95)),
        "sex": "F" if draw.random() < 0.5 else "M",
        "site": ("north", "south", "harbour")[int(draw.integers(3))],
    }


def smooth_noise(draw: np.random.Generator, shape: tuple[int, ...], scale: float | tuple[float, ...]) -> Array:
    """Random field of zero mean and unit deviation whose bumps are about `scale` pixels wide (one, or one per axis).

    Made on a coarse lattice and interpolated, which costs a fraction of filtering at full size.
    """
    # Below one pixel per bump there is nothing to interpolate: that is white noise.
    scales = tuple(max(one, 1.0) for one in (scale if isinstance(scale, tuple) else (scale,) * len(shape)))
    coarse = tuple(max(int(np.ceil(side / one)) + 4, 4) for side, one in zip(shape, scales, strict=True))
    lattice = draw.standard_normal(coarse, dtype=np.float32)
    out: Array = lattice
    for axis, side in enumerate(shape):
        out = _stretch(out, axis, side, scales[axis], float(draw.random()))
    return np.asarray(out - out.mean(), dtype=np.float32) / np.float32(out.std() + 1e-6)


def _stretch(field_: Array, axis: int, side: int, scale: float, shift: float) -> Array:
    """Cubic B-spline evaluation along one axis, as a product with a small matrix."""
    place = np.arange(side) / scale + shift + 1
    base = np.floor(place).astype(int)
    t = (place - base)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    matrix = np.zeros((side, field_.shape[axis]), dtype=np.float32)
    rows = np.arange(side)
    for step in range(4):
        matrix[rows, np.minimum(base - 1 + step, field_.shape[axis] - 1)] += weights[:, step]
    return np.moveaxis(np.tensordot(matrix, field_, axes=(1, axis)), 0, axis).astype(np.float32)


def soft_step(distance: NDArray[Any], width: float) -> Array:
    """0 to 1 as `distance` passes zero, over about `width`: an edge with partial volume."""
    return np.clip(0.5 + distance / np.float32(width), 0, 1).astype(np.float32)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur cut at three deviations."""
    return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)


def paint(image: Array, cover: NDArray[Any], value: NDArray[Any] | float) -> None:
    """Mix `value` into `image` in place, by the part (0 to 1) of each voxel that it covers."""
    image += (cover * (value - image)).astype(np.float32)


def ellipsoid_depth(points: list[Array], centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """About the distance inwards from the surface of an axis-parallel ellipsoid, negative outside.

    `points` are coordinate arrays that broadcast; the distance is exact for spheres and near the axes.
    """
    rho = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(points, centre, radii, strict=True)))
    return np.asarray((1 - rho) * min(radii), dtype=np.float32)


def boxes_of(mask: NDArray[Any], count: int) -> NDArray[np.float64]:
    """Boxes ``(count, 2 * ndim)`` of the values 1 to `count` of an instance map; upper corners exclusive."""
    rows = [
        [*(float(one.start) for one in found), *(float(one.stop) for one in found)]
        for found in ndimage.find_objects(mask, max_label=count)
        if found is not None
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 2 * mask.ndim)
