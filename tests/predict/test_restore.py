"""Streaming return to the voxels of the file, against interpolation of the whole volume by torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.predict.restore import Placement, Restorer, restore
from vesalius.transforms.conform import Conform


def smooth(shape, classes, seed=0):
    """Random logits with structures of some voxels, as networks give."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, classes, *(max(2, side // 3) for side in shape)), generator=draw) * 4
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return functional.interpolate(coarse, size=shape, mode=mode)[0].numpy()


def resized(values, size):
    """Linear interpolation axis by axis through torch's own 2-D kernels, widened where an axis shrinks."""
    found = torch.from_numpy(values).double()
    for axis, side in enumerate(size, start=1):
        lines = found.movedim(axis, -1)
        flat = lines.reshape(1, 1, -1, lines.shape[-1])
        flat = functional.interpolate(flat, size=(flat.shape[2], side), mode="bilinear", antialias=True)
        found = flat.reshape(*lines.shape[:-1], side).movedim(-1, axis)
    return found.numpy()


def slabs(values, step):
    for start in range(0, values.shape[1], step):
        part = values[:, start : start + step]
        yield start, start + part.shape[1], np.ascontiguousarray(part)


CASES = [
    ((9, 12, 14), (20, 30, 25)),
    ((20, 21, 22), (7, 40, 9)),
    ((5, 8, 8), (5, 16, 8)),
    ((30, 6, 6), (4, 6, 6)),
    ((1, 5, 6), (3, 9, 9)),
    ((17, 19), (40, 9)),
    ((11, 13), (11, 13)),
    ((6, 7, 8), (6, 7, 8)),
]


@pytest.mark.parametrize(("shape", "cut"), CASES)
@pytest.mark.parametrize("step", [1, 4, 100])
def test_streaming_equals_interpolating_the_whole_volume(shape, cut, step):
    values = smooth(shape, 4)
    expected = resized(values, cut)
    found = restore(slabs(values, step), Placement.plain(shape, cut), 4)
    assert found.shape == cut
    assert found.dtype == np.uint8
    two = np.sort(expected, axis=0)
    clear = two[-1] - two[-2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], expected.argmax(axis=0)[clear])
    assert (found == expected.argmax(axis=0)).mean() > 0.9999


def test_the_slabs_do_not_matter():
    values = smooth((13, 9, 8), 3)
    place = Placement.plain((13, 9, 8), (31, 20, 5))
    one = restore(slabs(values, 13), place, 3)
    np.testing.assert_array_equal(one, restore(slabs(values, 1), place, 3))
    np.testing.assert_array_equal(one, restore(slabs(values, 5), place, 3))


