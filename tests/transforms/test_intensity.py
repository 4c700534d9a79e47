"""Grey values, against NumPy, SciPy and scikit-image sample by sample."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from vesalius.transforms import intensity
from vesalius.transforms.noise import normal

SHAPES = [(1, 24, 31), (3, 16, 17), (2, 10, 12, 14)]


@pytest.fixture(params=SHAPES, ids=str)
def batch(request):
    values = np.random.default_rng(0).normal(3, 2, (4, *request.param))
    return torch.from_numpy(
        ndimage.gaussian_filter(values, (0, 0) + (1,) * (len(request.param) - 1)).astype(np.float32)
    )


def rows(x):
    return list(x.double().numpy())


def close(ours, expected, atol=1e-4):
    np.testing.assert_allclose(ours.numpy(), np.stack(list(expected)), atol=atol)


AMOUNTS = np.array([0.5, -0.3, 0.0, 1.7])
FACTORS = np.array([0.5, 1.3, 1.0, 2.0])


def test_statistics(batch):
    close(intensity.mean_of(batch).flatten(), [r.mean() for r in rows(batch)])
    close(intensity.deviation_of(batch).flatten(), [r.std() for r in rows(batch)])
    low, high = intensity.range_of(batch)
    close(low.flatten(), [r.min() for r in rows(batch)])
    close(high.flatten(), [r.max() for r in rows(batch)])
    assert low.shape == (4, *(1,) * (batch.ndim - 1))


def test_means_of_large_offsets_are_exact_to_the_last_bit():
    x = torch.rand(2, 1, 300, 401) + 10000
    exact = x.double().mean(dim=(1, 2, 3)).float()
    assert torch.equal(intensity.mean_of(x).flatten(), exact)


def test_brightness_and_contrast(batch):
    close(intensity.brightness(batch, AMOUNTS), [r + a * r.std() for r, a in zip(rows(batch), AMOUNTS, strict=True)])
    close(intensity.contrast(batch, FACTORS),
          [(r - r.mean()) * f + r.mean() for r, f in zip(rows(batch), FACTORS, strict=True)])  # fmt: skip


def test_gamma_is_scikit_image_on_the_unit_range(batch):
    from skimage.exposure import adjust_gamma

    expected = [adjust_gamma((r - r.min()) / np.ptp(r), f) * np.ptp(r) + r.min()
                for r, f in zip(rows(batch), FACTORS, strict=True)]  # fmt: skip
    close(intensity.gamma(batch, FACTORS), expected)
    kept = intensity.gamma(batch, FACTORS, keep_moments=True)
    torch.testing.assert_close(intensity.mean_of(kept), intensity.mean_of(batch), atol=1e-4, rtol=0)
    torch.testing.assert_close(intensity.deviation_of(kept), intensity.deviation_of(batch), atol=1e-4, rtol=0)


def test_blank_samples_stay_finite():
    blank = torch.full((2, 1, 6, 6), 4.0)
    ones = np.ones(2)
    for out in (
        intensity.gamma(blank, 2 * ones), intensity.gamma(blank, 2 * ones, keep_moments=True),
        intensity.brightness(blank, ones), intensity.contrast(blank, 2 * ones), intensity.invert(blank),
        intensity.bias_field(blank, np.ones((2, 1, 5, 5))), intensity.blur(blank, ones),
        intensity.add_noise(blank, ones, np.arange(2)),
    ):  # fmt: skip
        torch.testing.assert_close(out, blank)


def test_invert_twice_is_the_same(batch):
    once = intensity.invert(batch)
    close(once, [r.min() + r.max() - r for r in rows(batch)])
    torch.testing.assert_close(intensity.invert(once), batch, atol=1e-5, rtol=0)


def test_colour_changes_each_channel_alone():
    x = torch.rand(2, 3, 8, 8)
    gain, shift = np.array([[1.0, 1.2, 1.0], [1.0, 1.0, 1.0]]), np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    out = intensity.colour(x, gain, shift)
    one = x[0].numpy()
    np.testing.assert_allclose(out[0, 1], (one[1] - one.mean()) * 1.2 + one.mean(), atol=1e-5)
    np.testing.assert_allclose(out[0, 2], one[2] + 0.5 * one.std(), atol=1e-5)
    torch.testing.assert_close(out[0, 0], x[0, 0])
    torch.testing.assert_close(out[1], x[1])


def test_blur_is_scipy_gaussian(batch):
    sigmas = np.array([0.5, 1.2, 0.0, 3.0])
    expected = [np.stack([ndimage.gaussian_filter(channel, s, mode="nearest") for channel in r])
                for r, s in zip(rows(batch), sigmas, strict=True)]  # fmt: skip
    close(intensity.blur(batch, sigmas), expected)
    assert torch.equal(intensity.blur(batch, sigmas)[2], batch[2])


def test_blur_may_differ_per_axis():
    x = torch.rand(2, 1, 20, 20)
    sigmas = np.array([[2.0, 0.0], [0.7, 1.5]])
    expected = [ndimage.gaussian_filter(r[0], s, mode="nearest")[None] for r, s in zip(rows(x), sigmas, strict=True)]
    close(intensity.blur(x, sigmas), expected)


def test_bias_field_is_smooth_positive_and_spares_the_minimum(batch):
    control = np.random.default_rng(1).uniform(-0.5, 0.5, (4, 1, *(5,) * (batch.ndim - 2)))
    control[2] = 0
    out = intensity.bias_field(batch, control)
    low, _ = intensity.range_of(batch)
    ratio = ((out - low) / (batch - low)).numpy()
    ratio = ratio[:, :, 2:]
    assert np.nanmin(ratio) > np.exp(-0.5) - 1e-3
    assert np.nanmax(ratio) < np.exp(0.5) + 1e-3
    assert np.nanmax(np.abs(np.diff(ratio[0, 0], axis=-1))) < 0.15
    torch.testing.assert_close(out[2], batch[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(intensity.range_of(out)[0], low, atol=1e-5, rtol=0)


def test_noise_is_the_keyed_noise_times_the_deviation(batch):
    keys = np.array([5, 6, 7, 8])
    out = intensity.add_noise(batch, AMOUNTS, keys)
    drawn = normal(torch.from_numpy(keys), batch.shape[1:]).double().numpy()
    close(out, [r + n * a * r.std() for r, n, a in zip(rows(batch), drawn, AMOUNTS, strict=True)])


def test_low_resolution_is_pillow_down_and_up():
    from PIL import Image

    x = torch.rand(3, 1, 40, 30)
    factors = np.array([1.0, 2.0, 3.3])
    out = intensity.low_resolution(x, factors).numpy()
    for row, factor in enumerate(factors):
        few = (round(30 / factor), round(40 / factor))
        how = Image.Resampling.BILINEAR
        expected = Image.fromarray(x[row, 0].numpy(), mode="F").resize(few, how).resize((30, 40), how)
        np.testing.assert_allclose(out[row, 0], np.asarray(expected), atol=1e-5)
    assert torch.equal(torch.from_numpy(out[0]), x[0])
    only_x = intensity.low_resolution(x, factors, axes=(1,))
    torch.testing.assert_close(only_x.mean(-1), x.mean(-1), atol=0.05, rtol=0)
    assert float((only_x.mean(-2) - x.mean(-2)).abs().max()) < float(x.std()) / 2


def test_cutout_replaces_exactly_its_boxes():
    x = torch.rand(2, 2, 10, 20)
    lower = np.array([[[0.1, 0.2], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    upper = np.array([[[0.3, 0.4], [1.0, 0.6]], [[0.0, 0.0], [0.0, 0.0]]])
    out = intensity.cutout(x, lower, upper).numpy()
    mask = np.zeros((10, 20), bool)
    mask[1:3, 4:8] = mask[5:10, 10:12] = True
    mean = x[0].double().numpy().mean()
    np.testing.assert_allclose(out[0], np.where(mask, mean, x[0].numpy()), atol=1e-6)
    assert torch.equal(torch.from_numpy(out[1]), x[1])


def test_a_sample_has_the_same_bits_alone_and_among_others(batch):
    control = np.random.default_rng(1).uniform(-0.5, 0.5, (4, 1, *(5,) * (batch.ndim - 2)))
    calls = [
        lambda x, k: intensity.brightness(x, AMOUNTS[k]), lambda x, k: intensity.contrast(x, FACTORS[k]),
        lambda x, k: intensity.gamma(x, FACTORS[k]), lambda x, k: intensity.blur(x, FACTORS[k]),
        lambda x, k: intensity.low_resolution(x, FACTORS[k] + 1), lambda x, k: intensity.bias_field(x, control[k]),
        lambda x, k: intensity.add_noise(x, FACTORS[k], np.arange(4)[k]),
    ]  # fmt: skip
    for call in calls:
        whole = call(batch, slice(0, 4))
        for k in range(4):
            assert torch.equal(whole[k : k + 1], call(batch[k : k + 1], slice(k, k + 1)))


def test_a_large_single_sample_has_the_bits_it_has_in_a_batch():
    """A sum over a batch of one is split between threads; ours must not be."""
    x = torch.rand(2, 1, 400, 401)
    assert torch.equal(intensity.mean_of(x)[:1], intensity.mean_of(x[:1]))
    assert torch.equal(intensity.brightness(x, [1, 2])[:1], intensity.brightness(x[:1], [1]))


def test_wrong_numbers_of_parameters_are_refused():
    with pytest.raises(ValueError, match="3 parameters for a batch of 2"):
        intensity.brightness(torch.zeros(2, 1, 4, 4), [1, 2, 3])
    with pytest.raises(ValueError, match=r"sigma must be \(2,\) or \(2, 2\)"):
        intensity.blur(torch.zeros(2, 1, 4, 4), [1.0])
    with pytest.raises(ValueError, match="not negative"):
        intensity.blur(torch.zeros(2, 1, 4, 4), [1.0, -1.0])
