"""Targets of separate objects and their way back, against loops, scikit-image and phantoms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.ndimage import distance_transform_edt
from skimage.measure import label as components
from skimage.morphology import h_maxima
from skimage.segmentation import relabel_sequential, watershed

from vesalius.measure.instances import instance_scores
from vesalius.phantoms.smear import make_smear
from vesalius.tasks.instance_kernels import find_prominences, flood
from vesalius.tasks.instances import (
    DEFAULTS,
    InstanceCase,
    decode_instances,
    instance_targets,
    tune_decoding,
)


def discs(*balls, shape):
    """Balls ``(centre, half axes)``; a voxel goes to the one it lies deepest in, so that neighbours touch."""
    places = np.moveaxis(np.indices(shape), 0, -1)
    depth = np.array([(((places - centre) / np.broadcast_to(axes, len(shape))) ** 2).sum(-1) for centre, axes in balls])
    return np.where(depth.min(0) <= 1, depth.argmin(0) + 1, 0)


SCENES = {
    "touching discs": discs(((20, 20), 10), ((20, 39), 10), ((37, 30), 10), shape=(60, 60)),
    "small beside large": discs(((30, 30), 22), ((30, 57), 5), ((57, 30), 4), ((9, 9), 6), shape=(70, 70)),
    "ellipses": discs(((20, 20), (8, 16)), ((37, 24), (9, 15)), ((28, 45), (14, 7)), ((58, 40), (5, 12)),
                      shape=(70, 70)),
    "cut off by the edge": discs(((0, 0), 11), ((0, 20), 10), ((39, 39), 14), ((20, 20), 9), shape=(40, 40)),
    "spheres": discs(((10, 10, 10), 7), ((10, 10, 23), 7), ((10, 21, 16), 5), ((24, 22, 24), 6), shape=(32, 32, 34)),
    "one": discs(((8, 8), 5), shape=(17, 17)),
}  # fmt: skip
every_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))


def decoded(instances, *, border=True, **chosen):
    """There and back."""
    distance, close = instance_targets(instances, spacing=chosen.get("spacing"))
    return decode_instances(instances > 0, distance, close if border else None, **chosen)


def agree(found, instances):
    """The same objects under numbers 1, 2, ... in raster order."""
    first = {int(v): n for n, v in reversed(list(enumerate(instances.ravel()))) if v}
    order = sorted(first, key=first.get)
    expected = np.zeros_like(instances)
    for number, value in enumerate(order, start=1):
        expected[instances == value] = number
    np.testing.assert_array_equal(found, expected)


def slow_targets(instances, spacing=None):
    """Both channels, object by object, with SciPy on the whole grid."""
    depth, near = np.zeros(instances.shape), []
    for value in np.unique(instances[instances > 0]):
        mask = instances == value
        if mask.all():
            depth[:] = 1
        else:
            away = distance_transform_edt(mask, sampling=spacing)
            depth[mask] = away[mask] / away.max()
        near.append(distance_transform_edt(~mask))
    border = np.zeros(instances.shape)
    if len(near) > 1:
        apart = np.sort(near, axis=0)[:2].sum(0)
        border = np.where(apart < 5 - 1e-9, np.exp(-((apart - 1) ** 2) / (2 * 1.5**2)), 0)
    return np.stack([depth, border])


def shards(seed, shape, parts):
    """Ragged pieces, many of them in contact, with holes between them and numbers with gaps."""
    draw = np.random.default_rng(seed)
    places = np.moveaxis(np.indices(shape), 0, -1)
    seeds = draw.random((parts, len(shape))) * shape
    apart = np.linalg.norm(places[..., None, :] - seeds, axis=-1) + draw.normal(0, 0.5, (*shape, parts))
    names = draw.permutation(5 * parts)[:parts] + 1
    return np.where(apart.min(-1) < draw.uniform(2, 9), names[apart.argmin(-1)], 0)


@settings(max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(23, 31), (40, 18), (9, 14, 12), (1, 20, 15)]),
    st.integers(1, 12),
    st.sampled_from([None, (0.5, 2.0, 0.8)]),
)
def test_targets_are_those_of_scipy(seed, shape, parts, spacing):
    instances = shards(seed, shape, parts)
    steps = None if spacing is None else spacing[-len(shape) :]
    found = instance_targets(instances, steps)
    assert (found.dtype, found.shape) == (np.float16, (2, *shape))
    np.testing.assert_allclose(found, slow_targets(instances, steps), atol=1e-3)


def test_targets_of_a_square_by_hand():
    instances = np.zeros((9, 16), int)
    instances[2:7, 2:7], instances[2:7, 7:10], instances[2:7, 12:15] = 70_000, 3, 9
    depth, border = instance_targets(instances)
    np.testing.assert_allclose(
        depth[4], [0, 0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0.5, 1, 0.5, 0, 0, 0.5, 1, 0.5, 0], atol=1e-3
    )
    # Sums of both distances along the row: contact 1, then 2, 3 ...; two voxels between the last two objects: 1 + 2.
    sums = np.array([9, 9, 5, 4, 3, 2, 1, 1, 2, 3, 3, 3, 3, 4, 5, 9])
    np.testing.assert_allclose(border[4], np.where(sums < 5, np.exp(-((sums - 1) ** 2) / 4.5), 0), atol=1e-3)
    assert not instance_targets(np.zeros((4, 5, 6), np.uint8)).any()
    np.testing.assert_array_equal(instance_targets(np.full((4, 5), 7)), [np.ones((4, 5)), np.zeros((4, 5))])


@every_scene
def test_ideal_targets_give_the_very_objects_back(scene):
    agree(decoded(scene), scene)


@every_scene
def test_without_a_border_map_lines_move_by_one_voxel_at_most(scene):
    found = decoded(scene, border=False)
    assert found.max() == scene.max()
    pairs = {(int(a), int(b)) for a, b in zip(found.ravel(), scene.ravel(), strict=True)}
    inner = np.array([ndimage.binary_erosion(scene == v, iterations=2) for v in range(1, scene.max() + 1)]).any(0)
    inside = {(int(a), int(b)) for a, b in zip(found[inner], scene[inner], strict=True)}
    assert len(inside) == len({a for a, _ in inside}) == len({b for _, b in inside}) <= len(pairs)
    np.testing.assert_array_equal(found > 0, scene > 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_blood_smear_comes_back(seed):
    instances = np.asarray(make_smear(seed=seed, index=0, cells=60).layers["instances"]).squeeze().astype(int)
    found = instance_scores(decoded(instances), instances)
    assert (found["instance_ap_50"], found["instances_prediction"]) == (1.0, found["instances_truth"])
    assert found["panoptic_quality"] > 0.995


@every_scene
def test_flips_and_transposes_commute(scene):
    targets = instance_targets(scene)
    moves = [tuple(range(scene.ndim))[::-1], (*range(1, scene.ndim), 0)]
    for axes in moves:
        np.testing.assert_array_equal(instance_targets(scene.transpose(axes)), [t.transpose(axes) for t in targets])
        agree(decoded(scene.transpose(axes)), scene.transpose(axes))
    for axis in range(scene.ndim):
        np.testing.assert_array_equal(instance_targets(np.flip(scene, axis)), np.flip(targets, axis + 1))
        agree(decoded(np.flip(scene, axis)), np.flip(scene, axis))


def test_anisotropic_voxels():
    places = np.moveaxis(np.indices((16, 48, 48)), 0, -1) * (3.0, 1.0, 1.0)
    apart = np.array([np.linalg.norm(places - c, axis=-1) for c in ((24, 15, 15), (24, 15, 36), (24, 34, 26))])
    instances = np.where(apart.min(0) < 12, apart.argmin(0) + 1, 0)
    agree(decoded(instances, spacing=(3.0, 1.0, 1.0)), instances)
    # The same volume limit in mm and in voxels.
    volumes = np.bincount(instances.ravel())[1:]
    kept = decoded(instances, spacing=(3.0, 1.0, 1.0), min_size=3.0 * (sorted(volumes)[0] + 1))
    assert kept.max() == (volumes > volumes.min()).sum()


def test_small_objects_go_and_holes_close():
    scene = discs(((20, 20), 12), ((44, 44), 3), ((44, 12), 2), shape=(54, 54))
    distance, border = instance_targets(scene)
    sizes = np.bincount(scene.ravel())[1:]
    for limit, left in ((0, 3), (sizes[2], 3), (sizes[2] + 1, 2), (sizes[1] + 1, 1), (sizes[0] + 1, 0)):
        assert decode_instances(scene > 0, distance, border, min_size=limit).max() == left
    pierced = scene > 0
    pierced[18:21, 19:22] = pierced[44, 44] = False
    np.testing.assert_array_equal(decode_instances(pierced, distance, border) > 0, scene > 0)
    # A hole between two objects, and a bay at the edge of the array, are no holes of one.
    pair = np.zeros((21, 21), int)
    pair[3:18, :11], pair[3:18, 11:18] = 1, 2
    distance, border = instance_targets(pair)
    pair[8:12, 9:13] = pair[10, :3] = 0
    agree(decode_instances(pair > 0, distance, border), pair)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([(24, 30), (10, 12, 11)]))
def test_flooding_is_the_watershed_of_scikit_image(seed, shape):
    draw = np.random.default_rng(seed)
    # No two voxels alike, so that only the definition decides.
    relief = draw.permutation(int(np.prod(shape))).reshape(shape).astype(np.int32)
    inside = ndimage.binary_dilation(draw.random(shape) < 0.3)
    markers = np.where((draw.random(shape) < 0.02) & inside, 1, 0) * draw.permutation(relief.size).reshape(shape)
    stride = np.array(np.empty(np.add(shape, 2), np.int8).strides)
    labels = np.pad(markers, 1).astype(np.int32).ravel()
    flood(np.pad(relief, 1).ravel(), np.pad(inside, 1).ravel(), labels, np.r_[stride, -stride], relief.size)
    expected = watershed(-relief, markers, connectivity=1, mask=inside)
    inner = tuple(slice(1, -1) for _ in shape)
    np.testing.assert_array_equal(labels.reshape(np.add(shape, 2))[inner], expected)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 500))
def test_prominent_maxima_are_those_of_scikit_image(seed, height):
    draw = np.random.default_rng(seed)
    hills = ndimage.gaussian_filter(draw.random((26, 33)), 1.5)
    # Ranks: no two alike, since scikit-image counts equal maxima of one hill apart.
    hills = hills.ravel().argsort().argsort().reshape(hills.shape).astype(np.int32) + 1000
    padded, inside = np.pad(hills, 1), np.pad(np.ones(hills.shape, bool), 1)
    wide = padded.shape[1]
    jumps = np.array([-wide - 1, -wide, -wide + 1, -1, 1, wide - 1, wide, wide + 1])
    order = np.flatnonzero(inside)
    order = order[np.argsort(-padded.ravel()[order], kind="stable")]
    place, prominence = find_prominences(padded.ravel(), inside.ravel(), order, jumps)
    chosen = place[prominence >= height]
    # scikit-image: maxima of the reconstruction of hills - h under hills; each holds one of our places.
    expected = components(h_maxima(hills, height, footprint=np.ones((3, 3))), connectivity=2)
    names = np.pad(expected, 1).ravel()[chosen]
    assert sorted(names) == list(range(1, expected.max() + 1))


def test_nothing_and_everything():
    for shape in ((0, 5), (6, 7), (4, 6, 7)):
        nothing = np.zeros(shape, np.float32)
        found = decode_instances(nothing, nothing, nothing)
        assert (found.shape, found.dtype, found.any()) == (shape, np.int32, False)
    everything = np.ones((6, 7))
    np.testing.assert_array_equal(decode_instances(everything, everything, None), np.ones((6, 7)))
    # Foreground where the distance says nothing is still an object.
    np.testing.assert_array_equal(decode_instances(everything, 0 * everything, None), np.ones((6, 7)))


def test_the_threshold_belongs_to_the_foreground():
    maps = np.array([[0.39, 0.4, 0.41, 0.0, 0.9]], np.float32)
    np.testing.assert_array_equal(decode_instances(maps, maps, None, threshold=0.4), [[0, 1, 1, 0, 2]])


def test_maps_that_cannot_be():
    good = np.zeros((5, 6))
    for maps in ((good, good[1:], None), (good, good, good[1:]), (good[0], good[0], None), (good * np.nan, good, None)):
        with pytest.raises(ValueError, match=r"maps"):
            decode_instances(*maps)
    for bad in ({"threshold": 0}, {"seed_threshold": 0}, {"min_size": -1}, {"smooth": -1}, {"spacing": (1, 0)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            decode_instances(good, good, good, **bad)
    with pytest.raises(ValueError, match="instances"):
        instance_targets(np.full((3, 3), -1))


def spoiled(instances, seed, *, level=0.1, blur=1.5):
    """Maps as a network might give them: smeared and noisy."""
    draw = np.random.default_rng(seed)

    def worse(part):
        noise = 3 * ndimage.gaussian_filter(draw.normal(0, level, part.shape), 1)
        return np.clip(ndimage.gaussian_filter(part.astype(np.float32), blur) + noise, 0, 1)

    distance, border = instance_targets(instances)
    return worse(instances > 0), worse(distance), worse(border)


def test_tuning_finds_the_best_of_its_grid():
    cases = []
    for seed in range(3):
        instances = np.asarray(make_smear(seed=seed, index=0, size=128, cells=25).layers["instances"]).squeeze()
        # Specks of noise that only a size limit removes.
        foreground, distance, border = spoiled(instances, seed)
        foreground = np.maximum(foreground, np.random.default_rng(seed).random(foreground.shape) > 0.995)
        cases.append(InstanceCase(foreground, distance, border, instances))
    grid = {"thresholds": (0.5, 0.35), "seed_thresholds": (0.1, 0.3), "smooths": (1.0,)}
    chosen = tune_decoding(cases, **grid)
    assert set(chosen) == set(DEFAULTS)
    assert chosen["min_size"] > 0

    def mean(**settings):
        return np.mean([
            instance_scores(decode_instances(c.foreground, c.distance, c.border, **settings), c.truth)["instance_ap_50"]
            for c in cases
        ])  # fmt: skip

    best = max(
        mean(threshold=t, seed_threshold=s, smooth=1.0, min_size=m)
        for t in grid["thresholds"]
        for s in grid["seed_thresholds"]
        for m in (0.0, chosen["min_size"])
    )
    assert mean(**chosen) == pytest.approx(best)
    assert mean(**chosen) > mean(**DEFAULTS)
    # Another score may choose otherwise: this one likes many objects.
    many = tune_decoding(cases, lambda said, _: float(said.max()), **grid)
    assert many["min_size"] == 0
    empty = np.zeros((8, 8))
    assert tune_decoding([InstanceCase(empty, empty, None, empty.astype(int))]) == DEFAULTS


def test_numbers_do_not_depend_on_the_run():
    instances, _, _ = relabel_sequential(shards(5, (60, 60), 20))
    maps = spoiled(instances, 1)
    first = decode_instances(*maps)
    np.testing.assert_array_equal(decode_instances(*(part.copy(order="F") for part in maps)), first)
    starts = [np.flatnonzero(first.ravel() == k)[0] for k in range(1, first.max() + 1)]
    assert starts == sorted(starts)


@pytest.mark.realdata
def test_nuclei_come_back(real_data):
    from skimage.io import imread

    found, spoilt = [], []
    for number, path in enumerate(sorted((real_data / "nuclei" / "labels").glob("*.png"))[::12]):
        instances = imread(path).astype(int)
        found.append(instance_scores(decoded(instances), instances)["instance_ap_50"])
        spoilt.append(instance_scores(decode_instances(*spoiled(instances, number)), instances)["instance_ap_50"])
    assert len(found) > 20
    assert np.mean(found) > 0.97
    assert min(found) > 0.9
    assert np.mean(spoilt) > 0.9
