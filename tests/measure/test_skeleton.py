"""Thinning against the definition of topology, and against scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import euler_number
from tubes import draw, straight

from vesalius.measure.skeleton import _plane_table, grown_simply, is_simple, skeletonize
from vesalius.measure.vessel_voxels import checked_volume, packed, squared_depths


def topology(mask):
    """Pieces, cavities (holes of a plane) and Euler number: with them the number of tunnels is known as well."""
    padded = np.pad(mask, 1)
    return (
        ndimage.label(mask, np.ones((3,) * mask.ndim))[1],
        ndimage.label(~padded)[1],
        euler_number(padded, connectivity=mask.ndim),
    )


small = st.one_of(
    arrays(bool, st.tuples(*[st.integers(1, 9)] * 2)),
    arrays(bool, st.tuples(*[st.integers(2, 6)] * 3)),
)


@given(small)
@settings(max_examples=150)
def test_topology_is_kept_whatever_the_mask(mask):
    bone = skeletonize(mask, fill_cavities=False)
    assert bone.shape == mask.shape
    assert not (bone & ~mask).any()
    assert topology(bone) == topology(mask)


@given(arrays(bool, (3, 3, 3)))
@settings(max_examples=300)
def test_a_simple_voxel_is_one_that_changes_no_topology(block):
    block[1, 1, 1] = True
    without = block.copy()
    without[1, 1, 1] = False
    code = sum(1 << k for k, inside in enumerate(block.ravel()) if inside)
    if without.any():
        assert is_simple(code) == (topology(block) == topology(without))
    else:
        assert not is_simple(code)


def test_the_table_of_the_plane_says_what_the_plane_says():
    table = _plane_table()
    for code in range(512):
        block = np.array([code >> k & 1 for k in range(9)], dtype=bool).reshape(3, 3)
        if not block[1, 1]:
            continue
        without = block.copy()
        without[1, 1] = False
        simple = without.any() and topology(block) == topology(without)
        assert table[code] == (simple and without.sum() > 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_big_random_blobs_keep_their_tunnels_and_become_thin(ndim):
    noise = np.random.default_rng(ndim).normal(size=(60, 70, 50) if ndim == 3 else (200, 300))
    mask = ndimage.gaussian_filter(noise, 2.5) > 0.01
    bone = skeletonize(mask, fill_cavities=False)
    assert topology(bone) == topology(mask)
    if ndim == 2:
        # No square of four pixels is left.
        assert not (bone[1:, 1:] & bone[:-1, 1:] & bone[1:, :-1] & bone[:-1, :-1]).any()


def test_cavities_are_filled_only_if_asked():
    shell = np.zeros((12, 12, 12), dtype=bool)
    shell[2:10, 2:10, 2:10] = True
    shell[4:8, 4:8, 4:8] = False
    shell[5:7, 5:7, 5:7] = True  # a piece in the cavity is swallowed
    assert (packed(checked_volume(shell)).dense() == ndimage.binary_fill_holes(shell)).all()
    assert skeletonize(shell).sum() <= 3
    assert topology(skeletonize(shell, fill_cavities=False)) == topology(shell)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2.5, 1, 1), (0.5, 0.7, 1.2)])
def test_the_distance_is_the_exact_one(spacing):
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(30, 40, 70)), 3) > -0.01
    voxels = packed(checked_volume(mask), fill_cavities=False)
    known = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    assert np.sqrt(squared_depths(voxels, spacing)) == pytest.approx(known[mask])


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1, 1), (1, 1, 2)])
def test_the_skeleton_of_a_tube_lies_on_its_axis_in_mm(spacing):
    curves = straight((30, 30, 30), (0.3, 0.5, 1), 40, 6.0)
    shape = tuple(int(60 / step) for step in spacing)
    bone = np.argwhere(skeletonize(draw(curves, shape, spacing), spacing)) * spacing
    start, end = curves[0][0]
    way = (end - start) / np.linalg.norm(end - start)
    off = np.linalg.norm(bone - start - ((bone - start) @ way)[:, None] * way, axis=1)
    assert off.max() < 0.75 * np.linalg.norm(spacing)
    assert len(bone) > 25 / max(spacing)


def test_a_line_two_voxels_wide_keeps_its_length_in_every_direction():
    for axis in range(3):
        block = np.zeros((40, 40, 40), dtype=bool)
        cut = [slice(10, 12)] * 3
        cut[axis] = slice(5, 35)
        block[tuple(cut)] = True
        assert skeletonize(block).sum() >= 26


def test_growing_leaves_out_the_bridge_over_a_tunnel():
    ring = np.zeros((3, 20, 20), dtype=bool)
    ring[1, 3:17, 3:17] = True
    ring[1, 6:14, 6:14] = False
    depth = np.ones(ring.shape)
    depth[1, 9, 14:17] = 0.1  # the weakest place
    grown = grown_simply(ring, depth, (1, 4, 4))
    assert euler_number(grown, connectivity=3) == 1
    assert set(map(tuple, np.argwhere(ring & ~grown))) <= {(1, 9, 14), (1, 9, 15), (1, 9, 16)}
    with pytest.raises(ValueError, match="seed"):
        grown_simply(ring, depth, (0, 0, 0))
    with pytest.raises(ValueError, match="slice"):
        grown_simply(ring[1], depth[1], (0, 4, 4))


def test_empty_full_and_wrong_arguments():
    assert not skeletonize(np.zeros((4, 5, 6))).any()
    assert skeletonize(np.ones((7, 7))).sum() <= 3
    assert skeletonize(np.zeros((0, 5))).shape == (0, 5)
    with pytest.raises(ValueError, match="axes"):
        skeletonize(np.zeros(5))
    with pytest.raises(ValueError, match="finite"):
        skeletonize(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="spacing"):
        skeletonize(np.ones((3, 3)), (1.0, 0.0))
