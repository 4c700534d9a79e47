"""Diameters against brute force and closed formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from skimage import measure

from vesalius.measure import diameters


def turned(angle: float, size: int = 45) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a direction, off the centres of the pixels."""
    y, x = np.mgrid[-size : size + 1, -size : size + 1] + np.array([0.31, -0.17])[:, None, None]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def only(table: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: column[0] for name, column in table.items()}


@pytest.mark.parametrize("angle", [0, 0.3, 0.8, 1.5, 2.4])
@pytest.mark.parametrize(("long", "short"), [(80, 40), (40, 25), (30, 8)])
def test_ellipses_within_one_voxel(angle, long, short):
    u, v = turned(angle)
    found = only(diameters.lesion_diameters((2 * u / long) ** 2 + (2 * v / short) ** 2 <= 1))
    assert found["longest_diameter"] == pytest.approx(long, abs=1)
    assert found["short_axis"] == pytest.approx(short, abs=1)
    assert found["slice_feret_min"] == pytest.approx(short, abs=1)
    assert found["who_product"] == found["longest_diameter"] * found["short_axis"]


@pytest.mark.parametrize("angle", [0, 0.5, 1.2])
def test_rectangles_within_one_voxel(angle):
    u, v = turned(angle)
    found = only(diameters.lesion_diameters((np.abs(u) <= 25) & (np.abs(v) <= 8)))
    assert found["longest_diameter"] == pytest.approx(np.hypot(50, 16), abs=1)
    assert found["slice_feret_min"] == pytest.approx(16, abs=1)
    # The perpendicular to the diagonal leaves through the long sides.
    assert found["short_axis"] == pytest.approx(16 / np.cos(np.arctan2(16, 50)), abs=1)


def chord_by_steps(mask: np.ndarray, along: np.ndarray, spacing: np.ndarray) -> float:
    """Longest chord perpendicular to `along` from many lines cut with the outline of scikit-image."""
    lines = [line * spacing for line in measure.find_contours(mask.astype(float), 0.5, fully_connected="low")]
    across = np.array([-along[1], along[0]])
    points = np.concatenate(lines)
    best = 0.0
    levels = np.unique(np.round(points @ along, 9))
    for level in np.concatenate([levels - 1e-6, levels + 1e-6, np.linspace(levels[0], levels[-1], 99)]):
        hits = []
        for line in lines:
            height = line @ along - level
            k = np.flatnonzero((height[:-1] < 0) != (height[1:] < 0))
            share = height[k] / (height[k] - height[k + 1])
            hits.append((line[k] + share[:, None] * (line[k + 1] - line[k])) @ across)
        hits = np.sort(np.concatenate(hits))
        best = max(best, *(hits[1::2] - hits[::2]), 0.0) if len(hits) else best
    return best


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.4, 2.5))
def test_any_part_against_brute_force(seed, step):
    random = np.random.default_rng(seed)
    mask = np.zeros((14, 16), np.uint8)
    mask[1:-1, 1:-1] = random.random((12, 14)) < random.uniform(0.3, 0.9)
    parts = measure.label(mask, connectivity=2)
    if not parts.max():
        return
    spacing = np.array([1.0, step])
    found = only(diameters.lesion_diameters(mask, spacing))
    best = 0.0
    for part in range(1, parts.max() + 1):
        points = np.concatenate(measure.find_contours((parts == part).astype(float), 0.5)) * spacing
        best = max(best, pdist(points).max())
    assert found["longest_diameter"] == pytest.approx(best)
    ends = np.array(
        [[found[f"{line}_{end}_{a}"] for a in "yx"] for line in ("longest", "short") for end in ("start", "stop")]
    )
    long, short = (ends[1] - ends[0]) * spacing, (ends[3] - ends[2]) * spacing
    assert np.linalg.norm(long) == pytest.approx(found["longest_diameter"])
    assert np.linalg.norm(short) == pytest.approx(found["short_axis"], abs=1e-5)
    assert abs(long @ short) < 1e-4 * (1 + np.linalg.norm(long))
    nearest = np.abs(np.argwhere(parts) - ends[0]).sum(1).argmin()
    part = parts == parts[tuple(np.argwhere(parts)[nearest])]
    assert found["short_axis"] == pytest.approx(chord_by_steps(part, long / np.linalg.norm(long), spacing), abs=1e-4)


def test_a_hole_ends_the_short_axis():
    mask = np.zeros((30, 60), bool)
    mask[5:25, 5:55] = True
    assert only(diameters.lesion_diameters(mask))["short_axis"] > 20
    mask[9:21, 8:52] = False
    assert only(diameters.lesion_diameters(mask))["short_axis"] < 14


def test_islands_are_measured_one_by_one_and_slices_compared():
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[0, 2:6, 2:30] = 7
    labels[1, 2:4, 2:4] = labels[1, 30:32, 30:32] = 7
    labels[2, 2:10, 2:30] = 7
    labels[3, 20:25, 20:25] = 2
    table = diameters.slice_diameters(labels, (5, 1, 1))
    assert list(zip(table["label"].tolist(), table["slice"].tolist(), strict=True)) == [(2, 3), (7, 0), (7, 1), (7, 2)]
    assert table["longest_diameter"][2] < 3
    best = diameters.lesion_diameters(labels, (5, 1, 1))
    assert best["label"].tolist() == [2, 7]
    assert best["slice"].tolist() == [3, 2]
    assert (best["longest_start_z"] == best["slice"]).all()
    for row in range(2):
        points = (
            np.argwhere(labels == best["label"][row])[:, None] + np.concatenate([np.eye(3), -np.eye(3)]) / 2
        ).reshape(-1, 3)
        assert best["maximum_diameter"][row] == pytest.approx(pdist(points * (5, 1, 1)).max())
        start, stop = (np.array([best[f"diameter_{end}_{a}"][row] for a in "zyx"]) for end in ("start", "stop"))
        assert np.linalg.norm((stop - start) * (5, 1, 1)) == pytest.approx(best["maximum_diameter"][row])


def test_single_pixel_planes_and_nothing():
    found = only(diameters.lesion_diameters(np.ones((1, 1), bool), (2, 3)))
    assert (found["longest_diameter"], found["short_axis"]) == pytest.approx((3, 2), abs=1e-5)
    empty = diameters.lesion_diameters(np.zeros((3, 4, 5), int))
    assert all(len(column) == 0 for column in empty.values())
    assert set(empty) == {one.name for one in diameters.QUANTITIES}
    with pytest.raises(ValueError, match="spacing"):
        diameters.lesion_diameters(np.zeros((3, 4, 5), int), (1, 1))
