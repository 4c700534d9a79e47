"""Counter-based noise: what it must be, and that it is noise."""

import numpy as np
import pytest
import torch
from scipy import stats

from vesalius.transforms.noise import hashed, normal, uniform

MASK = (1 << 64) - 1


def splitmix(z):
    """The finaliser of SplitMix64 in plain Python integers."""
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, -1, 123456789, -(1 << 63), (1 << 63) - 1])
def test_the_hash_is_splitmix64(key):
    ours = hashed(torch.tensor([key]), 5)[0].tolist()
    start = splitmix(key + 0x9E3779B97F4A7C15)
    expected = [splitmix(start + counter * 0x9E3779B97F4A7C15) for counter in range(1, 6)]
    assert [value & MASK for value in ours] == expected


def test_known_answers_of_the_published_generator():
    # First outputs of SplitMix64 seeded with 0, as in its public test vectors.
    assert [splitmix(k * 0x9E3779B97F4A7C15) for k in (1, 2, 3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


def test_rows_depend_on_their_key_alone():
    keys = torch.arange(50) * 7 - 100
    whole = normal(keys, (3, 11, 7))
    assert whole.shape == (50, 3, 11, 7)
    for pieces in (1, 7, 50):
        parts = torch.cat([normal(part, (3, 11, 7)) for part in keys.split(pieces)])
        assert torch.equal(parts, whole)
    assert torch.equal(normal(keys.flip(0), (3, 11, 7)), whole.flip(0))
    assert not torch.equal(whole[0], whole[1])


def test_large_samples_are_made_in_blocks_with_the_same_result():
    keys = torch.tensor([5, 6, 7])
    whole = normal(keys, (1, 300, 301))
    assert torch.equal(whole[1:2], normal(keys[1:2], (1, 300, 301)))


def test_the_distribution_is_normal():
    values = normal(torch.arange(40), (100, 101)).flatten().double().numpy()
    error = 1 / np.sqrt(values.size)
    assert abs(values.mean()) < 4 * error
    assert abs(values.var() - 1) < 4 * np.sqrt(2) * error
    assert abs(stats.skew(values)) < 4 * np.sqrt(6) * error
    assert abs(stats.kurtosis(values)) < 4 * np.sqrt(24) * error
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert 4.0 < np.abs(values).max() < 5.78


@pytest.mark.parametrize("spread", [1, 2, 1 << 32])
def test_neighbouring_keys_and_neighbouring_pixels_are_independent(spread):
    values = normal(torch.arange(200) * spread, (40, 50)).double().numpy()
    limit = 4.5 / np.sqrt(values.size)
    standard = (values - values.mean()) / values.std()
    for product in (
        standard[1:] * standard[:-1],
        standard[2:] * standard[:-2],
        standard[:, 1:] * standard[:, :-1],
        standard[:, :, 1:] * standard[:, :, :-1],
        standard[:, 20:] * standard[:, :20],  # both numbers of one Box and Muller pair
        standard[1:] ** 2 * standard[:-1],
    ):
        assert abs(product.mean()) < 3 * limit
    spectrum = np.abs(np.fft.fft(values.reshape(200, -1), axis=1)) ** 2 / 2000
    assert stats.kstest(spectrum[:, 1:1000].flatten(), "expon").pvalue > 1e-3


def test_uniform_numbers():
    values = uniform(torch.arange(30), (1000,)).double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values.flatten(), "uniform").pvalue > 1e-3


def test_wrong_keys_are_refused():
    with pytest.raises(ValueError, match="int64 of shape"):
        normal(torch.zeros(3), (4,))
    with pytest.raises(ValueError, match="int64 of shape"):
        normal(torch.zeros(3, 1, dtype=torch.int64), (4,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_gpu_makes_the_same_noise():
    keys = torch.arange(8)
    torch.testing.assert_close(normal(keys.cuda(), (64, 65)).cpu(), normal(keys, (64, 65)), atol=2e-5, rtol=1e-5)
