"""A file to a mask on its own grid: the same voxels for any order of storage, and what numpy makes of the logits."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.predict.bundle import Bundle
from vesalius.predict.segmentation import case_logits, decided
from vesalius.predict.segmenter import (
    SegmentPredictor,
    Wanted,
    body_blocks,
    diameters_of,
    enlarged,
    size_factor,
)
from vesalius.predict.tiles import TileSettings
from vesalius.tasks.segment import Segment
from vesalius.transforms.conform import Conform

ORGANS = Labels(("background", "liver", "spleen"))
BRATS = Labels(("whole", "core", "enhancing"), multilabel=True, regions=((1, 2, 4), (1, 4), (4,)))
CELLS = Labels(("background", "cell"), instances=True)
POSES = [*itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))]
SHAPE = (18, 20, 22)


def bundle(labels=ORGANS, *, dims=3, channels=1, spec=None, members=1, side=16, seed=0, **inference):
    """Random networks with much contrast between classes."""
    model = {"name": "unet", "features": [4, 8], "strides": [[1] * dims, [2] * dims], "patch": [side] * dims}
    task = Segment(labels)
    states = []
    for member in range(members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + member)
            network = task.network(model, dims=dims, inputs=channels, size=model["patch"])
            with torch.no_grad():
                for value in network.parameters():
                    value.add_(0.3 * torch.randn_like(value))
                levelled(network.eval(), torch.randn(1, channels, *model["patch"]))
            states.append(network.state_dict())
    plain = {"dims": dims, "channels": channels, "orient": True, "crop": "none", "spacing_mm": None, "scale": 1.0,
             "window": None, "normalise": {"kind": "body" if dims == 3 else "percentile"}}  # fmt: skip
    tile = {"patch": model["patch"], "overlap": 0.5, "batch": 2}
    return Bundle(
        task="segment",
        labels=labels,
        preprocess=plain | (spec or {}),
        model=model,
        members=states,
        inference={"tile": tile, "backend": "torch"} | inference,
    )


def levelled(network, x):
    """Every class wins somewhere: the last layer's outputs get zero mean and equal spread."""
    last = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d)]
    head = next(part for part in reversed(last) if part.out_channels == network(x).shape[1] and part.bias is not None)
    axes = [0, *range(2, x.ndim)]
    spread = network(x).std(axes)
    head.weight.mul_((3 / spread).view(-1, *(1,) * (x.ndim - 1)))
    head.bias.mul_(3 / spread)
    head.bias.sub_(network(x).mean(axes))


def predictor(*args, **options):
    return SegmentPredictor(bundle(*args, **options), device="cpu")


def volume(shape=SHAPE, seed=0, channels=1):
    """Smooth blobs in noise."""
    draw = np.random.default_rng(seed)
    values = ndimage.gaussian_filter(draw.normal(0, 1, (channels, *shape)), (0, 2, 2, 2)) * 900
    return (values + draw.normal(100, 5, values.shape)).astype(np.float32)


def grid(shape=SHAPE, spacing=(2.0, 1.5, 1.5), turn=None):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)[::-1]
    affine[:3, 3] = (-11.0, 23.0, 5.0)
    return Grid(shape, affine)


def tilt():
    one, two = np.deg2rad(12), np.deg2rad(-20)
    a = np.array([[np.cos(one), -np.sin(one), 0], [np.sin(one), np.cos(one), 0], [0, 0, 1]])
    b = np.array([[1, 0, 0], [0, np.cos(two), -np.sin(two)], [0, np.sin(two), np.cos(two)]])
    return a @ b


def stored(values, place, axes, flips):
    """Voxels ``(C, *S)`` and their grid in another order of storage."""
    moved = values.transpose(0, *(axis + 1 for axis in axes))
    affine = np.eye(4)
    affine[:3, :3] = place.affine[:3, :3][:, list(axes)]
    affine[:3, 3] = place.affine[:3, 3]
    for k, flip in enumerate(flips):
        if flip:
            moved = np.flip(moved, k + 1)
            affine[:3, 3] += affine[:3, k] * (moved.shape[k + 1] - 1)
            affine[:3, k] *= -1
    return np.ascontiguousarray(moved), Grid(moved.shape[1:], affine)


