"""Resizing against Pillow, scikit-image, SciPy and what must hold for every size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import interpolate, ndimage

from vesalius.transforms.resample import (
    apply_matrices,
    interpolation_matrix,
    resample_to_spacing,
    resize,
    spaced_shape,
    spline_matrix,
)


def smooth(shape, seed=0, sigma=2.0):
    field = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(field, sigma).astype(np.float32) * 10


def by_pillow(image, size, how):
    return np.asarray(Image.fromarray(image, mode="F").resize(size[::-1], how))


@pytest.mark.parametrize("size", [(17, 40), (30, 33), (64, 20), (7, 5), (45, 61), (90, 130)])
def test_linear_is_pillow_bilinear_in_both_directions(size):
    image = np.random.default_rng(1).normal(size=(45, 61)).astype(np.float32)
    ours = resize(torch.from_numpy(image)[None, None], size)[0, 0].numpy()
    np.testing.assert_allclose(ours, by_pillow(image, size, Image.Resampling.BILINEAR), atol=2e-5)


@pytest.mark.parametrize("size", [(15, 20), (5, 10), (9, 6)])
def test_area_is_pillow_box_for_whole_ratios(size):
    image = np.random.default_rng(2).normal(size=(45, 60)).astype(np.float32)
    ours = resize(torch.from_numpy(image)[None, None], size, kernel="area")[0, 0].numpy()
    np.testing.assert_allclose(ours, by_pillow(image, size, Image.Resampling.BOX), atol=2e-5)


def test_area_overlap_worked_by_hand():
    # Three pixels into two: each new pixel is one whole old pixel and half of the middle one.
    np.testing.assert_allclose(
        interpolation_matrix(3, 2, kernel="area"), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-7
    )


def test_without_antialias_it_is_plain_interpolation_as_in_scipy():
    image = smooth((40, 50))
    y = (np.arange(13) + 0.5) * 40 / 13 - 0.5
    x = (np.arange(71) + 0.5) * 50 / 71 - 0.5
    expected = ndimage.map_coordinates(
        image.astype(np.float64), np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest"
    )
    ours = resize(torch.from_numpy(image)[None, None], (13, 71), antialias=False)[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_volumes_upsample_as_scikit_image_does():
    from skimage.transform import resize as sk_resize

    volume = smooth((9, 14, 11), sigma=1.0)
    expected = sk_resize(volume, (18, 20, 33), order=1, mode="edge", anti_aliasing=False)
    ours = resize(torch.from_numpy(volume)[None, None], (18, 20, 33))[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_antialias_keeps_what_plain_sampling_loses():
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1.0
    kept = resize(stripes, (16, 16))
    lost = resize(stripes, (16, 16), kernel="nearest")
    assert float((kept - 0.5).abs().max()) < 0.1
    assert float((lost - 0.5).abs().min()) == 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["linear", "area", "nearest"]), st.booleans())
def test_every_matrix_averages_and_is_mirror_symmetric(source, target, kernel, antialias):
    matrix = interpolation_matrix(source, target, kernel=kernel, antialias=antialias)
    assert matrix.shape == (target, source)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    if kernel != "nearest":  # ties of "nearest" go to the right
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(1, 5), st.booleans())
def test_a_ramp_stays_a_ramp_inside(few, times, enlarge):
    # Other ratios sample the triangle at uneven places, so a ramp is only nearly one (in Pillow as well).
    source, target = (few, few * times) if enlarge else (few * times, few)
    moved = interpolation_matrix(source, target) @ ((np.arange(source) + 0.5) / source)
    expected = (np.arange(target) + 0.5) / target
    margin = int(np.ceil(max(1.0, target / source)))
    np.testing.assert_allclose(moved[margin:-margin], expected[margin:-margin], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=4, max_size=6).filter(lambda sides: len(sides) % 2 == 0))
def test_a_sample_has_the_same_bits_alone_and_in_a_batch(sides):
    dims = len(sides) // 2
    x = torch.from_numpy(np.random.default_rng(sum(sides)).normal(size=(5, 2, *sides[:dims])).astype(np.float32))
    whole = resize(x, sides[dims:])
    for k in range(5):
        assert torch.equal(resize(x[k : k + 1].clone(), sides[dims:]), whole[k : k + 1])


def test_banded_application_is_the_matrix_product():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2, 3, 9, 10, 11)).astype(np.float32)
    full = [
        rng.normal(size=(n, m)).astype(np.float32) * (rng.random((n, m)) < 0.4) for n, m in ((4, 9), (12, 10), (5, 11))
    ]
    full[0][1] = 0  # a row that only fills
    expected = np.einsum("bczyx,kz,ly,mx->bcklm", x, *full)
    np.testing.assert_allclose(apply_matrices(torch.from_numpy(x), full).numpy(), expected, atol=1e-4)
    alone = apply_matrices(torch.from_numpy(x), [None, full[1], None]).numpy()
    np.testing.assert_allclose(alone, np.einsum("bczyx,ly->bczlx", x, full[1]), atol=1e-4)


def test_unchanged_axes_are_not_touched_at_all():
    image = torch.rand(2, 3, 8, 9)
    assert torch.equal(resize(image, (8, 9)), image)
    half = resize(image, (8, 5))
    torch.testing.assert_close(half[:, :, 3], resize(image[:, :, 3:4], (1, 5))[:, :, 0], atol=1e-6, rtol=0)


def test_spline_is_scipy_bspline():
    control = np.random.default_rng(3).normal(size=8)
    knots = np.arange(-3, 9) / 5.0
    expected = interpolate.BSpline(knots, control, 3)((np.arange(37) + 0.5) / 37)
    np.testing.assert_allclose(spline_matrix(37, 5) @ control, expected, atol=1e-6)


def test_spacing_decides_the_shape_and_keeps_the_extent():
    assert spaced_shape((10, 100, 200), (5.0, 0.5, 0.25), (1.0, 1.0, 1.0)) == (50, 50, 50)
    assert spaced_shape((1, 3), (1.0, 1.0), (100.0, 1.0)) == (1, 3)
    volume = torch.from_numpy(smooth((10, 20, 30)))[None, None]
    moved = resample_to_spacing(volume, (3.0, 1.0, 1.0), (1.0, 1.0, 2.0))
    assert moved.shape == (1, 1, 30, 20, 15)
    assert float(moved.mean()) == pytest.approx(float(volume.mean()), abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resize(torch.zeros(1, 1, 4, 4), (4,)), "one number per spatial axis"),
        (lambda: resize(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), (4, 4)), "uint8"),
        (lambda: interpolation_matrix(4, 2, kernel="cubic"), "linear, area, nearest"),
        (lambda: interpolation_matrix(0, 2), "0 -> 2"),
        (lambda: spline_matrix(4, 0), "4 and 0"),
        (lambda: spaced_shape((4, 4), (0.0, 1.0), (1.0, 1.0)), "positive mm"),
        (lambda: spaced_shape((4, 4), (1.0,), (1.0, 1.0)), "must agree"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
