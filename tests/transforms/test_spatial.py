"""Moving pixels: against SciPy's affine transform, and against what must come back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from vesalius.transforms.spatial import (
    SpatialParams,
    flip,
    invert,
    linear_maps,
    map_boxes,
    map_points,
    sampling_grid,
    smooth_field,
    warp,
    warp_together,
)

SHAPES = [(40, 40), (33, 61), (20, 31, 26)]


def smooth(batch, shape, seed=0, sigma=3.0):
    field = np.random.default_rng(seed).normal(size=(batch, 1, *shape))
    field = ndimage.gaussian_filter(field, (0, 0) + (sigma,) * len(shape))
    return torch.from_numpy((field / field.std()).astype(np.float32))


def drawn(batch, dims, seed=0, *, elastic=0.0, flips=True):
    rng = np.random.default_rng(seed)
    maps = linear_maps(
        rotation=rng.uniform(-0.5, 0.5, (batch, 1 if dims == 2 else 3)),
        scale=rng.uniform(0.85, 1.2, (batch, dims)),
        shear=rng.uniform(-0.1, 0.1, (batch, dims, dims)),
    )
    control = rng.uniform(-elastic, elastic, (batch, dims, *(7,) * dims)) if elastic else None
    mirror = rng.random((batch, dims)) < 0.5 if flips else np.zeros((batch, dims), bool)
    return SpatialParams(maps, rng.uniform(-0.05, 0.05, (batch, dims)), mirror, control)


def by_scipy(values, params, row, order):
    """The same map by ndimage, with the part of the image that is known."""
    shape = np.array(values.shape)
    linear = params.matrix[row] @ np.diag(np.where(params.flip[row], -1, 1))
    centre = (shape - 1) / 2
    offset = centre + params.shift[row] * shape - linear @ centre
    moved = ndimage.affine_transform(values.astype(np.float64), linear, offset=offset, order=order, cval=-9)
    known = ndimage.affine_transform(np.ones(shape), linear, offset=offset, order=1)
    return moved, known > 0.999


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection", "minimum"])
def test_affine_is_scipy_affine_inside(shape, padding):
    image, params = smooth(3, shape), drawn(3, len(shape))
    ours = warp(image, params, padding=padding).numpy()
    for row in range(3):
        expected, known = by_scipy(image[row, 0].numpy(), params, row, 1)
        assert known.mean() > 0.4
        np.testing.assert_allclose(ours[row, 0][known], expected[known], atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_scipy_nearest(shape):
    labels = (smooth(3, shape) > 0).to(torch.int64) * 3
    params = drawn(3, len(shape))
    ours = warp(labels, params, mode="nearest")
    assert ours.dtype == torch.int64
    assert set(ours.unique().tolist()) <= {0, 3}
    for row in range(3):
        expected, known = by_scipy(labels[row, 0].numpy(), params, row, 0)
        assert (ours[row, 0].numpy()[known] == expected[known]).mean() > 0.9995  # ties on the half pixel


@pytest.mark.parametrize("padding", ["zeros", "minimum", "border"])
def test_what_comes_from_outside(padding):
    image = torch.full((1, 1, 10, 10), 5.0)
    image[0, 0, 5, 5] = 2.0
    label = torch.ones(1, 1, 10, 10, dtype=torch.int64)
    params = SpatialParams(np.eye(2)[None], np.array([[0.5, 0.0]]), np.zeros((1, 2), bool))
    moved, moved_label = warp_together(image, label, params, padding=padding, label_fill=7)
    assert float(moved[0, 0, 9, 0]) == {"zeros": 0.0, "minimum": 2.0, "border": 5.0}[padding]
    assert int(moved_label[0, 0, 9, 0]) == {"zeros": 7, "minimum": 7, "border": 1}[padding]
    assert float(moved[0, 0, 0, 5]) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_to_do_gives_back_the_very_tensor(dims):
    image = torch.rand(4, 2, *(9,) * dims)
    assert warp(image, SpatialParams.identity(4, dims)) is image
    zeros = SpatialParams(np.tile(np.eye(dims), (4, 1, 1)), np.zeros((4, dims)), np.zeros((4, dims), bool),
                          np.zeros((4, dims, *(5,) * dims)))  # fmt: skip
    assert not zeros.warped.any()
    assert warp(image, zeros) is image


def test_samples_that_do_not_move_keep_their_bits():
    image = smooth(4, (20, 30))
    params = drawn(4, 2, flips=False)
    matrix, shift = params.matrix.copy(), params.shift.copy()
    matrix[2], shift[2] = np.eye(2), 0
    moved = warp(image, SpatialParams(matrix, shift, params.flip))
    assert torch.equal(moved[2], image[2])
    assert not torch.equal(moved[1], image[1])


@pytest.mark.parametrize("dims", [2, 3])
def test_flips_are_exact_and_undo_themselves(dims):
    image = torch.rand(5, 2, *(6, 7, 8)[:dims])
    which = np.random.default_rng(1).random((5, dims)) < 0.5
    params = SpatialParams(np.tile(np.eye(dims), (5, 1, 1)), np.zeros((5, dims)), which)
    moved = warp(image, params)
    for row in range(5):
        axes = [axis + 1 for axis in range(dims) if which[row, axis]]
        np.testing.assert_array_equal(moved[row].numpy(), np.flip(image[row].numpy(), axes))
    assert torch.equal(warp(moved, params), image)
    assert torch.equal(invert(moved, params), image)
    assert torch.equal(flip(image, np.zeros((5, dims), bool)), image)


def test_an_interpolated_flip_is_the_flip_of_the_rest():
    image = smooth(1, (21, 34))
    plain = drawn(1, 2, flips=False)
    for axis in range(2):
        which = np.array([[axis == 0, axis == 1]])
        both = warp(image, SpatialParams(plain.matrix, plain.shift, which))
        torch.testing.assert_close(both, warp(image, plain).flip(axis + 2), atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_image_and_label_move_together(shape):
    image = smooth(4, shape)
    label = (image > 0.5).to(torch.uint8)
    params = drawn(4, len(shape), elastic=0.03)
    moved, moved_label = warp_together(image, label, params)
    assert moved_label.dtype == torch.uint8
    clear = (moved - 0.5).abs() > 0.5  # more than the image changes over one pixel: both interpolations must agree
    assert torch.equal((moved > 0.5)[clear], moved_label[clear].bool())
    assert 0.1 < float(moved_label[clear].float().mean()) < 0.9
    still = (image > 0.5)[clear] != moved_label[clear].bool()
    assert float(still.float().mean()) > 0.05  # the label did move


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (40, 36, 44)])
@pytest.mark.parametrize("elastic", [0.0, 0.02])
def test_inverting_comes_back_on_smooth_images(shape, elastic):
    image = smooth(3, shape, sigma=5.0)
    params = drawn(3, len(shape), elastic=elastic)
    there = warp(image, params)
    back = invert(there, params)
    stayed = invert(warp(torch.ones_like(image), params, padding="zeros"), params, padding="zeros") > 0.99
    assert float(stayed.float().mean()) > 0.5
    error = (back - image)[stayed].abs()
    assert float(error.max()) < 0.12
    assert float(error.mean()) < 0.02
    assert float((there - image)[stayed].abs().mean()) > 0.3  # it did move


def test_points_follow_the_image():
    shape = (60, 90)
    rng = np.random.default_rng(2)
    points = rng.uniform(20, 40, (3, 4, 2)) + np.array([0, 15])
    params = drawn(3, 2, elastic=0.02)
    moved = map_points(torch.from_numpy(points), params, shape).numpy()
    rows, columns = np.mgrid[:60, :90]
    for row in range(3):
        for number in range(4):
            y, x = points[row, number]
            blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8).astype(np.float32)
            seen = warp(torch.from_numpy(blob)[None, None], params[row : row + 1])[0, 0].numpy()
            seen = np.where(seen > 0.3, seen, 0)
            centre = ndimage.center_of_mass(seen)
            np.testing.assert_allclose(moved[row, number], centre, atol=0.25)


def test_boxes_contain_their_moved_corners():
    boxes = torch.tensor([[[4.0, 6.0, 10.0, 20.0]], [[0.0, 0.0, 5.0, 5.0]]])
    mirror = np.array([[False, True], [False, False]])
    params = SpatialParams(np.tile(np.eye(2), (2, 1, 1)), np.zeros((2, 2)), mirror)
    np.testing.assert_allclose(map_boxes(boxes, params, (30, 40))[0, 0], [4, 19, 10, 33], atol=1e-5)
    np.testing.assert_allclose(map_boxes(boxes, params, (30, 40))[1], boxes[1], atol=1e-5)
    turned = map_boxes(boxes, drawn(2, 2, flips=False), (30, 40))
    assert (turned[..., 2:] > turned[..., :2]).all()


def test_rotation_is_a_rotation_of_pixels_not_of_a_unit_square():
    """A disc in a 40 x 100 image stays a disc; a normalised rotation would make an ellipse of it."""
    rows, columns = np.mgrid[:40, :100]
    disc = (np.hypot(rows - 19.5, columns - 49.5) < 12).astype(np.float32)
    turned = warp(torch.from_numpy(disc)[None, None], SpatialParams(linear_maps(rotation=[0.7]), np.zeros((1, 2)),
                  np.zeros((1, 2), bool)))[0, 0].numpy()  # fmt: skip
    assert np.abs(turned - disc).mean() < 0.01


def test_rotation_directions():
    corner = torch.zeros(1, 1, 21, 21)
    corner[0, 0, 15, 10] = 1.0  # on the positive y axis
    quarter = warp(corner, SpatialParams(linear_maps(rotation=[np.pi / 2]), np.zeros((1, 2)), np.zeros((1, 2), bool)))
    assert np.unravel_index(int(quarter.argmax()), (21, 21)) == (10, 15)  # from y towards x
    larger = warp(corner, SpatialParams(linear_maps(rotation=[0.0], scale=[[2.0, 1.0]]), np.zeros((1, 2)),
                  np.zeros((1, 2), bool)))  # fmt: skip
    assert np.unravel_index(int(larger.argmax()), (21, 21)) == (20, 10)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_three_angles_make_a_proper_rotation(angles):
    matrix = linear_maps(rotation=[angles])[0]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    # Content turns about z (y to x), then y (z to x), then x (z to y), in our axis order; M is the inverse of that.
    x, y, z = np.eye(3)[::-1]
    about = [
        Rotation.from_rotvec(angle * np.cross(a, b)) for angle, a, b in zip(angles, (y, z, z), (x, x, y), strict=True)
    ]
    expected = (about[0].inv() * about[1].inv() * about[2].inv()).as_matrix()
    np.testing.assert_allclose(matrix, expected, atol=1e-9)


def test_thick_slices_turn_in_physical_space():
    matrix = linear_maps(rotation=[[0.0, 0.0, np.pi / 2]], spacing=[4.0, 1.0, 1.0])[0]
    # A quarter turn in the (z, y) plane: one slice of 4 mm becomes four pixels of 1 mm.
    np.testing.assert_allclose(np.abs(matrix), [[0, 0.25, 0], [4, 0, 0], [0, 0, 1]], atol=1e-12)


def test_smooth_field_is_constant_for_constant_control_points():
    field = smooth_field(torch.full((2, 3, 7, 6), 1.5), (20, 31))
    torch.testing.assert_close(field, torch.full((2, 3, 20, 31), 1.5), atol=1e-6, rtol=0)


def test_the_grid_does_not_depend_on_the_rest_of_the_batch():
    params = drawn(8, 2, elastic=0.03)
    whole = sampling_grid(params, (28, 28))
    parts = torch.cat([sampling_grid(params[k : k + 1], (28, 28)) for k in range(8)])
    assert torch.equal(whole, parts)


def test_half_precision_images_come_back_in_their_type():
    image = smooth(2, (16, 16))
    moved = warp(image.to(torch.bfloat16), drawn(2, 2))
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved.float(), warp(image, drawn(2, 2)), atol=0.03, rtol=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: warp(torch.zeros(1, 4, 4), SpatialParams.identity(1, 2)), r"axes \(B, C, Y, X\)"),
        (lambda: warp(torch.zeros(2, 1, 4, 4), SpatialParams.identity(1, 2)), "1 spatial maps for a batch of 2"),
        (lambda: warp(torch.zeros(1, 1, 4, 4), SpatialParams.identity(1, 2), padding="wrap"), "border, zeros"),
        (lambda: SpatialParams(np.eye(2)[None], np.zeros((2, 2)), np.zeros((2, 2), bool)), "must agree"),
        (lambda: SpatialParams(np.eye(2)[None], np.zeros((1, 2)), np.zeros((1, 2), bool), np.zeros((1, 3, 5, 5))),
         "elastic must be"),
        (lambda: warp_together(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), SpatialParams.identity(1, 2)),
         "same B and sides"),
        (lambda: map_points(torch.zeros(1, 4, 3), SpatialParams.identity(1, 2), (4, 4)), r"\(B, N, 2\)"),
        (lambda: map_boxes(torch.zeros(1, 4, 3), SpatialParams.identity(1, 2), (4, 4)), r"\(B, N, 4\)"),
    ],
)  # fmt: skip
def test_wrong_calls_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
