"""Numbers of a data set, against numpy on everything at once."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from vesalius.core.errors import DataError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image, Unit
from vesalius.data.fingerprint import FingerprintBuilder, data_hash
from vesalius.data.signature import signatures_from_arrays

RNG = np.random.default_rng(0)


def table(splits, labels=None, **more) -> pd.DataFrame:
    count = len(splits)
    return pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(count)],
            "patient_id": [f"p{i // 2}" for i in range(count)],
            "path": [f"{i}.png" for i in range(count)],
            "role": "image",
            "label": labels or ["a"] * count,
            "split": list(splits),
            **more,
        }
    )


def picture(shape, *, channels=1, spacing=None, low=0, high=255, **more) -> Image:
    pixels = RNG.integers(low, high, (channels, *shape)).astype(more.pop("dtype", np.uint8))
    return Image(Grid(tuple(shape), spacing=spacing), pixels, **more)


class TestIntensity:
    def test_training_images_only(self):
        train, test = RNG.integers(0, 100, (40, 2, 70, 80)), RNG.integers(150, 255, (10, 2, 70, 80))
        stack = np.concatenate([train, test]).astype(np.uint8)
        builder = FingerprintBuilder()
        builder.add_stack(stack)
        found = builder.build(table(["train"] * 40 + ["test"] * 10)).intensity
        for channel in range(2):
            expected = train[:, channel].astype(float)
            assert found.low[channel] == expected.min()
            assert found.high[channel] == expected.max()
            assert found.mean[channel] == pytest.approx(expected.mean(), rel=1e-9)
            assert found.std[channel] == pytest.approx(expected.std(), rel=1e-9)
            for got, want in ((found.p0_5, 0.5), (found.p50, 50), (found.p99_5, 99.5)):
                assert got[channel] == pytest.approx(np.percentile(expected, want), abs=3)
        assert found.images == 40

    def test_without_a_split_all_images_count(self):
        stack = RNG.integers(0, 255, (6, 1, 9, 9)).astype(np.uint8)
        builder = FingerprintBuilder()
        builder.add_stack(stack)
        assert builder.build(table([""] * 6)).intensity.mean[0] == pytest.approx(stack.mean())

    def test_images_of_different_sizes_and_types(self):
        images = [
            picture((50, 60)),
            picture((90, 100), dtype=np.int16, low=-1000, high=2000),
            picture((5, 5), dtype=np.float32),
        ]
        builder = FingerprintBuilder()
        for image in images:
            builder.add(image)
        every = np.concatenate([image.pixels.ravel().astype(float) for image in images])
        found = builder.build(table(["train"] * 3)).intensity
        assert (found.low[0], found.high[0]) == (every.min(), every.max())
        assert found.mean[0] == pytest.approx(every.mean())
        assert found.std[0] == pytest.approx(every.std())

    def test_a_large_offset_does_not_spoil_the_spread(self):
        stack = (1e6 + RNG.normal(0, 1e-2, (4, 1, 64, 64))).astype(np.float64)
        builder = FingerprintBuilder()
        builder.add_stack(stack)
        assert builder.build(table(["train"] * 4)).intensity.std[0] == pytest.approx(stack.std(), rel=1e-6)

    def test_not_a_number_is_left_out(self):
        stack = RNG.normal(size=(3, 1, 20, 20))
        stack[0, 0, :5] = np.nan
        stack[1, 0, 0, 0] = np.inf
        builder = FingerprintBuilder()
        builder.add_stack(stack)
        good = stack[np.isfinite(stack)]
        found = builder.build(table(["train"] * 3)).intensity
        assert found.mean[0] == pytest.approx(good.mean())
        assert found.high[0] == good.max()
        assert np.isfinite(found.p99_5[0])

    def test_none_without_training_images(self):
        builder = FingerprintBuilder()
        builder.add_stack(np.zeros((2, 1, 4, 4)))
        assert builder.build(table(["test", "test"])).intensity is None

    def test_slabs_agree(self, monkeypatch):
        from vesalius.data import intensity

        stack = RNG.normal(size=(3, 2, 30, 31))
        whole = intensity._moments(stack.reshape(3, 2, -1))
        monkeypatch.setattr(intensity, "_SLAB", 100)
        assert intensity._moments(stack.reshape(3, 2, -1)) == pytest.approx(whole)


class TestGeometry:
    def test_shapes_spacing_and_aspect(self):
        builder = FingerprintBuilder()
        for shape, spacing in (
            ((10, 20, 30), (3.0, 1.0, 1.0)),
            ((12, 20, 20), (2.0, 1.0, 1.0)),
            ((14, 10, 30), (5.0, 0.5, 0.5)),
        ):
            builder.add(picture(shape, spacing=spacing, unit=Unit.HU))
        found = builder.build(table(["train"] * 3))
        assert found.dims == 3
        assert found.shape.low == (10, 10, 20)
        assert found.shape.median == (12, 20, 30)
        assert found.shape.high == (14, 20, 30)
        assert found.spacing_mm.median == (3.0, 1.0, 1.0)
        assert (found.aspect.low, found.aspect.median, found.aspect.high) == ((1.0,), (1.5,), (3.0,))
        assert not found.one_shape
        assert (found.modality, found.modality_because) == ("CT", "values are in HU")

    def test_no_spacing_is_made_up(self):
        builder = FingerprintBuilder()
        builder.add(picture((8, 8), spacing=(1.0, 1.0)))
        builder.add(picture((8, 8)))
        found = builder.build(table(["train"] * 2))
        assert found.spacing_mm is None
        assert found.one_shape

    def test_mixed_dimensions(self):
        builder = FingerprintBuilder()
        builder.add(picture((8, 8)))
        builder.add_stack(np.zeros((3, 1, 4, 5, 6)))
        found = builder.build(table(["train"] * 4))
        assert found.dims == 0
        assert found.shape.high == (4, 5, 6)
        assert found.blank == 0.75

    def test_colour_and_modality(self):
        builder = FingerprintBuilder()
        grey = picture((8, 8)).pixels
        builder.add(Image(Grid((8, 8)), np.concatenate([grey] * 3)))
        assert builder.build(table(["train"])).equal_channels
        builder.add(picture((8, 8), channels=3))
        found = builder.build(table(["train"] * 2))
        assert not found.equal_channels
        assert found.modality == "RGB"
        assert found.channels == {"3": 2}
        builder.add(picture((8, 8), meta={"modality": "CR"}))
        assert builder.build(table(["train"] * 3)).modality == "CR"

    def test_refuses_other_axes_and_lengths(self):
        builder = FingerprintBuilder()
        with pytest.raises(ValueError, match=r"\(N, C, Y, X\)"):
            builder.add_stack(np.zeros((3, 8, 8)))
        with pytest.raises(ValueError, match="2 rows but 0 images"):
            builder.build(table(["train"] * 2))


class TestTable:
    def test_counts(self):
        builder = FingerprintBuilder()
        builder.add_stack(np.zeros((6, 1, 4, 4)))
        frame = table(["train"] * 4 + ["test"] * 2, ["a", "b", "a", "a", "a", ""], age=[1, 2, None, 4, 5, 6])
        found = builder.build(frame)
        assert (found.cases, found.patients) == (6, 3)
        assert found.splits == {"train": 4, "test": 2}
        assert found.classes == {"all": {"a": 4, "b": 1}, "train": {"a": 3, "b": 1}, "test": {"a": 1}}
        assert found.imbalance == 3
        assert found.covariates == {"age": pytest.approx(5 / 6)}

    def test_several_labels(self):
        builder = FingerprintBuilder()
        builder.add_stack(np.zeros((3, 1, 4, 4)))
        found = builder.build(table(["train"] * 3, ["a|b", "b", ""]), multilabel=True)
        assert found.classes["train"] == {"a": 1, "b": 2}

    def test_a_class_missing_from_training(self):
        builder = FingerprintBuilder()
        builder.add_stack(np.zeros((2, 1, 4, 4)))
        found = builder.build(table(["train", "test"], ["a", "b"]))
        assert found.imbalance == float("inf")
        json.dumps(found.to_json(), allow_nan=False)

    def test_json(self):
        builder = FingerprintBuilder()
        builder.add(picture((8, 8), spacing=(0.5, 0.5)))
        text = json.dumps(builder.build(table(["train"])).to_json())
        assert json.loads(text)["spacing_mm"]["median"] == [0.5, 0.5]


class TestMerge:
    def test_parts_give_the_same_fingerprint(self):
        images = [picture((40, 50), channels=1 + i % 2, spacing=(1.0, 2.0)) for i in range(7)]
        whole, joined = FingerprintBuilder(), FingerprintBuilder()
        for image in images:
            whole.add(image)
        for start in (0, 3, 5):
            part = FingerprintBuilder()
            for image in images[start : {0: 3, 3: 5, 5: 7}[start]]:
                part.add(image)
            joined.merge(json.loads(json.dumps(part.state())))
        frame = table(["train"] * 5 + ["test"] * 2)
        one, two = whole.build(frame).to_json(), joined.build(frame).to_json()
        for name in ("p0_5", "p50", "p99_5"):  # which pixels are drawn depends on the place in the part
            assert one["intensity"].pop(name) == pytest.approx(two["intensity"].pop(name), abs=25)
        assert one == two

    def test_summary_can_be_read_back(self):
        builder, again = FingerprintBuilder(), FingerprintBuilder()
        builder.add_stack(RNG.integers(0, 9, (5, 1, 6, 6)).astype(np.uint8))
        summary = json.loads(json.dumps(builder.summary()))
        assert summary["images"] == 5
        again.merge(summary)
        assert again.build(table(["train"] * 5)) == builder.build(table(["train"] * 5))

    def test_refuses_another_schema(self):
        with pytest.raises(DataError, match=r"schema 99.*--force"):
            FingerprintBuilder().merge({"schema": 99})


class TestHash:
    def test_depends_on_content_only(self):
        stack = RNG.integers(0, 255, (4, 1, 8, 8)).astype(np.uint8)
        signatures, frame = signatures_from_arrays(stack), table(["train", "train", "val", "test"])
        first = data_hash(frame, signatures)
        order = [2, 0, 3, 1]
        assert data_hash(frame.iloc[order].assign(path="elsewhere"), signatures.take(order)) == first
        assert data_hash(frame.assign(split="train"), signatures) != first
        assert data_hash(frame.assign(label="b"), signatures) != first
        stack[0, 0, 0, 0] ^= 1
        assert data_hash(frame, signatures_from_arrays(stack)) != first

    def test_refuses_other_length(self):
        with pytest.raises(ValueError, match="1 rows but 2 signatures"):
            data_hash(table(["train"]), signatures_from_arrays(np.zeros((2, 1, 4, 4))))


@pytest.mark.realdata
def test_pneumoniamnist(real_data):
    with np.load(real_data / "medmnist" / "pneumoniamnist.npz") as file:
        parts = {name: (file[f"{name}_images"], file[f"{name}_labels"].ravel()) for name in ("train", "val", "test")}
    builder = FingerprintBuilder()
    for images, _ in parts.values():
        builder.add_stack(images[:, None])
    splits = [name for name, (images, _) in parts.items() for _ in images]
    frame = table(splits, [("normal", "pneumonia")[k] for _, labels in parts.values() for k in labels])
    found = builder.build(frame)
    train, labels = parts["train"]
    assert found.splits == {"train": 4708, "val": 524, "test": 624}
    assert found.classes["train"] == {"normal": int((labels == 0).sum()), "pneumonia": int((labels == 1).sum())}
    assert found.shape.median == (28, 28)
    assert found.intensity.mean[0] == pytest.approx(train.mean())
    assert found.intensity.std[0] == pytest.approx(train.std())
    assert found.intensity.p50[0] == pytest.approx(np.percentile(train, 50), abs=2)