@pytest.fixture(scope="module")
def model():
    return predictor(spec={"spacing_mm": [2.5, 1.2, 1.6], "crop": "border"})


class TestOrientation:
    @pytest.mark.parametrize("turn", [None, tilt()], ids=["straight", "oblique"])
    def test_the_mask_does_not_depend_on_the_order_of_storage(self, model, turn):
        values, place = volume(), grid(turn=turn)
        values[:, :2] = values[:, :, 17:] = -300  # padding that is cut
        wanted = model(Image(place, values)).values
        assert set(np.unique(wanted)) == {0, 1, 2}
        for axes, flips in POSES:
            turned, there = stored(values, place, axes, flips)
            mask = model(Image(there, turned))
            assert mask.grid is not None
            np.testing.assert_array_equal(mask.grid.affine, there.affine)
            np.testing.assert_array_equal(mask.values[None], stored(wanted[None], place, axes, flips)[0])

    @pytest.mark.parametrize("code", ["RAS", "LPS", "PIL", "ASR"])
    def test_nifti_files_of_other_orders(self, model, tmp_path, code):
        """The same through files, turned by nibabel."""
        affine = np.diag([1.5, 1.5, 2.0, 1.0])
        affine[:3, 3] = (-20.0, 7.0, -40.0)
        first = nib.Nifti1Image(volume()[0].T, affine)
        to = nib.orientations.axcodes2ornt(code)
        other = first.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), to))
        nib.save(first, tmp_path / "a.nii.gz")
        nib.save(other, tmp_path / "b.nii.gz")
        one, two = (model(tmp_path / name).values.T for name in ("a.nii.gz", "b.nii.gz"))
        mask = nib.Nifti1Image(one, affine).as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(affine), to)
        )
        np.testing.assert_array_equal(np.asarray(mask.dataobj), two)

    def test_the_input_is_not_touched(self, model):
        values = volume()
        before = values.copy()
        one = model(Image(grid(), values)).values
        np.testing.assert_array_equal(values, before)
        np.testing.assert_array_equal(model(Image(grid(), values)).values, one)

    def test_what_was_cut_is_background(self, model):
        values = volume()
        values[:, :, :6] = -300
        mask = model(Image(grid(), values)).values
        assert (mask[:, :6] == 0).all()
        assert (mask[:, 6:] > 0).any()


