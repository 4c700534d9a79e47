"""One spec for training, serving and export."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vesalius.core.errors import DataError, PlanError
from vesalius.transforms.preprocess import DEFAULTS, Preprocess

GREY = {"dims": 2, "size": [32, 32]}


def build(**changes):
    return Preprocess.from_spec({**GREY, **changes})


SPECS = {
    "thumbnail": ({"dims": 2, "size": [28, 28], "scale": {"low": 0, "high": 255},
                   "normalise": {"kind": "fixed", "mean": [0.5], "std": [0.5]}}, (1, 28, 28)),
    "padded colour": ({"dims": 2, "size": [28, 36], "channels": 3, "fit": "pad", "storage": "uint8",
                       "normalise": {"kind": "fixed", "mean": [1, 2, 3], "std": [4, 5, 6]}}, (1, 60, 47)),
    "ct": ({"dims": 3, "size": [8, 12, 14], "storage": "int16", "fit": "crop", "crop": "center_square",
            "window": [-100, 150], "normalise": {"kind": "per_image"}}, (1, 10, 21, 33)),
    "float": ({"dims": 3, "size": [8, 12, 14], "storage": "float32", "fit": "place"}, (2, 10, 9, 33)),
    "sixteen bits": ({"dims": 2, "size": [20, 20], "storage": "uint16", "scale": {"low": -5, "high": 255}},
                     (3, 31, 22)),
}  # fmt: skip
SPECS["float"][0]["channels"] = 2


@pytest.fixture(params=list(SPECS))
def module_and_batch(request):
    spec, shape = SPECS[request.param]
    values = np.random.default_rng(4).uniform(-20, 255, (5, *shape)).astype(np.float32)
    return Preprocess.from_spec(spec), torch.from_numpy(values)


def test_storing_and_finishing_is_forward_bit_for_bit(module_and_batch):
    module, batch = module_and_batch
    stored = torch.stack([module.store(image) for image in batch])
    assert stored.dtype == module.storage
    assert stored.shape[1:] == (module.channels, *module.size)
    assert torch.equal(module.finish(stored), module(batch))
    assert module(batch).dtype == torch.float32


def test_a_stack_is_stored_as_its_images_are(module_and_batch):
    module, batch = module_and_batch
    assert torch.equal(module.store_stack(batch.numpy()), torch.stack([module.store(image) for image in batch]))


def test_the_exported_graph_does_the_same_for_any_batch(module_and_batch):
    module, batch = module_and_batch
    exported = torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for count in (5, 3, 1):
        torch.testing.assert_close(exported(batch[:count]), module(batch[:count]), rtol=0, atol=1e-6)


def test_the_spec_survives_json(module_and_batch):
    module, batch = module_and_batch
    again = Preprocess.from_spec(json.loads(json.dumps(module.spec)))
    assert again.spec == module.spec
    assert torch.equal(again(batch), module(batch))
    again.spec["normalise"]["kind"] = "broken"
    assert again.spec == module.spec  # what is handed out is a copy
    assert set(module.spec) == {"dims", "size", *DEFAULTS}
    assert not module.state_dict()  # the spec is the only record


def test_medmnist_bytes_are_kept_exactly():
    stack = np.random.default_rng(5).integers(0, 256, (7, 1, 28, 28), dtype=np.uint8)
    module = build(size=[28, 28], scale={"low": 0, "high": 255})
    stored = module.store_stack(stack)
    assert stored.dtype == torch.uint8
    np.testing.assert_array_equal(stored.numpy(), stack)
    np.testing.assert_array_equal(torch.stack([module.store(image) for image in stack]).numpy(), stack)
    np.testing.assert_allclose(module.finish(stored).numpy(), stack / 255.0, atol=1e-7)
    stack.setflags(write=False)  # a memory map opened for reading
    np.testing.assert_array_equal(module.store_stack(stack).numpy(), stack)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float64, np.bool_, ">u2"])
def test_any_number_type_of_a_file_is_taken(dtype):
    pixels = (np.arange(64).reshape(1, 8, 8) % 2).astype(dtype)
    stored = build(size=[8, 8], storage="uint16").store(pixels)
    np.testing.assert_array_equal(stored.numpy(), pixels.astype(np.uint16))


def test_resizing_bytes_agrees_with_pillow():
    image = np.random.default_rng(6).integers(0, 256, (1, 90, 70), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image[0]).resize((24, 40), Image.Resampling.BILINEAR))
    ours = build(size=[40, 24]).store(image)[0].numpy()
    assert np.abs(ours.astype(int) - expected).max() <= 1  # Pillow rounds after each axis


def test_channels():
    grey = np.random.default_rng(7).integers(0, 256, (1, 6, 6), dtype=np.uint8)
    three = build(size=[6, 6], channels=3).store(grey).numpy()
    np.testing.assert_array_equal(three, np.repeat(grey, 3, axis=0))
    colour = np.random.default_rng(8).integers(0, 256, (3, 6, 6), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour.transpose(1, 2, 0)).convert("L")).astype(int)
    assert np.abs(build(size=[6, 6]).store(colour)[0].numpy().astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="2 channels, the plan has 3"):
        build(channels=3).store(np.zeros((2, 6, 6)))


def test_pad_keeps_the_aspect_and_fills_with_the_smallest_border_value():
    tall = np.full((1, 40, 20), 90.0, np.float32)
    tall[0, :, :4] = 30.0
    tall[0, 20, 10] = 5.0  # dark, but not on the border
    stored = build(size=[20, 20], fit="pad", storage="float32").store(tall)[0].numpy()
    np.testing.assert_allclose(stored[:, :5], 30.0, atol=1e-4)
    np.testing.assert_array_equal(stored[:, :5], stored[:, 15:])
    assert stored[3, 12] == pytest.approx(90.0, abs=1e-3)


def test_crop_keeps_the_aspect_and_the_middle():
    ramp = np.tile(np.arange(80, dtype=np.float32), (1, 40, 1))
    stored = build(size=[20, 20], fit="crop", storage="float32").store(ramp)[0].numpy()
    # Two old pixels per new one; the middle 40 of 80 columns remain: 20..59.
    np.testing.assert_allclose(stored[5], np.arange(20) * 2 + 20.5, atol=1e-3)


def test_place_does_not_rescale():
    pixels = np.random.default_rng(9).normal(size=(1, 30, 10)).astype(np.float32)
    stored = build(size=[20, 20], fit="place", storage="float32").store(pixels)[0].numpy()
    np.testing.assert_array_equal(stored[:, 5:15], pixels[0, 5:25])
    assert (stored[:, :5] == pixels[0, 5:25][[0, -1], :].min(initial=pixels[0, 5:25][:, [0, -1]].min())).all()


def test_centre_square():
    pixels = np.random.default_rng(10).normal(size=(1, 12, 20)).astype(np.float32)
    stored = build(size=[12, 12], crop="center_square", storage="float32").store(pixels)[0].numpy()
    np.testing.assert_array_equal(stored, pixels[0, :, 4:16])
    tall = np.ascontiguousarray(pixels.transpose(0, 2, 1))
    stored = build(size=[12, 12], crop="center_square", storage="float32").store(tall)[0].numpy()
    np.testing.assert_array_equal(stored, tall[0, 4:16])


def test_foreground_is_found_and_a_blank_image_is_left_whole():
    pixels = np.full((1, 10, 30, 30), -1000.0, np.float32)
    pixels[0, 2:7, 10:25, 5:9] = 50.0
    module = Preprocess.from_spec({"dims": 3, "size": [4, 4, 4], "crop": "foreground", "storage": "float32"})
    assert module.prepare(pixels).shape == (1, 5, 15, 4)
    np.testing.assert_allclose(module.store(pixels).numpy(), 50.0)
    assert module.prepare(np.zeros((1, 3, 4, 5))).shape == (1, 3, 4, 5)
    low = Preprocess.from_spec({**module.spec, "threshold": 60})
    assert low.prepare(pixels).shape == pixels.shape
    np.testing.assert_allclose(module.store_stack(pixels[None]).numpy(), 50.0)


def test_spacing_is_used_where_an_image_knows_it():
    module = Preprocess.from_spec(
        {"dims": 3, "size": [16, 16, 16], "fit": "place", "spacing_mm": [1, 1, 1], "storage": "float32"}
    )
    # A cube of 8 mm, seen with slices of 4 mm and pixels of 0.5 mm.
    pixels = np.zeros((1, 4, 32, 32), np.float32)
    pixels[0, 1:3, 8:24, 8:24] = 1.0
    stored = module.store(pixels, (4.0, 0.5, 0.5))[0]
    assert float(stored.sum()) == pytest.approx(8**3, rel=0.02)
    assert float(stored[7:9, 5:11, 5:11].min()) > 0.99
    assert module.prepare(pixels).shape == pixels.shape


def test_window_scale_and_rounding_in_storage_units():
    hu = np.array([[[-2000.0, -160.0, 40.0, 240.0, 3000.0, 40.4]]], np.float32)
    module = build(size=[1, 6], window=[-160, 240], scale={"low": -160, "high": 240})
    np.testing.assert_array_equal(module.store(hu)[0, 0].numpy(), [0, 0, 128, 255, 255, 128])
    finished = module.finish(module.store(hu)[None])[0, 0, 0].numpy()
    np.testing.assert_allclose(finished, [0, 0, 128 / 255, 1, 1, 128 / 255], atol=1e-6)
    plain = build(size=[1, 6], storage="int16").store(hu)
    np.testing.assert_array_equal(plain[0, 0].numpy(), [-2000, -160, 40, 240, 3000, 40])
    np.testing.assert_array_equal(build(size=[1, 6]).store(hu)[0, 0].numpy(), [0, 0, 40, 240, 255, 40])
    wide = build(size=[1, 6], storage="int16", scale={"low": -1000, "high": 1000})
    back = wide.finish(wide.store(hu)[None])[0, 0, 0].numpy()
    np.testing.assert_allclose(back, np.clip((hu[0, 0] + 1000) / 2000, 0, 1), atol=2e-5)


def test_normalisation():
    values = np.random.default_rng(11).normal(7, 3, (4, 1, 9, 9)).astype(np.float32)
    values[3] = 5.0  # blank
    module = build(size=[9, 9], storage="float32", normalise={"kind": "per_image"})
    out = module(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(out[:3], [(v - v.mean()) / v.std() for v in values[:3]], atol=1e-5)
    assert (np.abs(out[3]) < 0.01).all()
    fixed = build(size=[9, 9], storage="float32", normalise={"kind": "fixed", "mean": [7], "std": [3]})
    np.testing.assert_allclose(fixed(torch.from_numpy(values)).numpy(), (values - 7) / 3, atol=1e-6)


def test_numbers_that_are_none_are_refused():
    pixels = np.zeros((1, 5, 5), np.float32)
    pixels[0, 0, :2] = np.nan
    with pytest.raises(DataError, match="2 pixels are not finite"):
        build().store(pixels)
    with pytest.raises(DataError, match="images 0 to 0"):
        build().store_stack(pixels[None])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": 3}, r"no key \['colour'\]"),
        ({"dims": 4}, "dims must be one of 2, 3"),
        ({"size": [32]}, "size must hold 2"),
        ({"size": [32, 0]}, "at least 1"),
        ({"channels": 0}, "at least 1"),
        ({"crop": "middle"}, "crop must be one of none, foreground, center_square"),
        ({"fit": "squeeze"}, "fit must be one of"),
        ({"storage": "int8"}, "storage must be one of"),
        ({"window": [5, 1]}, "window must be low then high"),
        ({"window": [1]}, "window must hold 2"),
        ({"window": ["a", 1]}, "window must hold 2 numbers"),
        ({"window": [0, float("nan")]}, "finite"),
        ({"scale": [0, 1]}, "scale must be null or hold low and high"),
        ({"scale": {"low": 1, "high": 1}}, "scale must be low then high"),
        ({"spacing_mm": [1, -1]}, "spacing_mm must be positive"),
        ({"normalise": {"kind": "zscore"}}, "normalise.kind must be one of none, per_image, fixed"),
        ({"normalise": {"kind": "fixed", "mean": [0]}}, "mean"),
        ({"normalise": {"kind": "fixed", "mean": [0], "std": [0]}}, "std must be positive"),
        ({"normalise": {"kind": "fixed", "mean": [0, 1], "std": [1]}}, "mean needs 1 or 1"),
        ({"normalise": None}, "normalise.kind"),
    ],
)
def test_a_wrong_spec_names_its_key(changes, words):
    with pytest.raises(PlanError, match=words):
        build(**changes)


def test_missing_keys_are_named():
    with pytest.raises(PlanError, match=r"needs the keys \['size'\]"):
        Preprocess.from_spec({"dims": 2})


def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match=r"axes \(C, Y, X\), got shape \(4, 4\)"):
        build().store(np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"axes \(N, C, Y, X\)"):
        build().store_stack(np.zeros((4, 4, 4)))
    with pytest.raises(ValueError, match=r"\(1, 32, 32\), got \(1, 1, 4, 4\)"):
        build().finish(torch.zeros(1, 1, 4, 4))