def test_an_equal_grid_is_plain_argmax_with_the_first_of_equals():
    values = np.random.default_rng(0).integers(0, 3, (5, 4, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(
        restore(slabs(values, 3), Placement.plain((4, 6, 7)), 5), values.argmax(axis=0).astype(np.uint8)
    )


@st.composite
def placements(draw):
    dims = draw(st.sampled_from([2, 3]))
    whole = tuple(draw(st.integers(2, 7)) for _ in range(dims))
    lower = tuple(draw(st.integers(0, side - 1)) for side in whole)
    cut = tuple(draw(st.integers(1, side - a)) for side, a in zip(whole, lower, strict=True))
    axes = tuple(draw(st.permutations(range(dims))))
    flips = tuple(draw(st.booleans()) for _ in range(dims))
    return Placement(cut, cut, lower, whole, axes, flips)


@settings(max_examples=150, deadline=None)
@given(st.data(), placements())
def test_turning_cutting_and_coming_back_restores_the_label_map(data, place):
    original = data.draw(arrays(np.uint8, place.full, elements=st.integers(0, 3)))
    turned = np.transpose(original, place.axes)
    for axis, flip in enumerate(place.flips):
        turned = np.flip(turned, axis) if flip else turned
    inside = tuple(slice(a, a + n) for a, n in zip(place.lower, place.cut, strict=True))
    seen = turned[inside]
    values = (np.arange(4).reshape(-1, *(1,) * seen.ndim) == seen).astype(np.float32)
    found = restore(slabs(values, 2), place, 4)
    # What was cut off comes back as background, the rest as it was: by index arithmetic, without views.
    expected = np.zeros_like(original)
    for index in np.ndindex(*place.cut):
        where = [0] * len(place.whole)
        for k, (i, a) in enumerate(zip(index, place.lower, strict=True)):
            where[place.axes[k]] = place.whole[k] - 1 - (i + a) if place.flips[k] else i + a
        expected[tuple(where)] = seen[index]
    np.testing.assert_array_equal(found, expected)


def test_a_conformed_case_comes_back_to_its_file():
    draw = np.random.default_rng(3)
    labels = np.zeros((12, 14, 10), dtype=np.uint8)
    labels[3:9, 4:11, 2:8] = 1
    labels[5:8, 6:9, 3:6] = 2
    pixels = np.zeros((1, *labels.shape), dtype=np.float32)
    pixels[0, 2:10, 3:12, 1:9] = 100 + draw.normal(size=(8, 9, 8))
    # Array axes run along x, z and y of the patient, two of them backwards.
    affine = np.array([[-1.0, 0, 0, 5], [0, 0, -1.5, 7], [0, 2.0, 0, -3], [0, 0, 0, 1]])
    image = Image(Grid(labels.shape, affine=affine), pixels)
    spec = {"dims": 3, "channels": 1, "crop": "border", "spacing_mm": None, "normalise": {"kind": "none"}}
    case = Conform(spec)(image)
    assert case.shape != labels.shape
    assert not case.pose.still
    seen = case.labels(labels)
    values = (np.arange(3)[:, None, None, None] == seen).astype(np.float32)
    np.testing.assert_array_equal(restore(slabs(values, 3), Placement.of(case), 3), labels)


def test_regions_paint_in_the_order_of_their_channels():
    values = smooth((6, 7, 8), 3)
    cut = (9, 14, 8)
    expected = np.zeros(cut, dtype=np.uint8)
    whole = resized(values, cut)
    for number, channel in zip((1, 2, 4), whole, strict=True):
        expected[channel > 0] = number
    found = restore(slabs(values, 2), Placement.plain((6, 7, 8), cut), 3, regions=(1, 2, 4))
    sure = (np.abs(whole) > 1e-5).all(axis=0)
    np.testing.assert_array_equal(found[sure], expected[sure])
    p = (1 / (1 + np.exp(-values))).astype(np.float32)
    as_p = restore(slabs(p, 2), Placement.plain((6, 7, 8)), 3, regions=(1, 2, 4), kind="probabilities")
    from_logits = restore(slabs(values, 2), Placement.plain((6, 7, 8)), 3, regions=(1, 2, 4))
    np.testing.assert_array_equal(as_p, from_logits)


def test_many_classes_need_sixteen_bits():
    values = np.zeros((300, 2, 3, 3), dtype=np.float32)
    values[299, 1] = 1
    found = restore(slabs(values, 1), Placement.plain((2, 3, 3)), 300)
    assert found.dtype == np.uint16
    assert set(np.unique(found[1])) == {299}


@pytest.mark.parametrize("shape", [(7, 9, 8), (9, 8)])
def test_probabilities_confidence_and_entropy(shape, tmp_path):
    values = smooth(shape, 3)
    cut = tuple(2 * side for side in shape)
    dims = len(shape)
    whole = tuple(side + 3 for side in cut)
    place = Placement(shape, cut, (1,) * dims, whole, tuple(range(dims))[::-1], (True,) + (False,) * (dims - 1))
    p16 = np.memmap(tmp_path / "p.raw", dtype=np.float16, mode="w+", shape=(3, *place.full))
    p8 = np.ones((3, *place.full), dtype=np.uint8)
    confidence, entropy = np.full(place.full, 9, np.float32), np.full(place.full, 9, np.float32)
    labels = restore(slabs(values, 2), place, 3, probabilities=p16, confidence=confidence, entropy=entropy)
    restore(slabs(values, 3), place, 3, probabilities=p8)
    expected = torch.from_numpy(resized(values, cut)).softmax(0).numpy()
    inside = np.zeros(place.full, dtype=bool)
    place.view(inside)[...] = True
    np.testing.assert_allclose(place.view(p16), expected, atol=1e-3)
    np.testing.assert_allclose(place.view(p8) / 255, expected, atol=0.5 / 255 + 1e-5)
    np.testing.assert_allclose(place.view(confidence), expected.max(0), atol=1e-5)
    exact = -(expected * np.log(expected)).sum(0) / np.log(3)
    np.testing.assert_allclose(place.view(entropy), exact, atol=1e-5)
    np.testing.assert_array_equal(p16[:, ~inside].T, np.tile([1, 0, 0], ((~inside).sum(), 1)))
    np.testing.assert_array_equal(p8[:, ~inside].T, np.tile([255, 0, 0], ((~inside).sum(), 1)))
    assert (confidence[~inside] == 1).all()
    assert (entropy[~inside] == 0).all()
    assert (labels[~inside] == 0).all()


def test_maps_of_regions():
    values = smooth((5, 6, 7), 2)
    p = 1 / (1 + np.exp(-values.astype(np.float64)))
    confidence, entropy = np.empty((5, 6, 7)), np.empty((5, 6, 7))
    restore(slabs(values, 2), Placement.plain((5, 6, 7)), 2, regions=(1, 2), confidence=confidence, entropy=entropy)
    np.testing.assert_allclose(confidence, np.maximum(p, 1 - p).min(0), atol=1e-6)
    np.testing.assert_allclose(entropy, (-p * np.log2(p) - (1 - p) * np.log2(1 - p)).max(0), atol=1e-5)


@pytest.mark.parametrize(("shape", "cut", "planes"), [((100, 8, 8), (160, 16, 16), 2), ((100, 8, 8), (50, 8, 8), 4)])
def test_only_a_few_planes_are_held(shape, cut, planes):
    restorer = Restorer(Placement.plain(shape, cut), 3)
    assert restorer._ring.shape == (planes, 3, 8, 8)


def test_wrong_slabs_are_refused():
    restorer = Restorer(Placement.plain((4, 5, 6)), 2)
    restorer.add(0, 2, np.zeros((2, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match="planes from 2"):
        restorer.add(3, 4, np.zeros((2, 1, 5, 6), np.float32))
    with pytest.raises(ValueError, match="were expected"):
        restorer.add(2, 4, np.zeros((3, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match="2 of 4 planes"):
        restorer.finish()
    with pytest.raises(ValueError, match="numbers of regions"):
        Restorer(Placement.plain((4, 5, 6)), 2, regions=(1,))
    with pytest.raises(ValueError, match="must end with the sides"):
        Restorer(Placement.plain((4, 5, 6)), 2, labels=np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(ValueError, match="permutation"):
        Placement((2, 2), (2, 2), (0, 0), (2, 2), (0, 0), (False, False))
    with pytest.raises(ValueError, match="inside the whole"):
        Placement((2, 2), (2, 2), (1, 0), (2, 2), (0, 1), (False, False))