class TestDecision:
    def test_one_tile_is_the_argmax_of_the_network(self):
        made = bundle(side=16)
        values = volume((16, 16, 16))
        seen = Conform(made.preprocess)(Image(grid((16, 16, 16)), values)).all()
        with torch.inference_mode():
            logits = made.networks()[0](torch.from_numpy(seen)[None])[0].numpy()
        found = SegmentPredictor(made, device="cpu").segment(
            Image(grid((16, 16, 16)), values), "a", Wanted(probabilities=True, entropy=True)
        )
        two = np.sort(logits, axis=0)
        clear = two[-1] - two[-2] > 1e-4
        np.testing.assert_array_equal(found.mask.values[clear], logits.argmax(axis=0)[clear])
        p = np.exp(logits - logits.max(axis=0))
        p /= p.sum(axis=0)
        np.testing.assert_allclose(found.probabilities, p, atol=2e-3)
        entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=0) / np.log(3)
        np.testing.assert_allclose(found.entropy, entropy, atol=4e-3)
        assert found.probabilities.dtype == found.entropy.dtype == np.float16

    def test_members_and_views_are_averaged(self):
        made = bundle(side=16, members=2)
        made.views = [[], [2], [0, 1]]
        values = volume((16, 16, 16))
        seen = torch.from_numpy(Conform(made.preprocess)(Image(grid((16, 16, 16)), values)).all())[None]
        with torch.inference_mode():
            parts = []
            for network in made.networks():
                for view in made.views:
                    axes = [axis + 2 for axis in view]
                    parts.append(network(seen.flip(axes)).flip(axes)[0].numpy())
        logits = np.mean(parts, axis=0)
        found = SegmentPredictor(made, device="cpu")(Image(grid((16, 16, 16)), values)).values
        two = np.sort(logits, axis=0)
        clear = two[-1] - two[-2] > 1e-4
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(found[clear], logits.argmax(axis=0)[clear])

    @pytest.mark.parametrize("members", [1, 3])
    def test_disagreement_of_networks_or_else_of_views(self, members):
        made = bundle(side=16, members=members)
        made.views, made.temperature = [[], [2]], 1.7
        values = volume((16, 16, 16))
        seen = torch.from_numpy(Conform(made.preprocess)(Image(grid((16, 16, 16)), values)).all())[None]
        with torch.inference_mode():
            logits = np.stack([
                [network(seen.flip(axes)).flip(axes)[0].numpy() for axes in ([], [4])] for network in made.networks()
            ])  # fmt: skip
        opinions = logits.mean(axis=1) if members > 1 else logits[0]
        p = np.exp(opinions / 1.7 - (opinions / 1.7).max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        top = p.mean(axis=0).argmax(axis=0)[None, None]
        spread = np.take_along_axis(p, np.repeat(top, len(p), axis=0), axis=1)[:, 0].std(axis=0)
        model = SegmentPredictor(made, device="cpu")
        found = model.segment(Image(grid((16, 16, 16)), values), "a", Wanted(spread=True))
        two = np.sort(p.mean(axis=0), axis=0)
        clear = two[-1] - two[-2] > 5e-3
        np.testing.assert_allclose(found.spread[clear], spread[clear], atol=3e-3)
        assert spread.max() > 0.1
        assert model.opinions == max(members, 2 if members == 1 else 0)

    def test_a_temperature_changes_probabilities_and_no_mask(self):
        made = bundle(side=16)
        image = Image(grid((16, 16, 16)), volume((16, 16, 16)))
        plain = SegmentPredictor(made, device="cpu").segment(image, "a", Wanted(probabilities=True))
        made.temperature = 3.0
        model = SegmentPredictor(made, device="cpu")
        soft = model.segment(image, "a", Wanted(probabilities=True))
        raw = model.segment(image, "a", Wanted(probabilities=True, calibrated=False))
        np.testing.assert_array_equal(soft.mask.values, plain.mask.values)
        np.testing.assert_array_equal(raw.probabilities, plain.probabilities)
        kept = np.log(np.maximum(plain.probabilities.astype(np.float64), 1e-30)) / 3
        wanted = np.exp(kept) / np.exp(kept).sum(axis=0)
        sure = plain.probabilities.min(axis=0) > 1e-4
        np.testing.assert_allclose(soft.probabilities[:, sure], wanted[:, sure], atol=5e-3)

    def test_regions_are_decided_each_by_itself(self):
        made = bundle(BRATS, channels=4, side=16)
        values = volume((16, 16, 16), channels=4)
        seen = Conform(made.preprocess)(Image(grid((16, 16, 16)), values)).all()
        with torch.inference_mode():
            logits = made.networks()[0](torch.from_numpy(seen)[None])[0].numpy()
        found = SegmentPredictor(made, device="cpu")(Image(grid((16, 16, 16)), values))
        assert found.values.shape == (3, 16, 16, 16)
        clear = np.abs(logits) > 2e-3
        np.testing.assert_array_equal(found.values[clear], (logits > 0)[clear])
        assert len({layer.sum() for layer in found.values}) == 3

    def test_a_hundred_labels(self):
        labels = Labels(tuple(f"structure {k}" for k in range(101)))
        values = volume((16, 18, 20))
        found = predictor(labels)(Image(grid((16, 18, 20)), values)).values
        assert found.dtype == np.uint8
        assert len(np.unique(found)) > 10
        assert found.max() <= 100

    def test_validation_and_prediction_agree(self):
        """Whole-case logits of prepared pixels give the mask that the streaming way gives."""
        made = predictor(side=16)
        image = Image(grid(), volume())
        fitted = made.conform(image)
        logits = case_logits(made.backend, fitted.all(), TileSettings((16,) * 3, overlap=0.5, batch=2), 3)
        assert logits.shape == (3, *SHAPE)
        two = np.sort(logits, axis=0)
        clear = two[-1] - two[-2] > 1e-4
        np.testing.assert_array_equal(made(image).values[clear], decided(logits, made.task)[clear])

    def test_post_processing_of_the_bundle(self):
        image = Image(grid(), volume())
        plain = predictor()(image).values
        steps = [{"label": 1, "keep": "largest"}]
        made = predictor(post=steps)
        found = made.segment(image, "a").mask.values
        parts, count = ndimage.label(plain == 1, np.ones((3, 3, 3)))
        assert count > 1
        largest = np.argmax(np.bincount(parts.reshape(-1))[1:]) + 1
        np.testing.assert_array_equal(found == 1, parts == largest)
        np.testing.assert_array_equal(made.segment(image, "a", Wanted(post=False)).mask.values, plain)


class TestObjects:
    def picture(self, shape=(48, 60)):
        draw = np.random.default_rng(0)
        values = ndimage.gaussian_filter(draw.normal(0, 1, (3, *shape)), (0, 3, 3)) * 500 + 120
        return Image(Grid(shape), values.clip(0, 255).astype(np.uint8))

    def test_objects_are_numbered_on_the_grid_of_the_file(self):
        image = self.picture()
        found = predictor(CELLS, dims=2, channels=3).segment(image, "a", Wanted(probabilities=True, entropy=True))
        assert found.mask.values.shape == (48, 60)
        assert set(np.unique(found.mask.values)) == set(range(int(found.mask.values.max()) + 1))
        p = found.probabilities.astype(float)
        assert p.shape == (1, 48, 60)
        wanted = -(p * np.log2(np.maximum(p, 1e-9)) + (1 - p) * np.log2(np.maximum(1 - p, 1e-9)))[0]
        np.testing.assert_allclose(found.entropy, wanted, atol=5e-3)

    def test_views_disagree_about_the_foreground_and_a_temperature_softens_it(self):
        image = self.picture()
        made = bundle(CELLS, dims=2, channels=3)
        made.views = [[], [1]]
        plain = SegmentPredictor(made, device="cpu").segment(image, "a", Wanted(probabilities=True, spread=True))
        made.temperature = 2.0
        soft = SegmentPredictor(made, device="cpu").segment(image, "a", Wanted(probabilities=True, spread=True))
        np.testing.assert_array_equal(plain.mask.values, soft.mask.values)
        p = plain.probabilities.astype(np.float64)
        sure = (p > 1e-2) & (p < 1 - 1e-2)
        logits = np.log(p[sure] / (1 - p[sure])) / 2
        np.testing.assert_allclose(soft.probabilities[sure], 1 / (1 + np.exp(-logits)), atol=5e-3)
        assert 0.01 < plain.spread.max() <= 0.5

    def test_a_bundle_of_half_size_answers_in_full_size(self):
        image = self.picture()
        found = predictor(CELLS, dims=2, channels=3, spec={"scale": 0.5}).segment(image, "a")
        assert found.mask.values.shape == (48, 60)
        assert found.scale == 0.5

    def test_much_larger_objects_are_seen_again_at_the_training_size(self, monkeypatch):
        made = predictor(CELLS, dims=2, channels=3, diameters=[9.0, 10.0, 11.0])
        seen = []
        squares = np.zeros((48, 60), dtype=np.int32)
        for number, column in enumerate((2, 22, 42), 1):
            squares[2:18, column : column + 16] = number
        middle = 2 * np.sqrt(256 / np.pi)

        def found(fitted):
            seen.append(fitted.shape)
            return enlarged(squares, fitted.shape), np.zeros((3, *fitted.shape), dtype=np.float32)

        monkeypatch.setattr(made, "_decoded", found)
        said = made.segment(self.picture(), "a")
        factor = 10.0 / middle
        assert seen == [(48, 60), (round(48 * factor), round(60 * factor))]
        assert said.scale == pytest.approx(factor)
        assert said.mask.values.shape == (48, 60)

    def test_factor_by_hand(self):
        objects = np.zeros((40, 40), dtype=np.int32)
        for number, row in enumerate((0, 12, 24), 1):
            objects[row : row + 8, 3:11] = number
        diameter = 2 * np.sqrt(64 / np.pi)
        np.testing.assert_allclose(diameters_of(objects), [diameter] * 3)
        assert size_factor(objects, [diameter * 0.9, diameter, diameter * 1.1]) is None
        assert size_factor(objects, [20.0, 21.0, 22.0]) == pytest.approx(21 / diameter)
        assert size_factor(objects > 0, [20.0, 21.0, 22.0]) is None  # one object is too few to tell

    def test_enlarging_takes_the_nearest(self):
        values = np.arange(6).reshape(2, 3)
        np.testing.assert_array_equal(enlarged(values, (4, 6)), values.repeat(2, 0).repeat(2, 1))
        np.testing.assert_array_equal(enlarged(values, (2, 3)), values)
        odd = np.random.default_rng(0).integers(0, 9, (5, 7))
        wanted = torch.nn.functional.interpolate(
            torch.from_numpy(odd)[None, None].double(), size=(9, 4), mode="nearest-exact"
        )
        np.testing.assert_array_equal(enlarged(odd, (9, 4)), wanted[0, 0].numpy())


class TestAir:
    def test_blocks_cover_all_that_is_above(self):
        draw = np.random.default_rng(0)
        values = np.where(draw.random((1, 17, 22, 9)) < 0.002, 0.0, -1000.0)
        found = body_blocks(values, -900)
        assert found.shape == (5, 6, 3)
        blocks = np.zeros((20, 24, 12), dtype=bool)
        blocks[:17, :22, :9] = values[0] > -900
        hit = blocks.reshape(5, 4, 6, 4, 3, 4).any(axis=(1, 3, 5))
        np.testing.assert_array_equal(found, ndimage.binary_dilation(hit, np.ones((3, 3, 3))))

    def test_skipped_tiles_are_background_and_the_body_is_as_before(self):
        values = np.full((1, 40, 20, 20), -1000, dtype=np.float32)
        values[:, :12] = volume((12, 20, 20))
        spec = {"normalise": {"kind": "fixed", "mean": [0.0], "std": [300.0]}}
        image = Image(grid((40, 20, 20)), values)
        plain = predictor(spec=spec).segment(image, "a")
        quick = predictor(spec=spec, skip_below=-900.0).segment(image, "a")
        np.testing.assert_array_equal(quick.mask.values[:12], plain.mask.values[:12])
        assert (quick.mask.values[30:] == 0).all()


class TestRefusal:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (np.full((1, 4, 5, 6), np.nan, np.float32), "not finite"),
            (np.ones((1, 4, 5, 6), np.int16), "every pixel has the value 1"),
            (np.arange(30).reshape(1, 1, 5, 6), "one slice"),
            (np.arange(30).reshape(1, 5, 6), "has 2 dimensions"),
            (np.arange(240).reshape(2, 4, 5, 6), "has 2 channels"),
        ],
    )
    def test_one_line_names_the_file(self, model, values, words):
        image = Image(Grid(values.shape[1:]), values, source="there/scan.nii.gz")
        with pytest.raises(DataError, match=words) as caught:
            model(image)
        assert str(caught.value).startswith("there/scan.nii.gz: ")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3

    def test_a_bundle_of_another_task(self):
        made = bundle()
        made.task, made.labels = "classify", Labels(("a", "b"))
        with pytest.raises(UsageError, match="classify"):
            SegmentPredictor(made, device="cpu")


def test_a_bundle_on_disk_predicts_the_same(tmp_path, model):
    saved = model.bundle.save(tmp_path / "bundle")
    image = Image(grid(), volume())
    again = SegmentPredictor.load(saved, device="cpu")
    np.testing.assert_array_equal(again(image).values, model(image).values)
    assert again.bundle.inference == model.bundle.inference
    assert again.labels == ORGANS


def test_files_of_channels_are_one_case(tmp_path):
    made = predictor(BRATS, channels=2)
    values = volume((16, 16, 16), channels=2)
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    paths = []
    for channel, one in enumerate(values):
        paths.append(tmp_path / f"case_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(one.T, affine), paths[-1])
    mask = made(paths)
    place = mask.grid
    np.testing.assert_array_equal(mask.values, made(Image(place, values)).values)
    assert mask.values.shape == (3, 16, 16, 16)
