"""Synthetic chest radiographs: attenuation along the beam is added up, then exposed and windowed.

Patients keep their anatomy over several pictures; pose, exposure and noise change. An opacity is a soft, lobulated
patch inside a lung, a nodule a round one. Exposure is set on the whole picture as the machine does, so that mean
brightness says nothing about the class, and healthy lungs vary in vessels, breast shadows and inspiration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.errors import UsageError
from vesalius.core.geometry import Grid
from vesalius.core.randomness import generator
from vesalius.phantoms.phantom import Array, Phantom, assembled, blur, smooth_noise, soft_step, subject

CLASSES = {2: ("normal", "opacity"), 3: ("normal", "opacity", "nodule")}
STRUCTURES = ("background", "right lung", "left lung", "heart")
# Width of the field of view of a chest film.
_FIELD_MM = 400.0
# Gamma and offset of the display curve, per site: contrast differs, as between machines.
_SITE_CURVE = {"north": (1.0, 0.0), "south": (0.8, 0.03), "harbour": (1.25, -0.02)}


def make_chest(
    *,
    seed: int,
    index: int,
    size: int = 128,
    classes: int = 2,
    bits: int = 8,
    images_per_patient: int = 1,
    severity: float = 1.0,
) -> Phantom:
    """One radiograph ``(1, size, size)``.

    Parameters
    ----------
    index
        Number of the picture; picture k belongs to patient ``k // images_per_patient``, who has one class.
    classes
        2 (normal, opacity) or 3 (and nodule).
    bits
        8 (uint8) or 12 (uint16, up to 4095).
    severity
        Factor on the contrast of findings. Measured at 1: a ResNet of width 32 that sees 800 films of 96 x 96 (two per
        patient) for 24 epochs reaches AUROCs of 0.92, 0.97 and 0.95 in three cohorts, on 400 films of other patients
        each; a logistic regression on mean, deviation and histogram 0.50 to 0.54.

    Raises
    ------
    UsageError
        For another number of classes.

    Returns
    -------
    Phantom
        `mask` holds `STRUCTURES`, ``layers["finding"]`` the visible part of findings (bool), `boxes` their extents;
        `truth` has ``findings`` (centre and radii in pixels, contrast) and ``lung_area_px``.
    """
    who = subject(seed, "chest", index, _class_names(classes), images_per_patient=images_per_patient)
    body = _anatomy(seed, who.patient, who.facts)
    draw = generator(seed, "phantom:chest:image", index)
    u, v = _frame(draw, size, body)
    film, lungs, heart = _attenuation(draw, u, v, body)
    finding, findings = _findings(draw, u, v, lungs, label=who.label, severity=severity)
    pixels = _exposed(draw, film + finding, who.facts["site"], size, bits)
    mask = np.where(lungs[0] > 0.5, 1, np.where(lungs[1] > 0.5, 2, np.where(heart > 0.5, 3, 0))).astype(np.uint8)
    seen = finding > 0.5 * finding.max() if findings else np.zeros((size, size), dtype=bool)
    boxes = _boxes(findings, size)
    truth = {"findings": findings, "lung_area_px": int((mask == 1).sum() + (mask == 2).sum())}
    meta = {"modality": "DX", "bits_stored": bits, "body_part": "CHEST"}
    return assembled(
        who,
        Grid((size, size), spacing=(_FIELD_MM / size,) * 2),
        pixels[None],
        meta,
        truth=truth,
        mask=mask,
        structures=STRUCTURES,
        boxes=boxes,
        box_names=(who.label,) * len(boxes),
        layers={"finding": seen},
    )


def _class_names(classes: int) -> tuple[str, ...]:
    if classes not in CLASSES:
        raise UsageError(f"chest films have {' or '.join(map(str, CLASSES))} classes, got {classes}; choose one")
    return CLASSES[classes]


def _anatomy(seed: int, patient: int, facts: dict[str, Any]) -> dict[str, float]:
    """What stays the same in all pictures of a patient; lengths in half widths of the field."""
    draw = generator(seed, "phantom:chest:anatomy", patient)
    female = facts["sex"] == "F"
    return {
        "width": float(draw.normal(0.80 if female else 0.86, 0.03)),
        "lung_x": float(draw.normal(0.39, 0.015)),
        "lung_w": float(draw.normal(0.29, 0.015)),
        "top": float(draw.normal(-0.72, 0.03)),
        "heart_w": float(draw.normal(0.31 + 0.0012 * (facts["age"] - 50), 0.03)),
        "heart_x": float(draw.normal(0.12, 0.025)),
        "rib_gap": float(draw.normal(0.165, 0.008)),
        "rib_phase": float(draw.random()),
        "rib_slope": float(draw.normal(0.42, 0.05)),
        "breast": float(abs(draw.normal(0.16, 0.07))) if female else float(abs(draw.normal(0, 0.03))),
        "fat": float(draw.normal(0.0, 0.08)),
        "vessels": float(draw.uniform(0.06, 0.13)),
    }


def _frame(draw: np.random.Generator, size: int, body: dict[str, float]) -> tuple[Array, Array]:
    """Coordinates ``(size, size)`` of the film, -1 to 1 right and down, in the patient's own frame."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    turn, zoom = draw.normal(0, 0.03), draw.normal(1.0, 0.04)
    x = (line[None, :] - draw.normal(0, 0.04)) / zoom
    y = (line[:, None] - draw.normal(0, 0.04)) / zoom
    u = (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)
    v = (y * np.cos(turn) - x * np.sin(turn)).astype(np.float32)
    return u, v


