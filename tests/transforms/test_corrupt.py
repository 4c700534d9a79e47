"""Damages for robustness tests."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from vesalius.transforms.corrupt import CORRUPTIONS, SEVERITIES, corrupt


def scene(batch=3, shape=(64, 48)):
    field = np.random.default_rng(0).normal(size=(batch, 1, *shape))
    field = ndimage.gaussian_filter(field, (0, 0) + (2,) * len(shape))
    return torch.from_numpy((field / field.std()).astype(np.float32))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(64, 48), (6, 30, 37)])
def test_damage_grows_with_severity(name, shape):
    x = scene(shape=shape)
    errors = [float((corrupt(x, name, severity) - x).square().mean()) for severity in SEVERITIES]
    assert errors[0] > 0
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_is_a_function_of_name_severity_seed_and_sample(name):
    x = scene()
    whole = corrupt(x, name, 3)
    assert whole.shape == x.shape
    parts = torch.cat([corrupt(x[k : k + 1], name, 3, first=k) for k in range(3)])
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    assert torch.equal(corrupt(x, name, 3), whole)
    if name in ("noise", "bias", "motion"):
        assert not torch.equal(corrupt(x, name, 3, seed=1), whole)
        twins = corrupt(x[:1].expand(2, -1, -1, -1), name, 3)
        assert not torch.equal(twins[0], twins[1])


def test_jpeg_is_what_pillow_does_to_grey_images():
    grey = scene(1, (64, 64))[0, 0].numpy()
    grey = np.rint((grey - grey.min()) / np.ptp(grey) * 255).astype(np.uint8)
    for severity, quality in zip(SEVERITIES, (50, 30, 18, 10, 5), strict=True):
        file = io.BytesIO()
        Image.fromarray(grey).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file)).astype(float)
        ours = corrupt(torch.from_numpy(grey.astype(np.float32))[None, None], "jpeg", severity)[0, 0].numpy()
        assert np.abs(ours - expected).mean() < 0.35  # rounding to whole grey values alone makes 0.25
        assert np.abs(expected - grey).mean() > 1.0


def test_motion_keeps_the_mean_and_moves_energy_along_y():
    x = torch.zeros(1, 1, 64, 64)
    x[..., 28:36, 28:36] = 1.0
    out = corrupt(x, "motion", 5)
    assert float(out.mean()) == pytest.approx(float(x.mean()), abs=1e-6)
    ghost = (out - x).abs()[0, 0]
    assert float(ghost[:20, 26:38].mean()) > 3 * float(ghost[26:38, :20].mean())


def test_wrong_calls_say_what_is_wrong():
    with pytest.raises(ValueError, match="choose one of noise, blur, contrast, bias, motion, jpeg"):
        corrupt(scene(), "fog", 1)
    with pytest.raises(ValueError, match="from 1 to 5, got 6"):
        corrupt(scene(), "noise", 6)
    with pytest.raises(ValueError, match=r"\(B, C, Y, X\)"):
        corrupt(torch.zeros(4, 4), "noise", 1)
