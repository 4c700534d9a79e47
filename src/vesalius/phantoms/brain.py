"""Synthetic T1-like MR volumes of a head whose tissue volumes are known by formula.

Scalp, skull, fluid, folded grey and white matter and the ventricles are nested bodies; a bias field brightens one side
and magnitude reconstruction makes the noise Rician (Gudbjartsson and Patz, MRM 34:910, 1995). The question is whether
the ventricles are enlarged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.core.geometry import FloatArray, Grid
from vesalius.core.randomness import generator
from vesalius.phantoms.ct import centred_grid
from vesalius.phantoms.phantom import Array, Phantom, assembled, paint, smooth_noise, subject
from vesalius.phantoms.solids import Ellipsoid, coverage, points_of

CLASSES = ("normal", "enlarged ventricles")
STRUCTURES = ("background", "scalp", "skull", "fluid", "grey matter", "white matter", "ventricles")
# Signal of a T1-weighted picture at 1.5 T, as parts of that of fat.
_SIGNAL = {
    "background": 0.0,
    "scalp": 1.0,
    "skull": 0.07,
    "fluid": 0.19,
    "grey matter": 0.52,
    "white matter": 0.74,
    "ventricles": 0.17,
}
_FAT_VALUE = 1000.0
# Median volume of all ventricles in ml and the deviation of its logarithm: the two overlap a little, as in life.
_VENTRICLES_ML = {"normal": (19.0, 0.20), "enlarged ventricles": (44.0, 0.22)}


def make_brain(
    *,
    seed: int,
    index: int,
    shape: tuple[int, int, int] = (52, 64, 52),
    spacing_mm: tuple[float, float, float] = (3.4, 3.4, 3.4),
    orientation: str | ArrayLike = "axial",
    tilt_degrees: float = 0.0,
    images_per_patient: int = 1,
    noise: float = 0.025,
    bias: float = 0.25,
) -> Phantom:
    """One head ``(1, Z, Y, X)``, uint16.

    Parameters
    ----------
    images_per_patient
        Picture k belongs to patient ``k // images_per_patient``, whose head and ventricles stay; pose and noise change.
    orientation, tilt_degrees
        As for `make_ct`.
    noise
        Deviation of each of the two channels of the receiver, as a part of the signal of fat.
    bias
        Deviation of the logarithm of the receiver's sensitivity.

    Returns
    -------
    Phantom
        ``truth["volumes_ml"]`` has the exact volume of head, skull (with all inside), intracranial, brain (grey, white
        and ventricles), white (with ventricles) and ventricles; ``truth["ventricles"]`` their ellipsoids (centre_mm in
        LPS, radii_mm, axes as rows). `mask` holds `STRUCTURES`, ``layers["ventricles"]`` the exact parts of voxels.

    Raises
    ------
    UsageError
        For an unknown orientation.
    """
    who = subject(seed, "brain", index, CLASSES, images_per_patient=images_per_patient)
    grid = centred_grid(shape, spacing_mm, orientation, tilt_degrees)
    draw = generator(seed, "phantom:brain:image", index)
    bodies, holes = _head(generator(seed, "phantom:brain:anatomy", who.patient), draw, who.label)
    parts = _parts(grid, bodies, holes)
    pixels = _received(draw, _painted(draw, parts, shape), grid, noise, bias)
    mask = np.zeros(shape, dtype=np.uint8)
    for name, part in parts.items():
        mask[part >= 0.5] = STRUCTURES.index(name)
    meta = {"modality": "MR", "body_part": "HEAD"}
    return assembled(
        who,
        grid,
        pixels[None],
        meta,
        truth=_truth(bodies, holes),
        mask=mask,
        structures=STRUCTURES,
        boxes=np.zeros((0, 6)),
        layers={"ventricles": parts["ventricles"]},
    )


def _head(
    body: np.random.Generator, pose: np.random.Generator, label: str
) -> tuple[dict[str, Ellipsoid], list[Ellipsoid]]:
    """Nested bodies from the scalp to the white matter, and the ventricles, which do not meet each other."""
    median, spread = _VENTRICLES_ML[label]
    volume = float(median * np.exp(body.normal(0, spread)))
    size = np.array((68.0, 86.0, 74.0)) * body.normal(1.0, 0.025, 3)
    scalp, bone, fluid = body.uniform(4.0, 6.5), body.uniform(5.5, 8.0), body.uniform(3.0, 5.0)
    rind = body.uniform(8.0, 10.5)
    folds = body.standard_normal((6, 3))
    folds *= (body.uniform(16, 24, 6) / np.linalg.norm(folds, axis=1))[:, None]
    turn, middle = _turn(pose), pose.normal(0, 2.5, 3)
    bodies = {}
    for name, thickness in (("scalp", 0.0), ("skull", scalp), ("fluid", bone), ("grey matter", fluid)):
        size = size - thickness
        bodies[name] = Ellipsoid(middle, size, turn)
    bodies["grey matter"] = Ellipsoid(middle, size, turn, folds, 0.020)
    bodies["white matter"] = Ellipsoid(middle, size - rind, turn, folds, 0.085)
    holes = _ventricles(body, volume, middle, turn)
    return bodies, holes


def _ventricles(draw: np.random.Generator, volume_ml: float, middle: FloatArray, turn: FloatArray) -> list[Ellipsoid]:
    """Two lateral ventricles beside the middle plane and the third below and between them.

    The middle plane keeps them apart: the third ends at a distance from it at which the lateral ones begin.
    """
    share = draw.uniform(0.45, 0.55) * 0.96
    third = np.array((1.0, 5.5, 4.2)) * (0.04 * volume_ml * 1000 * 3 / (4 * np.pi * 1.0 * 5.5 * 4.2)) ** (1 / 3)
    out = [Ellipsoid(middle + np.array((0.0, 6.0, -12.0)) @ turn, third, turn)]
    for sign, part in ((-1, share), (1, 0.96 - share)):
        form = np.array((1.0, draw.uniform(3.6, 4.2), draw.uniform(1.25, 1.5)))
        radii = form * (part * volume_ml * 1000 * 3 / (4 * np.pi * np.prod(form))) ** (1 / 3)
        # Tilted within the plane of y and z only, so that the half axis across the head stays one.
        tilt = draw.normal(0.25, 0.06)
        axes = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]]) @ turn
        beside = third[0] + 0.6 + radii[0]
        out.append(Ellipsoid(middle + np.array((sign * beside, 3.0, 7.0)) @ turn, radii, axes))
    return out


def _turn(draw: np.random.Generator) -> FloatArray:
    """Head pose ``(3, 3)``: small turns about the three axes."""
    out = np.eye(3)
    for axis in range(3):
        angle = draw.normal(0, 0.06)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[first, second], [first, second]] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        out = out @ step
    return out


def _parts(grid: Grid, bodies: dict[str, Ellipsoid], holes: list[Ellipsoid]) -> dict[str, Array]:
    """Part of each voxel within each body, outermost first; the ventricles together."""
    points = points_of(grid)
    parts = {name: coverage(grid, body.inward, points, fine=3) for name, body in bodies.items()}
    together = [coverage(grid, hole.inward, points, fine=6) for hole in holes]
    parts["ventricles"] = np.minimum(np.sum(together, axis=0), 1).astype(np.float32)
    return parts


def _painted(draw: np.random.Generator, parts: dict[str, Array], shape: tuple[int, ...]) -> Array:
    """Signal of the tissues with a little texture, mixed by the parts of each voxel."""
    signal = np.zeros(shape, dtype=np.float32)
    for name, part in parts.items():
        paint(signal, part, _SIGNAL[name] * (1 + 0.03 * smooth_noise(draw, shape, 2.5)))
    return signal


def _received(draw: np.random.Generator, signal: Array, grid: Grid, noise: float, bias: float) -> NDArray[np.uint16]:
    """Magnitude of the signal under an uneven coil, with noise in both channels; uint16."""
    steps = grid.spacing_mm or (1.0, 1.0, 1.0)
    coil = np.exp(bias * smooth_noise(draw, signal.shape, tuple(110.0 / step for step in steps)))
    real = signal * coil / coil[signal > 0].mean() + noise * draw.standard_normal(signal.shape, dtype=np.float32)
    imaginary = noise * draw.standard_normal(signal.shape, dtype=np.float32)
    gain = _FAT_VALUE * draw.uniform(0.7, 1.4)
    return np.rint(np.minimum(gain * np.hypot(real, imaginary), 65535)).astype(np.uint16)


def _truth(bodies: dict[str, Ellipsoid], holes: list[Ellipsoid]) -> dict[str, Any]:
    names = {
        "head": "scalp",
        "skull": "skull",
        "intracranial": "fluid",
        "brain": "grey matter",
        "white": "white matter",
    }
    volumes = {name: bodies[body].volume_ml for name, body in names.items()}
    volumes["ventricles"] = sum(hole.volume_ml for hole in holes)
    shapes = [
        {"centre_mm": hole.centre_mm.tolist(), "radii_mm": hole.radii_mm.tolist(), "axes": hole.axes.tolist()}
        for hole in holes
    ]
    return {"volumes_ml": volumes, "ventricles": shapes}