def _attenuation(
    draw: np.random.Generator, u: Array, v: Array, body: dict[str, float]
) -> tuple[Array, NDArray[np.float32], Array]:
    """Attenuation ``(Y, X)`` of a healthy chest, coverage of the two lungs ``(2, Y, X)`` and of the heart."""
    edge = 4.0 / u.shape[0]
    side = np.abs(u)
    # Shoulders: the body narrows to the neck above the clavicles.
    slope = np.clip((v + 1.02) / 0.34, 0, 1)
    half = body["width"] * (0.30 + 0.76 * slope * slope * (3 - 2 * slope)) + 0.10 * np.clip(-0.3 - v, 0, 0.4)
    inside = soft_step(half - side, 2 * edge)
    film = inside * (0.62 + body["fat"] + 0.5 * np.sqrt(np.clip(1 - (side / half) ** 2, 0, 1)))
    dome = float(draw.normal(0.52, 0.05))
    lungs = np.stack([_lung(u, v, body, dome=dome, edge=edge, sign=sign) for sign in (-1, 1)])
    heart_x, heart_y = body["heart_x"], dome - 0.20
    tilt = 0.30 * (v - heart_y)
    radius = ((u - heart_x - tilt) / body["heart_w"]) ** 2 + ((v - heart_y) / 0.30) ** 2
    heart = soft_step(1 - np.sqrt(radius), 0.12) * soft_step(dome + 0.10 - v, 0.08)
    both = lungs.sum(axis=0) * (1 - 0.85 * heart)
    lungs = (lungs * (1 - heart)).astype(np.float32)
    # Depth of air grows from the edge of a lung inwards.
    film -= both * (0.62 + 0.08 * np.clip(-v, -1, 1))
    film += 0.22 * heart * np.sqrt(np.clip(1.1 - radius, 0, 1.1)) + _middle(draw, u, v)
    film += 0.28 * inside * soft_step(v - dome - 0.02 + 0.1 * side, 0.12)
    film += inside * _bones(u, v, body, lungs.sum(axis=0), edge)
    film += _vessels(draw, u, v, lungs, body["vessels"])
    film += inside * _overlays(draw, u, v, body)
    return film.astype(np.float32), lungs, heart


def _lung(u: Array, v: Array, body: dict[str, float], *, dome: float, edge: float, sign: int) -> Array:
    """Coverage of one lung; `sign` -1 is the patient's right, on the left of the film."""
    x = u * sign - body["lung_x"]
    height = (v - 0.05) / (body["top"] - 0.05)
    # Narrow apex, broad base, straight towards the middle.
    half = body["lung_w"] * (0.55 + 0.5 * np.sqrt(np.clip(1 - np.clip(height, 0, 1) ** 2.2, 0, 1)))
    half = half * (1 + 0.10 * np.clip(-height, 0, 1))
    wall = soft_step(half - np.abs(x + 0.05 * np.clip(height, 0, 1) - 0.02), 2 * edge)
    # The dome of the diaphragm falls off to the costophrenic angle.
    floor = dome + 0.015 * sign + 0.8 * (x + 0.05) ** 2 + 0.45 * np.clip(x - 0.05, 0, 1)
    return wall * soft_step(floor - v, 2 * edge) * soft_step(v - body["top"] - 1.2 * x**2, 3 * edge)


