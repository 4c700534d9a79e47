"""Synthetic chest CT in Hounsfield units, with lung nodules whose volume is known without counting voxels.

Anatomy is defined in patient LPS mm around the middle of the chest and sampled on the grid, whatever its orientation
and spacing. Nodules fill voxels by the exact fraction (supersampled at their border), as a scanner averages them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.core.errors import UsageError
from vesalius.core.geometry import FloatArray, Grid, affine_from_axes
from vesalius.core.image import Unit
from vesalius.core.randomness import generator
from vesalius.phantoms.phantom import (
    Array,
    Phantom,
    assembled,
    blur,
    boxes_of,
    ellipsoid_depth,
    paint,
    smooth_noise,
    soft_step,
    subject,
)
from vesalius.phantoms.shapes import Star, fraction_inside

QUESTIONS = {"nodule": ("no nodule", "nodule"), "margin": ("smooth", "spiculated")}
STRUCTURES = ("background", "soft tissue", "lung", "heart", "bone", "nodule")
ORIENTATIONS = {
    # Rows: direction of growing z, y, x index in LPS.
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "feet first": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}
_LUNG_X, _LUNG_RADII = 72.0, (56.0, 82.0, 150.0)


def make_ct(
    *,
    seed: int,
    index: int,
    question: str = "nodule",
    shape: tuple[int, int, int] = (40, 96, 96),
    spacing_mm: tuple[float, float, float] = (4.0, 3.6, 3.6),
    orientation: str | ArrayLike = "axial",
    tilt_degrees: float = 0.0,
    noise_hu: float = 25.0,
) -> Phantom:
    """One chest CT ``(1, Z, Y, X)``, int16 HU.

    Parameters
    ----------
    question
        ``"nodule"``: are there nodules (one to three) or none. ``"margin"``: the one nodule is smooth or spiculated.
    orientation, tilt_degrees
        One of `ORIENTATIONS`, or ``(3, 3)`` with the unit vectors of the axes z, y, x in LPS as rows; and a rotation of
        the whole grid about the patient's long axis, for oblique grids.
    noise_hu
        Deviation of the quantum noise before the reconstruction filter.

    Returns
    -------
    Phantom
        `truth` has ``nodules``: centre_mm (LPS), radii_mm, radius_mm (of the sphere of equal volume), volume_ml, hu,
        margin. `mask` holds `STRUCTURES`; ``layers["fraction"]`` the part of each voxel that is nodule.

    Raises
    ------
    UsageError
        For an unknown question or orientation, or a field of view in which the nodules find no room.
    """
    if question not in QUESTIONS:
        raise UsageError(f"question {question!r} is unknown; choose one of {', '.join(QUESTIONS)}")
    names = QUESTIONS[question]
    who = subject(seed, "ct", index, names, question=f":{question}")
    draw = generator(seed, "phantom:ct", index)
    grid = centred_grid(shape, spacing_mm, orientation, tilt_degrees)
    hu, mask = _chest(draw, coordinates(grid), float(np.mean(spacing_mm)), shape, spacing_mm)
    stars = _nodules(draw, grid, who.label, question)
    fraction, boxes = _filled(draw, hu, grid, stars)
    mask[fraction >= 0.5] = STRUCTURES.index("nodule")
    noise = blur(draw.standard_normal(shape, dtype=np.float32) * np.float32(noise_hu), 0.5)
    pixels = np.clip(np.rint(hu + noise), -1024, 3071).astype(np.int16)
    truth = {"nodules": [{**star.describe(), "hu": density} for star, density in stars]}
    meta = {"unit": Unit.HU, "modality": "CT", "body_part": "CHEST"}
    return assembled(
        who,
        grid,
        pixels[None],
        meta,
        truth=truth,
        mask=mask,
        structures=STRUCTURES,
        boxes=boxes,
        box_names=("nodule",) * len(boxes),
        layers={"fraction": fraction},
    )


def _filled(
    draw: np.random.Generator, hu: Array, grid: Grid, stars: list[tuple[Star, float]]
) -> tuple[Array, NDArray[np.float64]]:
    """Paint nodules into `hu`; the part of each voxel that is nodule, and boxes ``(N, 6)`` of the voxels they touch."""
    fraction = np.zeros(grid.shape, dtype=np.float32)
    boxes = [np.zeros((0, 6))]
    for star, density in stars:
        own = fraction_inside(grid, star)
        paint(hu, own, density + 15 * smooth_noise(draw, grid.shape, 2.0))
        fraction = np.maximum(fraction, own)
        boxes.append(boxes_of((own > 0).astype(np.uint8), 1))
    return fraction, np.concatenate(boxes)


def centred_grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    orientation: str | ArrayLike = "axial",
    tilt_degrees: float = 0.0,
) -> Grid:
    """A grid whose middle lies at LPS (0, 0, 0).

    Raises
    ------
    UsageError
        For an unknown orientation, or a shape or spacing that is no volume's.
    """
    if isinstance(orientation, str) and orientation not in ORIENTATIONS:
        raise UsageError(
            f"orientation {orientation!r} is unknown; choose one of {', '.join(ORIENTATIONS)}, or give unit vectors"
        )
    if len(shape) != 3 or len(spacing_mm) != 3 or min(shape) < 4 or min(spacing_mm) <= 0:
        raise UsageError(f"a volume needs three sides of at least 4 and three spacings, got {shape} and {spacing_mm}")
    axes = np.array(ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation, dtype=np.float64)
    if axes.shape != (3, 3) or not np.allclose(axes @ axes.T, np.eye(3), atol=1e-6):
        raise UsageError(f"an orientation is three unit vectors at right angles (rows z, y, x), got {axes.tolist()}")
    turn = np.deg2rad(tilt_degrees)
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    axes = axes @ about_z.T
    middle = (np.array(shape) - 1) / 2 * np.array(spacing_mm)
    return Grid(shape, affine=affine_from_axes(-(middle @ axes), axes, spacing_mm))


def coordinates(grid: Grid) -> list[Array]:
    """LPS x, y and z in mm of every voxel, each ``grid.shape``."""
    affine: FloatArray = np.asarray(grid.affine)
    index = np.ogrid[tuple(slice(side) for side in grid.shape)]
    return [
        np.asarray(sum(affine[row, axis] * index[axis] for axis in range(3)) + affine[row, 3], dtype=np.float32)
        for row in range(3)
    ]


def _chest(
    draw: np.random.Generator, points: list[Array], edge: float, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[Array, NDArray[np.uint8]]:
    """HU and label map of a chest without nodules."""
    x, y, z = points
    wide, deep = float(draw.normal(165, 8)), float(draw.normal(115, 6))
    fat = float(np.clip(draw.normal(16, 6), 6, 35))
    rho = np.sqrt((x / wide) ** 2 + (y / deep) ** 2)
    hu = np.full(shape, -1000, dtype=np.float32)
    mask = np.zeros(shape, dtype=np.uint8)
    body = soft_step((1 - rho) * deep, edge)
    paint(hu, body, -100.0 + 12 * smooth_noise(draw, shape, 4))
    muscle = soft_step((1 - rho) * deep - fat, edge)
    paint(hu, muscle, 45.0 + 10 * smooth_noise(draw, shape, 3))
    mask[body >= 0.5] = 1
    lungs = np.zeros(shape, dtype=np.float32)
    floor = float(draw.normal(-75, 8))
    for sign in (-1, 1):
        depth = ellipsoid_depth(points, (sign * _LUNG_X, -2, -20), _LUNG_RADII)
        dome = z - floor + 0.004 * (x - sign * _LUNG_X) ** 2
        lungs = np.maximum(lungs, soft_step(np.minimum(depth, dome), edge))
    paint(hu, lungs, -860.0 + 25 * smooth_noise(draw, shape, 3) + 0.35 * (y + 40))
    _paint_vessels(draw, hu, lungs, points, spacing)
    heart = soft_step(ellipsoid_depth(points, (22, -28, -45), (52, 48, 58)), edge)
    paint(hu, heart, 48.0)
    for centre, radius, value in (((24, 45), 12.5, 60.0), ((2, -18), 15.0, 55.0), ((-2, 12), 8.5, -980.0)):
        tube = soft_step(radius - np.hypot(x - centre[0], y - centre[1]), edge)
        upper = soft_step(z - 5, 10) if radius != 12.5 else np.float32(1)
        paint(hu, tube * upper, value)
    bone = _bone(draw, points, rho, deep=deep, fat=fat, edge=edge)
    paint(hu, bone, 320.0 + 90 * smooth_noise(draw, shape, 2))
    for number, cover in ((2, lungs * (1 - heart)), (3, heart), (4, bone)):
        mask[cover >= 0.5] = number
    return hu, mask


def _bone(draw: np.random.Generator, points: list[Array], rho: Array, *, deep: float, fat: float, edge: float) -> Array:
    """Cover of vertebrae, sternum and ribs."""
    x, y, z = points
    vertebra = np.minimum(17 - np.hypot(x, (y - 66) * 1.15), 11 - np.abs((z + 300) % 26 - 13))
    process = np.minimum(5 - np.abs(x), 14 - np.abs(y - 92))
    sternum = np.minimum(14 - np.abs(x), 5 - np.abs(y + deep - fat - 10))
    # Ribs sink from the spine forwards, one every 27 mm.
    phase = (z - 0.35 * y + 300 + float(draw.uniform(0, 27))) % 27 - 13.5
    rib = np.minimum(5.5 - np.abs((1 - rho) * deep - fat - 8), 5.0 - np.abs(phase))
    rib = np.where(np.abs(x) > 30, rib, -10)
    depth = np.maximum(np.maximum(vertebra, process), np.maximum(sternum, rib))
    return soft_step(depth, edge)


def _paint_vessels(
    draw: np.random.Generator, hu: Array, lungs: Array, points: list[Array], spacing: tuple[float, ...]
) -> None:
    """Lung vessels: curves where two smooth random fields cross zero together, thicker near the hila."""
    x, y, z = points
    reach = np.sqrt((np.abs(x) - 35) ** 2 + (y / 1.2) ** 2 + (z / 1.6) ** 2)
    for size_mm, width in ((30.0, 0.22), (18.0, 0.17)):
        scale = tuple(size_mm / step for step in spacing)
        field = np.hypot(smooth_noise(draw, hu.shape, scale), smooth_noise(draw, hu.shape, scale))
        cover = soft_step(width * np.exp(-reach / 90) * 1.4 - field, 0.25)
        paint(hu, 0.9 * cover * lungs, 30.0)


def _nodules(draw: np.random.Generator, grid: Grid, label: str, question: str) -> list[tuple[Star, float]]:
    """Stars inside the lungs that do not touch each other, with their density in HU."""
    count = 1 if question == "margin" else (0 if label == "no nodule" else 1 + int(draw.random() < 0.4))
    smallest = max(grid.spacing_mm or (1.0,))
    found: list[tuple[Star, float]] = []
    for _ in range(400):
        if len(found) == count:
            break
        radius = float(np.clip(np.exp(draw.normal(np.log(9.0), 0.30)), 1.4 * smallest, 18))
        stretch = np.exp(draw.normal(0, 0.10, 3)) if question == "nodule" else np.ones(3)
        star = Star.random(draw, radius * stretch / np.prod(stretch) ** (1 / 3), spiculated=label == "spiculated")
        margin = star.reach_mm + 4
        side = 1 if draw.random() < 0.5 else -1
        offset = draw.uniform(-1, 1, 3) * (np.array(_LUNG_RADII) * (0.9, 0.9, 0.45) - margin)
        centre = np.array([side * _LUNG_X, -2, 0]) + offset
        inside = np.linalg.norm(offset / np.array(_LUNG_RADII)) < 1 - margin / min(_LUNG_RADII) * 0.8
        clear = all(np.linalg.norm(centre - one.centre_mm) > one.reach_mm + margin for one, _ in found)
        heart = np.linalg.norm((centre - (22, -28, -45)) / (52 + margin, 48 + margin, 58 + margin)) > 1
        if inside and clear and heart and _in_view(grid, centre, star.reach_mm) and centre[2] > -45 + margin:
            found.append((star.at(centre), float(draw.normal(20, 25))))
    if len(found) < count:
        raise UsageError(
            f"a volume of {grid.shape} voxels of {grid.spacing_mm} mm has no room for {count} nodules; "
            "choose one that shows more of the chest"
        )
    return found


def _in_view(grid: Grid, centre: FloatArray, reach_mm: float) -> bool:
    """Whether a ball lies in the voxels of `grid`, whose axes stand at right angles."""
    away = np.abs(grid.to_index(centre) - (np.array(grid.shape) - 1) / 2) + reach_mm / np.array(grid.spacing_mm)
    return bool((away < np.array(grid.shape) / 2).all())
