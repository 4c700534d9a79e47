"""Laws that surface distances keep on any pair of masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vesalius.measure.surface import surface_distances

DEFINITIONS = ("elements", "voxels")
ONE_WAY = ("mean_distance_first_to_second", "mean_distance_second_to_first")
steps = st.sampled_from([0.4, 0.75, 1.0, 2.5])


@st.composite
def masks(draw, count=2, sides=(1, 7)):
    """Masks of one shape, none of them empty, with a spacing."""
    ndim = draw(st.integers(2, 3))
    shape = draw(array_shapes(min_dims=ndim, max_dims=ndim, min_side=sides[0], max_side=sides[1]))
    pair = [draw(arrays(np.bool_, shape)) for _ in range(count)]
    for mask in pair:
        mask.flat[draw(st.integers(0, mask.size - 1))] = True
    return pair, tuple(draw(steps) for _ in range(ndim))


several = settings(max_examples=60, deadline=None)


@several
@given(masks(), st.sampled_from(DEFINITIONS))
def test_the_order_of_the_masks_does_not_matter(case, definition):
    (first, second), spacing = case
    there = surface_distances(first, second, spacing, definition=definition)
    back = surface_distances(second, first, spacing, definition=definition)
    assert there[ONE_WAY[0]] == back[ONE_WAY[1]]
    assert there[ONE_WAY[1]] == back[ONE_WAY[0]]
    for name, value in there.items():
        assert name in ONE_WAY or value == back[name], name


@several
@given(masks(), st.sampled_from(DEFINITIONS), st.randoms(use_true_random=False))
def test_flips_and_permutations_change_nothing(case, definition, random):
    (first, second), spacing = case
    order = list(range(first.ndim))
    random.shuffle(order)
    there = tuple(slice(None, None, random.choice([1, -1])) for _ in order)
    turned = [np.transpose(mask, order)[there] for mask in (first, second)]
    new = surface_distances(*turned, [spacing[k] for k in order], definition=definition)
    assert new == pytest.approx(surface_distances(first, second, spacing, definition=definition), rel=1e-9, abs=1e-12)


@several
@given(masks(), st.sampled_from(DEFINITIONS), st.sampled_from([0.5, 3.0, 7.0]))
def test_millimetres_scale_with_the_spacing(case, definition, factor):
    (first, second), spacing = case
    small = surface_distances(first, second, spacing, definition=definition, tolerances=(1.0,), band_mm=1.5)
    large = surface_distances(
        first, second, [factor * step for step in spacing], definition=definition, tolerances=(factor,),
        band_mm=1.5 * factor,
    )  # fmt: skip
    for (name, value), scaled in zip(small.items(), large.values(), strict=True):
        unit = 1.0 if name.startswith(("surface_dice", "boundary_iou")) else factor
        assert scaled == pytest.approx(unit * value, rel=1e-9), name


@several
@given(masks(), st.sampled_from(DEFINITIONS), st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_empty_space_around_changes_nothing(case, definition, width):
    (first, second), spacing = case
    around = [(width[2 * axis], width[2 * axis + 1]) for axis in range(first.ndim)]
    padded = [np.pad(mask, around) for mask in (first, second)]
    assert surface_distances(*padded, spacing, definition=definition) == surface_distances(
        first, second, spacing, definition=definition
    )


@several
@given(masks(), st.sampled_from(DEFINITIONS))
def test_what_must_not_exceed_what(case, definition):
    (first, second), spacing = case
    wide = (0.0, 0.5, 1.0, 2.5, 100.0)
    ranks = (50, 95, 100)
    found = surface_distances(first, second, spacing, definition=definition, tolerances=wide, percentiles=ranks)
    dice = [value for name, value in found.items() if name.startswith("surface_dice")]
    assert dice == sorted(dice)
    assert dice[-1] == pytest.approx(1)
    hausdorff = [found[f"hausdorff_distance_{rank}"] for rank in ranks]
    assert hausdorff == sorted(hausdorff)
    assert hausdorff[-1] == found["hausdorff_distance"]
    low, high = sorted(found[name] for name in ONE_WAY)
    for name in ("assd", "masd"):
        assert low - 1e-12 <= found[name] <= high + 1e-12
    assert high <= found["hausdorff_distance"] + 1e-12
    assert 0 <= found["boundary_iou"] <= 1
    assert (found["hausdorff_distance"] == 0) or not np.array_equal(first, second)


@several
@given(masks(count=3, sides=(1, 5)), st.sampled_from(DEFINITIONS))
def test_the_hausdorff_distance_keeps_the_triangle_inequality(case, definition):
    (a, b, c), spacing = case
    ab, bc, ac = (
        surface_distances(*pair, spacing, definition=definition)["hausdorff_distance"]
        for pair in ((a, b), (b, c), (a, c))
    )
    assert ac <= ab + bc + 1e-9


@settings(max_examples=15, deadline=None)
@given(masks(sides=(1, 5)))
def test_the_mesh_keeps_the_same_laws(case):
    (first, second), spacing = case
    there = surface_distances(first, second, spacing, definition="mesh")
    back = surface_distances(second, first, spacing, definition="mesh")
    assert there["assd"] == back["assd"]
    finer = surface_distances(first, second, spacing, definition="mesh", resolution=min(spacing) / 3)
    # Further points on the same triangles: the largest distance can only grow, by less than the resolution.
    assert -1e-9 <= finer["hausdorff_distance"] - there["hausdorff_distance"] <= min(spacing) + 1e-9
    flipped = surface_distances(first[::-1], second[::-1], spacing, definition="mesh")
    assert flipped["hausdorff_distance"] == pytest.approx(there["hausdorff_distance"], abs=0.5 * min(spacing))