def _middle(draw: np.random.Generator, u: Array, v: Array) -> Array:
    """Mediastinum, spine, aortic knob and the air of the trachea."""
    spine = np.exp(-((u / 0.075) ** 4)) * (0.14 + 0.035 * np.cos(v * 2 * np.pi / 0.14 + draw.uniform(0, 6)))
    mediastinum = (
        0.30 * np.exp(-(((u - 0.015) / (0.16 + 0.04 * np.clip(v + 0.2, -1, 1))) ** 4)) * soft_step(0.7 - v, 0.5)
    )
    knob = 0.14 * np.exp(-(((u - 0.16) / 0.08) ** 2) - ((v + 0.27) / 0.09) ** 2)
    trachea = 0.16 * np.exp(-(((u + 0.01) / 0.045) ** 4)) * soft_step(-0.22 - v, 0.1)
    return (spine + mediastinum + knob - trachea).astype(np.float32)


def _bones(u: Array, v: Array, body: dict[str, float], lung: Array, edge: float) -> Array:
    """Ribs as a periodic pattern bent over the thorax, clavicles, and the shade of the scapulae."""
    side = np.abs(u)
    cage = soft_step(body["width"] * 0.93 - side, 0.06) * soft_step(v + 0.85, 0.1) * soft_step(0.75 - v, 0.3)
    arch = v - body["rib_slope"] * (side - 0.1) + 1.05 * np.clip(side - 0.38, 0, 1) ** 2 * 1.4
    posterior = _rib(arch / body["rib_gap"] + body["rib_phase"], 0.26)
    front = v + 0.55 * (side - 0.35) - 1.1 * np.clip(side - 0.55, 0, 1) ** 2
    anterior = _rib(front / (1.15 * body["rib_gap"]) + 1.7 * body["rib_phase"], 0.22)
    anterior = anterior * soft_step(side - 0.22, 0.15)
    ribs = cage * (0.13 * posterior * soft_step(side - 0.07, 0.06) + 0.07 * anterior * soft_step(v + 0.5, 0.2))
    bow = v - (-0.66 - 0.13 * (side - 0.3) + 0.06 * np.sin(side * 7))
    clavicle = np.exp(-((bow / 0.035) ** 4)) * soft_step(side - 0.07, 2 * edge) * soft_step(0.74 - side, 0.05)
    scapula = 0.06 * np.exp(-(((side - 0.72) / 0.09) ** 2) - ((v + 0.35) / 0.28) ** 2)
    return (ribs * (0.55 + 0.45 * lung) + 0.16 * clavicle + scapula).astype(np.float32)


def _rib(phase: NDArray[np.floating], width: float) -> Array:
    """1 on a rib, with the brighter cortex along its borders; one rib per unit of `phase`."""
    distance = np.abs(phase - np.rint(phase)) / width
    plate = np.clip(1.25 - distance, 0, 0.25) * 4
    return (plate * (0.65 + 0.5 * np.clip(distance, 0, 1) ** 4)).astype(np.float32)


def _vessels(draw: np.random.Generator, u: Array, v: Array, lungs: NDArray[np.float32], strength: float) -> Array:
    """Branching shadows that run outwards from each hilum and thin out, and the hila themselves."""
    out = np.zeros_like(u)
    for number, sign in enumerate((-1, 1)):
        x, y = u * sign - 0.17, v + 0.05 - 0.03 * sign
        reach = np.sqrt(x * x + y * y) + 1e-3
        angle = np.arctan2(y, x)
        pattern = np.zeros_like(u)
        for order in range(4):
            # Wavy spokes: more of them, and finer, further out.
            spokes = (4 + 3 * order) * angle + draw.uniform(0, 6.28) + draw.normal(0, 2.5) * reach
            spokes = spokes + draw.uniform(1, 2.5) * np.sin(draw.uniform(5, 11) * reach + draw.uniform(0, 6.28))
            band = np.exp(-(((reach - 0.10 - 0.12 * order) / 0.13) ** 2))
            pattern += band * np.clip(np.cos(spokes) - 0.35, 0, 1) ** 2 * (1.5 - 0.25 * order)
        out += lungs[number] * (strength * pattern + 0.12 * np.exp(-((reach / 0.09) ** 2)))
    return out.astype(np.float32)


