"""Cleaning of masks against SciPy, scikit-image, SimpleITK and MONAI."""

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import FillHoles, KeepLargestConnectedComponent, RemoveSmallObjects
from scipy import ndimage
from skimage.measure import label as skimage_label
from skimage.morphology import remove_small_objects

from vesalius.measure.components import Step, apply_steps, apply_to_layers, holes, nesting
from vesalius.measure.lesions import components

REACH = {26: 3, 18: 2, 6: 1, 8: 2, 4: 1}
SHAPES = {2: (31, 34), 3: (12, 17, 19)}
many = pytest.mark.parametrize("connectivity", [26, 18, 6, 8, 4])


def noise(seed, shape, share=0.55):
    """Blobs with many islands and holes."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.8)
    return field < np.quantile(field, share)


def label_map(seed, shape, labels=3):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1)
    cuts = np.quantile(field, np.linspace(0.3, 0.95, labels))
    return np.digitize(field, cuts).astype(np.uint8)


def dims(connectivity):
    return 2 if connectivity in (4, 8) else 3


def scipy_largest(mask, connectivity):
    parts, _ = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, REACH[connectivity]))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.isin(parts, np.flatnonzero(sizes == max(sizes.max(), 1)))


def by_scipy(labels, steps, spacing):
    """`apply_steps` with SciPy, the whole volume for every label."""
    out = labels.copy()
    for step in steps:
        inside = out != 0 if step.label is None else out == step.label
        near = step.connectivity or (26 if labels.ndim == 3 else 8)
        parts, _ = ndimage.label(inside, ndimage.generate_binary_structure(labels.ndim, REACH[near]))
        sizes = np.bincount(parts.ravel())
        small = sizes * np.prod(spacing) < step.min_volume * (1 - 1e-9)
        inside &= ~small[parts]
        if step.keep:
            inside &= scipy_largest(inside, near)
        out[(parts > 0) & ~inside] = 0
        if step.fill_holes:
            walk = labels.ndim if near in (6, 4) else 1
            filled = ndimage.binary_fill_holes(inside, ndimage.generate_binary_structure(labels.ndim, walk))
            out[filled & (out == 0)] = step.label
    return out


@many
def test_the_largest_component_is_that_of_scipy(connectivity):
    for seed in range(5):
        mask = noise(seed, SHAPES[dims(connectivity)], 0.3)
        found = apply_steps(mask, [Step(1, keep="largest", connectivity=connectivity)])
        assert found.dtype == np.bool_
        assert 0 < found.sum() < mask.sum()
        np.testing.assert_array_equal(found, scipy_largest(mask, connectivity))


@pytest.mark.parametrize(("connectivity", "full"), [(26, True), (6, False)])
def test_the_largest_component_is_that_of_simpleitk(connectivity, full):
    mask = noise(3, SHAPES[3], 0.3)
    image = SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(mask.astype(np.uint8)), full)
    ranked = SimpleITK.GetArrayFromImage(SimpleITK.RelabelComponent(image))
    sizes = np.bincount(ranked.ravel())
    assert sizes[1] > sizes[2]
    np.testing.assert_array_equal(apply_steps(mask, [Step(1, "largest", connectivity=connectivity)]), ranked == 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_largest_component_of_each_label_is_that_of_monai(ndim):
    labels = label_map(2, SHAPES[ndim])
    monai = KeepLargestConnectedComponent(applied_labels=[1, 2, 3], is_onehot=False)(
        torch.from_numpy(labels[None].copy())
    )
    found = apply_steps(labels, [Step(label, "largest") for label in (1, 2, 3)])
    assert (found != labels).any()
    np.testing.assert_array_equal(found, monai[0].numpy())


def test_the_largest_foreground_is_that_of_monai():
    labels = np.where(noise(4, SHAPES[3], 0.25), label_map(5, SHAPES[3]), 0).astype(np.uint8)
    monai = KeepLargestConnectedComponent(applied_labels=[1, 2, 3], is_onehot=False, independent=False)
    expected = monai(torch.from_numpy(labels[None].copy()))[0].numpy()
    found = apply_steps(labels, [Step(None, "largest")])
    assert (found != labels).any()
    np.testing.assert_array_equal(found, expected)


@many
def test_small_components_go_as_in_scikit_image(connectivity):
    ndim = dims(connectivity)
    mask = noise(8, SHAPES[ndim], 0.3)
    spacing = (2.5, 0.75, 0.8)[-ndim:]
    for voxels in (2, 3, 9):
        kept = remove_small_objects(mask, max_size=voxels - 1, connectivity=REACH[connectivity])
        assert kept.sum() < mask.sum()
        step = Step(1, min_volume=voxels, connectivity=connectivity)
        np.testing.assert_array_equal(apply_steps(mask, [step]), kept)
        step = Step(1, min_volume=voxels * float(np.prod(spacing)), connectivity=connectivity)
        np.testing.assert_array_equal(apply_steps(mask, [step], spacing), kept)


@pytest.mark.filterwarnings("ignore:Parameter `min_size` is deprecated")
def test_small_components_go_as_in_monai():
    layers = np.stack([noise(seed, SHAPES[3], 0.25) for seed in (1, 2)])
    spacing = (3.0, 0.7, 0.7)
    for index, layer in enumerate(layers):
        # With scikit-image 0.26 MONAI also drops components that equal the limit (5 voxels), with older ones not.
        parts, _ = ndimage.label(layer)
        layers[index] &= np.bincount(parts.ravel())[parts] != 5
    # One layer at a time: MONAI joins what touches across channels.
    monai = RemoveSmallObjects(min_size=7.0, by_measure=True, pixdim=spacing, connectivity=1)
    expected = np.concatenate([monai(torch.from_numpy(layer[None].astype(np.uint8))).numpy() != 0 for layer in layers])
    found = apply_to_layers(layers, [Step(k, min_volume=7.0, connectivity=6) for k in (0, 1)], spacing)
    assert 0 < found.sum() < layers.sum()
    np.testing.assert_array_equal(found, expected)


@many
def test_holes_are_those_of_scipy(connectivity):
    ndim = dims(connectivity)
    walk = ndim if connectivity in (6, 4) else 1
    some = 0
    for seed in range(6):
        mask = noise(seed, SHAPES[ndim], 0.8 if ndim == 3 else 0.65)
        filled = ndimage.binary_fill_holes(mask, ndimage.generate_binary_structure(ndim, walk))
        np.testing.assert_array_equal(holes(mask, connectivity), filled & ~mask)
        some += int((filled & ~mask).sum())
    assert some


@pytest.mark.parametrize(("ndim", "connectivity"), [(2, 4), (3, 6)])
def test_with_neighbours_over_faces_holes_are_those_of_monai(ndim, connectivity):
    mask = noise(1, SHAPES[ndim], 0.8)
    monai = FillHoles(applied_labels=[1])(torch.from_numpy(mask[None].astype(np.uint8)))[0].numpy()
    assert monai.sum() > mask.sum()
    found = apply_steps(mask.astype(np.int16), [Step(1, fill_holes=True, connectivity=connectivity)])
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, monai)


def test_a_diagonal_leak_closes_only_with_the_right_neighbours():
    ring = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    assert apply_steps(ring, [Step(1, fill_holes=True)])[1, 1] == 1
    assert apply_steps(ring, [Step(1, fill_holes=True, connectivity=4)])[1, 1] == 0


def test_another_label_in_a_hole_stays_and_the_gap_around_it_is_filled():
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8] = 1
    labels[2:7, 2:7] = 0
    labels[4, 4] = 2
    filled = apply_steps(labels, [Step(1, fill_holes=True)])
    assert filled[4, 4] == 2
    assert (filled[1:8, 1:8] == 1).sum() == 48
    assert (filled[[0, 8]] == 0).all()


def test_a_bay_at_the_edge_of_the_array_is_no_hole():
    mask = np.ones((5, 5), np.uint8)
    mask[0, 2] = 0
    np.testing.assert_array_equal(apply_steps(mask, [Step(1, fill_holes=True)]), mask)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.data())
def test_any_steps_are_those_of_scipy_on_the_whole_volume(seed, flat, data):
    shape, spacing = ((20, 22), (1.5, 0.5)) if flat else ((7, 11, 12), (2.0, 1.5, 0.5))
    labels = np.random.default_rng(seed).choice(4, size=shape, p=[0.35, 0.45, 0.15, 0.05]).astype(np.uint8)
    near = [None, 8, 4] if flat else [None, 26, 18, 6]
    steps = []
    for _ in range(data.draw(st.integers(1, 4))):
        label = data.draw(st.sampled_from([None, 1, 2, 3, 9]))
        steps.append(
            Step(
                label,
                keep=data.draw(st.sampled_from([None, "largest"])),
                fill_holes=label is not None and data.draw(st.booleans()),
                min_volume=data.draw(st.sampled_from([0.0, 2.0, 4.5])),
                connectivity=data.draw(st.sampled_from(near)),
            )
        )
    before = labels.copy()
    found = apply_steps(labels, steps, spacing)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(found, by_scipy(labels, steps, spacing))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.permutations([0, 1, 2]), st.lists(st.booleans(), min_size=3, max_size=3))
def test_flips_and_turned_axes_change_nothing(seed, axes, flips):
    labels = np.random.default_rng(seed).choice(3, size=(6, 8, 9), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    spacing = np.array([3.0, 1.0, 0.5])
    steps = [Step(1, "largest", True, connectivity=6), Step(2, "largest", min_volume=3.0), Step(None, "largest")]
    flipped = tuple(slice(None, None, -1 if one else 1) for one in flips)

    def turn(array):
        return np.transpose(array, axes)[flipped]

    found = apply_steps(turn(labels), steps, spacing[list(axes)])
    np.testing.assert_array_equal(found, turn(apply_steps(labels, steps, spacing)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_cleaning_twice_changes_nothing_more(seed):
    labels = np.random.default_rng(seed).choice(3, size=(7, 9, 9), p=[0.5, 0.4, 0.1]).astype(np.uint8)
    # Holes last: what goes from label 2 could open a new hole in label 1.
    steps = [Step(2, min_volume=2.0), Step(1, "largest", True)]
    once = apply_steps(labels, steps)
    np.testing.assert_array_equal(apply_steps(once, steps), once)


def test_components_of_equal_size_all_stay():
    mask = np.zeros((5, 9), bool)
    mask[1, 1:3] = mask[3, 6:8] = mask[1, 7] = True
    assert apply_steps(mask, [Step(1, "largest")]).sum() == 4


def test_a_volume_that_equals_the_smallest_one_stays():
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, :3] = True
    spacing = (0.1, 0.7, 0.3)
    exact = 3 * 0.021
    assert apply_steps(mask, [Step(1, min_volume=exact)], spacing).any()
    assert not apply_steps(mask, [Step(1, min_volume=exact * 1.001)], spacing).any()


def test_layers_are_cleaned_one_by_one_and_together():
    layers = np.zeros((2, 12, 12), bool)
    layers[0, 1:6, 1:6] = True
    layers[0, 3, 3] = False
    layers[1, 3, 3] = True  # within the hole of the other layer, which is filled all the same
    layers[:, 9, 9] = True
    found = apply_to_layers(layers, [Step(0, fill_holes=True), Step(None, "largest")])
    assert found[0, 1:6, 1:6].all()
    assert found[1, 3, 3]
    assert not found[:, 9, 9].any()
    assert found.sum() == 26


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_types_and_memory_orders(kind, order):
    labels = np.asarray(label_map(6, SHAPES[3]), dtype=kind, order=order)
    found = apply_steps(labels, [Step(1, "largest", True), Step(3, min_volume=4)])
    assert found.dtype == kind
    np.testing.assert_array_equal(found, by_scipy(labels, [Step(1, "largest", True), Step(3, min_volume=4)], (1,)))


def test_empty_maps_and_absent_labels():
    empty = np.zeros((4, 5, 6), np.uint8)
    for step in (Step(1, "largest", True, 3.0), Step(None, "largest")):
        np.testing.assert_array_equal(apply_steps(empty, [step]), empty)
    np.testing.assert_array_equal(apply_steps(empty + 1, [Step(2, "largest")]), empty + 1)
    assert apply_to_layers(np.zeros((2, 5, 6)), [Step(1, "largest"), Step(None, "largest")]).sum() == 0


def test_the_tree_tells_what_lies_in_what():
    # Shell, ball in it, and a second shell apart: only the ball is enclosed.
    place = np.stack(np.indices((11, 11, 24)), axis=-1)
    radius = np.linalg.norm(place - (5, 5, 5), axis=-1)
    mask = ((radius > 3.5) & (radius < 5)) | (radius < 1.5)
    mask |= np.abs(np.linalg.norm(place - (5, 5, 17), axis=-1) - 3.5) < 0.8
    parts = components(mask)
    tree, nodes = nesting(mask, parts)
    assert len(tree.parent) == 6  # outside, three components, two open parts
    ball = parts[5, 5, 5]
    for gone in range(1, 4):
        alive = np.arange(4) > 0
        alive[gone] = False
        rest = mask & (parts != gone)
        expected = ndimage.binary_fill_holes(rest) & ~rest
        found = tree.enclosed(alive)[nodes] & ~rest
        np.testing.assert_array_equal(found, expected)
    assert tree.enclosed(np.ones(4, bool))[nodes[5, 5, 5]]
    assert tree.component[nodes[5, 5, 5]] == ball
    assert nesting(parts == ball, parts) is None


def test_components_are_counted_as_scikit_image_does():
    mask = noise(11, SHAPES[3], 0.3)
    largest = np.bincount(skimage_label(mask, connectivity=3).ravel())[1:].max()
    assert apply_steps(mask, [Step(1, "largest")]).sum() == largest


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Step(1, keep="biggest"), "largest"),
        (lambda: Step(1, min_volume=-1), "min_volume"),
        (lambda: Step(1, min_volume=float("nan")), "min_volume"),
        (lambda: Step(1, connectivity=7), "connectivity"),
        (lambda: Step(-1), "label"),
        (lambda: Step(None, fill_holes=True), "foreground"),
        (lambda: Step.of({"label": 1, "size": 3}), "keys"),
        (lambda: Step.of({"keep": "largest"}), "label"),
        (lambda: apply_steps(np.zeros((3, 3)), [Step(1, connectivity=26)]), "connectivity in 2-D"),
        (lambda: apply_steps(np.zeros((3, 3)), [Step(0)]), "label 0"),
        (lambda: apply_steps(np.zeros(3), [Step(1)]), "axes"),
        (lambda: apply_steps(np.full((3, 3), 0.5), [Step(1)]), "whole"),
        (lambda: apply_steps(np.zeros((3, 3)), [Step(1)], (1, 1, 1)), "spacing"),
        (lambda: apply_to_layers(np.zeros((2, 3, 3)), [Step(2)]), "layer 2 of 2"),
        (lambda: apply_to_layers(np.zeros((3, 3)), []), "axes"),
    ],
)
def test_what_cannot_be_done_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_step_survives_json():
    step = Step(2, "largest", True, 3.5, 18)
    assert Step.of(step.to_json()) == step
    labels = label_map(1, SHAPES[3])
    np.testing.assert_array_equal(apply_steps(labels, [step.to_json()]), apply_steps(labels, [step]))