def _overlays(draw: np.random.Generator, u: Array, v: Array, body: dict[str, float]) -> Array:
    """Soft tissue that lies over both lungs of healthy people too: breasts, skin folds, uneven exposure."""
    side = np.abs(u)
    distance = np.sqrt(((side - 0.43) / 0.30) ** 2 + ((v - 0.30) / 0.26) ** 2)
    breast = body["breast"] * soft_step(1 - distance, 0.5)
    uneven = 0.05 * smooth_noise(draw, u.shape, u.shape[0] / 2.5) + draw.normal(0, 0.05) * u
    fold = draw.uniform(0, 0.05) * soft_step(u * np.cos(1.2) + v * 0.4 - draw.uniform(-0.6, 0.6), 0.05)
    return (breast + uneven + fold).astype(np.float32)


def _findings(
    draw: np.random.Generator, u: Array, v: Array, lungs: NDArray[np.float32], *, label: str, severity: float
) -> tuple[Array, list[dict[str, Any]]]:
    """Added attenuation ``(Y, X)`` of what is wrong, and where it is."""
    added = np.zeros_like(u)
    found: list[dict[str, Any]] = []
    if label == "normal":
        return added, found
    size = u.shape[0]
    count = 1 if label == "nodule" else 1 + int(draw.random() < 0.45) + int(draw.random() < 0.2)
    texture = smooth_noise(draw, u.shape, size / 14) + 0.6 * smooth_noise(draw, u.shape, size / 28)
    for _ in range(count):
        lung = lungs[int(draw.integers(2))]
        rows, columns = np.nonzero(lung > 0.85)
        pick = int(draw.integers(len(rows)))
        row, column = int(rows[pick]), int(columns[pick])
        x, y = u - u[row, column], v - v[row, column]
        # Contrast over a wide range: faint findings keep the task from being solved perfectly.
        contrast = float(severity * np.exp(draw.normal(-0.9 if label == "opacity" else -0.7, 0.3)))
        radius = float(draw.uniform(0.065, 0.10)) if label == "nodule" else float(draw.uniform(0.15, 0.28))
        stretch = 1.0 if label == "nodule" else float(np.exp(draw.normal(0, 0.25)))
        reach = np.sqrt((x * stretch) ** 2 + (y / stretch) ** 2) / radius
        if label == "nodule":
            patch = np.sqrt(np.clip(1 - reach**2, 0, 1))
        else:
            patch = np.exp(-(reach**2)) * np.clip(0.9 + 0.35 * texture, 0, 2)
        added += contrast * patch * lung
        # Pixels per unit of the patient's frame, which pose has zoomed.
        scale = float(1 / np.hypot(u[0, 1] - u[0, 0], v[0, 1] - v[0, 0]))
        found.append(
            {
                "kind": label,
                "centre_px": (float(row), float(column)),
                "radii_px": (radius * stretch * scale, radius / stretch * scale),
                "contrast": contrast,
            }
        )
    return added.astype(np.float32), found


def _exposed(draw: np.random.Generator, film: Array, site: str, size: int, bits: int) -> NDArray[Any]:
    """Blur, quantum noise, automatic exposure and the display curve of the site; uint8 or 12 bit in uint16."""
    film = blur(film, 0.004 * size + 0.1)
    photons = np.exp(-1.6 * film)
    noise = draw.standard_normal(film.shape, dtype=np.float32)
    film = film + np.float32(draw.uniform(0.008, 0.02)) * noise / np.sqrt(photons + 0.05)
    low, high = np.partition(film[::4, ::4].ravel(), (size * size // 16 // 20, size * size // 16 * 49 // 50))[
        [size * size // 16 // 20, size * size // 16 * 49 // 50]
    ]
    gamma, offset = _SITE_CURVE[site]
    level = (film - low) / (high - low) * draw.normal(0.84, 0.05) + 0.08 + offset + draw.normal(0, 0.05)
    level = np.clip(level, 0, 1) ** (gamma * np.exp(draw.normal(0, 0.12)))
    top = (1 << bits) - 1
    return np.rint(level * top).astype(np.uint8 if bits <= 8 else np.uint16)


def _boxes(findings: list[dict[str, Any]], size: int) -> NDArray[np.float64]:
    """Boxes ``(N, 4)`` (y, x, y, x) around the ellipses of the findings, clipped to the film."""
    rows = []
    for one in findings:
        (y, x), (across_y, across_x) = one["centre_px"], one["radii_px"]
        rows.append([y + 0.5 - across_y, x + 0.5 - across_x, y + 0.5 + across_y, x + 0.5 + across_x])
    return np.clip(np.array(rows, dtype=np.float64).reshape(-1, 4), 0, size)
