"""The streaming window against MONAI's, which holds the whole volume."""

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from monai.inferers.utils import _get_scan_interval
from torch import nn

from vesalius.predict import tile_sums
from vesalius.predict import tiles as module
from vesalius.predict.backends import make_backend
from vesalius.predict.tiles import SkipRule, TileCount, TileSettings, predict_slabs, tile_starts, tile_weights


class Net(nn.Sequential):
    """Two convolutions with zero padding: what a voxel gets depends on the tile it is seen in."""

    def __init__(self, dims, inputs=1, classes=3, seed=0):
        torch.manual_seed(seed)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        super().__init__(conv(inputs, 5, 3, padding=1), nn.ReLU(), conv(5, classes, 5, padding=2))
        self.eval().requires_grad_(False)


def back(nets, patch, batch=2, inputs=1):
    return make_backend(nets, inputs=inputs, patch=patch, batch=batch, name="torch")


def run(source, shape, backend, settings, classes=3, **options):
    """All slabs as one array, after a check of their order."""
    parts, at = [], 0
    for start, stop, values in predict_slabs(source, shape, backend, settings, classes, **options):
        assert start == at < stop
        assert values.shape == (classes, stop - start, *shape[1:])
        assert values.dtype == np.float32
        at = stop
        parts.append(values)
    assert at == shape[0]
    return np.concatenate(parts, axis=1)


def monai(volume, patch, predictor, overlap=0.5, **options):
    options = {"mode": "gaussian", "overlap": overlap, **options}
    with torch.no_grad():
        return sliding_window_inference(torch.from_numpy(volume)[None], patch, 2, predictor, **options)[0].numpy()


def noise(shape, inputs=1, seed=0):
    return np.random.default_rng(seed).normal(size=(inputs, *shape)).astype(np.float32)


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.95))
@settings(max_examples=300, deadline=None)
def test_the_grid_is_monais(side, patch, overlap):
    side = max(side, patch)
    step = _get_scan_interval((side,), (patch,), 1, (overlap,))
    expected = [cut[0].start for cut in dense_patch_slices((side,), (patch,), step)]
    assert tile_starts(side, patch, overlap) == expected


@given(st.integers(1, 400), st.integers(1, 64), st.floats(0, 0.95), st.floats(0, 0.5))
@settings(max_examples=300, deadline=None)
def test_a_grid_with_slack_covers_all_with_no_more_tiles(side, patch, overlap, slack):
    starts = tile_starts(side, patch, overlap, slack)
    assert starts[0] == 0
    assert starts[-1] == max(side - patch, 0)
    assert all(0 < b - a <= patch for a, b in itertools.pairwise(starts))
    assert len(starts) <= len(tile_starts(side, patch, overlap))


def test_slack_saves_tiles():
    assert tile_starts(256, 96) == [0, 48, 96, 144, 160]
    assert tile_starts(256, 96, slack=0.34) == [0, 53, 107, 160]


@pytest.mark.parametrize(("patch", "sigma"), [((16, 24, 17), 0.125), ((9, 32), 0.125), ((8, 8, 8), 0.3), ((1, 5), 0.1)])
def test_the_weights_are_monais(patch, sigma):
    expected = compute_importance_map(patch, "gaussian", sigma).numpy()
    np.testing.assert_allclose(tile_weights(patch, sigma), expected, rtol=1e-5)


CASES = [
    ((41, 30, 37), (16, 12, 16), 0.5),
    ((40, 30, 20), (8, 16, 12), 0.25),
    ((17, 16, 19), (16, 16, 16), 0.6),
    ((9, 30, 7), (16, 12, 16), 0.5),  # smaller than a tile, by an odd number
    ((1, 1, 1), (4, 5, 6), 0.5),
    ((33, 12, 16), (16, 12, 16), 0.0),
    ((70, 45), (32, 24), 0.5),
    ((20, 45), (31, 24), 0.7),
    ((5, 6), (8, 9), 0.5),
]


@pytest.mark.parametrize(("shape", "patch", "overlap"), CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_values_are_monais(shape, patch, overlap, batch):
    net, volume = Net(len(shape), inputs=2), noise(shape, 2)
    expected = monai(volume, patch, net, overlap)
    chosen = TileSettings(patch, overlap=overlap, batch=batch)
    found = run(volume, shape, back([net], patch, batch, 2), chosen)
    np.testing.assert_allclose(found, expected, atol=3e-6)
    by_planes = run(lambda a, b: volume[:, a:b], shape, back([net], patch, batch, 2), chosen)
    np.testing.assert_array_equal(by_planes, found)


@given(st.data(), st.sampled_from([2, 3]), st.floats(0, 0.75), st.integers(1, 4), st.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_any_shape_gives_the_values_of_monai(data, dims, overlap, batch, pad):
    shape = tuple(data.draw(st.lists(st.integers(1, 14), min_size=dims, max_size=dims)))
    patch = tuple(data.draw(st.lists(st.integers(1, 8), min_size=dims, max_size=dims)))
    net, volume = Net(dims), noise(shape)
    expected = monai(volume, patch, net, overlap, cval=pad)
    found = run(volume, shape, back([net], patch), TileSettings(patch, overlap=overlap, batch=batch, pad=pad))
    np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_mirrored_views_are_averaged(dims):
    shape, patch = (19, 14, 12)[:dims], (8, 6, 8)[:dims]
    views = ((), (0,), (1,), (0, 1), (dims - 1, 0))
    net, volume = Net(dims), noise(shape)

    def mirrored(x):
        parts = [net(x.flip([2 + a for a in view])).flip([2 + a for a in view]) if view else net(x) for view in views]
        return torch.stack(parts).mean(0)

    found = run(volume, shape, back([net], patch), TileSettings(patch, mirror=views))
    np.testing.assert_allclose(found, monai(volume, patch, mirrored), atol=3e-6)
    assert np.abs(found - monai(volume, patch, net)).max() > 1e-3


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_views_are_computed_together_where_tiles_are_few(name, members, monkeypatch):
    pytest.importorskip(name)
    patch, views = (16, 12), ((), (0,), (1,), (0, 1))
    nets = [Net(2, seed=seed) for seed in range(members)]

    def found(shape, batch):
        backend = make_backend(nets, inputs=1, patch=patch, batch=batch, name=name)
        sizes, whole = [], backend.each
        monkeypatch.setattr(backend, "each", lambda tiles: sizes.append(len(tiles)) or whole(tiles))
        chosen = TileSettings(patch, batch=batch, mirror=views, overlap=0.0)
        return run(noise(shape), shape, backend, chosen, activation="softmax"), sizes

    # One tile; one and then the rest of a batch; a batch that is full without views.
    cases = (((16, 12), 8, [4]), ((16, 12), 3, [3, 1]), ((48, 12), 8, [6, 6]), ((64, 12), 4, [4] * 4))
    for shape, batch, wanted in cases:
        together, sizes = found(shape, batch)
        assert sizes == wanted
        np.testing.assert_array_equal(together, found(shape, 1)[0])
    monkeypatch.setattr(module, "_MOST_VALUES", 2 * members * 3 * 16 * 12)
    again, sizes = found((16, 12), 8)
    assert sizes == [2, 2], "as many as memory allows"
    np.testing.assert_array_equal(again, found((16, 12), 1)[0])


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_networks_are_averaged_after_the_activation(activation):
    shape, patch = (19, 14, 12), (8, 6, 8)
    nets, volume = [Net(3, seed=seed) for seed in (0, 1, 2)], 5 * noise(shape)
    curve = {None: lambda y: y, "softmax": lambda y: y.softmax(1), "sigmoid": torch.sigmoid}[activation]
    expected = monai(volume, patch, lambda x: torch.stack([curve(net(x)) for net in nets]).mean(0))
    found = run(volume, shape, back(nets, patch), TileSettings(patch), activation=activation)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_planes_are_read_once_in_order_and_no_further_than_needed():
    shape, patch = (200, 9, 8), (16, 8, 8)
    volume, reads, threads = noise(shape), [], set()

    def read(start, stop):
        reads.append((start, stop))
        threads.add(threading.get_ident())
        return volume[:, start:stop].astype(np.float64)

    ahead = []
    slabs = predict_slabs(read, shape, back([Net(3)], patch), TileSettings(patch), 3)
    for start, stop, _ in slabs:
        assert stop - start <= tile_sums.PLANES
        ahead.append(reads[-1][1] - start)
    assert [a for a, _ in reads] == [0, *(b for _, b in reads[:-1])]
    assert reads[-1][1] == 200
    assert threads.isdisjoint({threading.get_ident()})
    # The tile at hand, the rows of the batches that wait, and one more row that is read meanwhile.
    assert max(ahead) <= 16 + 8 * (module.AHEAD + 2)


@pytest.mark.parametrize(("half", "dtype"), [(False, torch.float32), (True, torch.float16)])
def test_sums_are_held_for_the_height_of_a_tile(half, dtype, monkeypatch):
    kept = []
    start = tile_sums.Sums.__init__

    def spy(self, *arguments, **options):
        start(self, *arguments, **options)
        kept.append(self)

    monkeypatch.setattr(tile_sums.Sums, "__init__", spy)
    shape, patch = (90, 20, 11), (16, 8, 16)
    for _ in predict_slabs(noise(shape), shape, back([Net(3)], patch), TileSettings(patch, half=half), 3):
        assert len(kept[0].live) <= 3
    assert tuple(kept[0].ring.shape) == (3, 16, 20, 16)
    assert kept[0].ring.dtype == dtype
    assert float(kept[0].ring.abs().max()) == 0


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_half_precision_sums_err_by_less_than_a_hundredth_of_the_spread(scale):
    shape, patch = (30, 24, 26), (12, 16, 12)
    net, volume = Net(3), noise(shape)
    net[-1].weight.mul_(scale)
    net[-1].bias.mul_(scale)
    full = run(volume, shape, back([net], patch), TileSettings(patch))
    half = run(volume, shape, back([net], patch), TileSettings(patch, half=True))
    # At most 8 sums, each rounded to 11 bits, of values up to the largest of the tiles.
    bound = 8 * 2.0**-11 * np.abs(full).max()
    assert 0 < np.abs(half - full).max() < bound
    two = np.sort(full, axis=0)
    clear = two[-1] - two[-2] > 2 * bound
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(half.argmax(0)[clear], full.argmax(0)[clear])
    assert (half.argmax(0) == full.argmax(0)).mean() > 0.998


def test_half_precision_survives_enormous_logits_and_much_overlap():
    shape, patch = (25, 20), (10, 10)
    net, volume = Net(2), noise(shape)
    net[-1].weight.mul_(1e6)
    chosen = TileSettings(patch, overlap=0.9, half=True)
    found = run(volume, shape, back([net], patch), chosen)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= tile_sums.LARGEST * 1.01


def in_air(shape, boxes, air=-1.5, inputs=1, seed=0):
    """Noise in `boxes`, `air` elsewhere."""
    body = np.zeros(shape, dtype=bool)
    for box in boxes:
        body[box] = True
    return np.where(body, noise(shape, inputs, seed), np.float32(air)), body


ISLANDS = [(slice(20, 29), slice(3, 9), slice(30, 33)), (slice(55, 56), slice(20, 21), slice(0, 1))]


def test_skipping_changes_no_bit_in_the_body():
    shape, patch = (80, 40, 45), (16, 12, 16)
    volume, body = in_air(shape, ISLANDS)
    backend, every, fewer = back([Net(3)], patch), TileCount(), TileCount()
    full = run(volume, shape, backend, TileSettings(patch), count=every)
    rule = SkipRule(value=-1.5)
    found = run(volume, shape, backend, TileSettings(patch, skip=rule), count=fewer)
    assert every.skipped == 0
    assert fewer.tiles == every.tiles
    assert 0.8 * fewer.tiles < fewer.skipped < fewer.tiles
    np.testing.assert_array_equal(found[:, body], full[:, body])
    # Far from the body, where every tile was skipped, the background is certain.
    np.testing.assert_array_equal(found[:, 79, 39, 44], [10, -10, -10])
    assert np.isfinite(found).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_skipping_changes_no_bit_in_any_body(data):
    dims = data.draw(st.sampled_from([2, 3]))
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=dims, max_size=dims)))
    patch = tuple(data.draw(st.lists(st.integers(2, 8), min_size=dims, max_size=dims)))
    points = data.draw(st.lists(st.tuples(*(st.integers(0, side - 1) for side in shape)), max_size=3))
    volume, body = in_air(shape, points)
    backend = back([Net(dims)], patch)
    overlap = data.draw(st.floats(0, 0.7))
    full = run(volume, shape, backend, TileSettings(patch, overlap=overlap, pad=-1.5))
    if data.draw(st.booleans()):
        rule = SkipRule(value=-1.5)
    else:  # the body at a lower resolution: a cell is set if any voxel of it is
        cells = tuple(data.draw(st.integers(1, side)) for side in shape)
        coarse = np.zeros(cells, dtype=bool)
        for point in points:
            span = [
                slice(p * n // side, -(-(p + 1) * n // side)) for p, n, side in zip(point, cells, shape, strict=True)
            ]
            coarse[tuple(span)] = True
        rule = SkipRule(body=coarse)
    found = run(volume, shape, backend, TileSettings(patch, overlap=overlap, pad=-1.5, skip=rule))
    np.testing.assert_array_equal(found[:, body], full[:, body])
    exact = SkipRule(value=-1.5, answer="network")
    same = run(volume, shape, backend, TileSettings(patch, overlap=overlap, pad=-1.5, skip=exact))
    np.testing.assert_array_equal(same, full)


def test_the_answer_of_the_network_to_air_changes_no_bit_anywhere():
    shape, patch = (80, 40, 45), (16, 12, 16)
    volume, _ = in_air(shape, ISLANDS, inputs=2)
    backend, count = back([Net(3, inputs=2), Net(3, inputs=2, seed=1)], patch, inputs=2), TileCount()
    plain = TileSettings(patch, mirror=((), (2,)))
    rule = SkipRule(value=(-1.5, -1.5), answer="network")
    full = run(volume, shape, backend, plain, activation="softmax")
    found = run(
        volume, shape, backend, TileSettings(patch, mirror=((), (2,)), skip=rule), activation="softmax", count=count
    )
    assert count.skipped > 0.5 * count.tiles
    np.testing.assert_array_equal(found, full)


def test_between_skipped_and_computed_tiles_both_take_part():
    # Two tiles of 4 on a line of 6: voxels 2 and 3 belong to both, the second tile holds air only.
    volume = np.array([[[1.0, 2, 0, 0, 0, 0]]], dtype=np.float32).reshape(1, 1, 6)
    net = Net(2)
    chosen = TileSettings((1, 4), skip=SkipRule(value=0.0, logits=(7.0, -3.0, 1.0)))
    found = run(volume, (1, 6), back([net], (1, 4)), chosen)
    first = net(torch.from_numpy(volume[:, :, :4])[None])[0].numpy()
    w = tile_weights((1, 4))[0]
    b = np.array([7.0, -3.0, 1.0])
    for place in (2, 3):
        expected = (w[place] * first[:, 0, place] + w[place - 2] * b) / (w[place] + w[place - 2])
        np.testing.assert_allclose(found[:, 0, place], expected, rtol=1e-5)
    np.testing.assert_allclose(found[:, 0, :2], first[:, 0, :2], rtol=1e-5)
    np.testing.assert_allclose(found[:, 0, 4:], np.stack([b, b], axis=1), rtol=1e-6)


def test_noise_in_air_needs_a_tolerance_and_nan_is_never_air():
    shape, patch = (32, 16), (8, 8)
    volume = np.full((1, *shape), -1.0, dtype=np.float32)
    volume += np.random.default_rng(0).uniform(-0.05, 0.05, volume.shape).astype(np.float32)
    for tolerance, skipped in ((0.0, 0), (0.04, 0), (0.06, 21)):
        count = TileCount()
        run(volume, shape, back([Net(2)], patch), TileSettings(patch, skip=SkipRule(-1.0, tolerance)), count=count)
        assert (count.tiles, count.skipped) == (21, skipped)
    volume[0, 3, 3] = np.nan
    count = TileCount()
    run(volume, shape, back([Net(2)], patch), TileSettings(patch, skip=SkipRule(-1.0, 0.06)), count=count)
    assert count.skipped == 20


@pytest.mark.parametrize(("activation", "expected"), [("softmax", (1, 0, 0)), ("sigmoid", (0, 0, 0))])
def test_a_volume_of_air_calls_no_network(activation, expected):
    backend = back([Net(2)], (8, 8))
    backend.networks = None
    volume = np.zeros((1, 20, 13), dtype=np.float32)
    settings = TileSettings((8, 8), skip=SkipRule(value=0.0))
    found = run(volume, (20, 13), backend, settings, activation=activation)
    np.testing.assert_allclose(found, np.broadcast_to(np.reshape(expected, (3, 1, 1)), (3, 20, 13)), atol=1e-4)


def test_a_function_can_say_where_the_body_is():
    asked = []

    def body(low, high):
        asked.append((low, high))
        return low[0] == 0

    shape, patch = (20, 6), (8, 8)
    count = TileCount()
    run(noise(shape), shape, back([Net(2)], patch), TileSettings(patch, skip=SkipRule(body=body)), count=count)
    assert asked == [((z, 0), (z + 8, 6)) for z in (0, 4, 8, 12)]
    assert (count.tiles, count.skipped) == (4, 3)


def test_half_floats_and_integers_are_read_as_they_are():
    shape, patch = (20, 13), (8, 8)
    volume = np.random.default_rng(0).integers(-9, 9, (1, *shape))
    backend, chosen = back([Net(2)], patch), TileSettings(patch)
    expected = run(volume.astype(np.float32), shape, backend, chosen)
    for kind in (np.float16, np.int16):
        np.testing.assert_array_equal(run(volume.astype(kind), shape, backend, chosen), expected)
        np.testing.assert_array_equal(
            run(lambda a, b, k=kind: volume[:, a:b].astype(k), shape, backend, chosen), expected
        )


def test_what_goes_wrong_in_a_thread_comes_out():
    shape, patch = (40, 9), (8, 8)

    def broken(start, stop):
        if stop > 20:
            raise OSError("the disk is gone")
        return np.zeros((1, stop - start, 9), np.float32)

    with pytest.raises(OSError, match="the disk is gone"):
        run(broken, shape, back([Net(2)], patch), TileSettings(patch))
    with pytest.raises(ValueError, match="gives 3 channels, 4 were expected"):
        run(noise(shape), shape, back([Net(2)], patch), TileSettings(patch), classes=4)
    with pytest.raises(ValueError, match="planes"):
        run(lambda a, b: np.zeros((1, 1, 9)), shape, back([Net(2)], patch), TileSettings(patch))
    with pytest.raises(ValueError, match="planes must be"):
        run(lambda a, b: np.zeros((1, b - a, 5)), shape, back([Net(2)], patch), TileSettings(patch))


def test_a_caller_may_stop_early_and_gradients_stay_as_they_were():
    shape, patch = (64, 20), (8, 8)
    slabs = predict_slabs(noise(shape), shape, back([Net(2)], patch), TileSettings(patch), 3)
    next(slabs)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    before = threading.active_count()
    slabs.close()
    assert threading.active_count() < before


def test_wrong_settings_are_refused():
    patch = (8, 8)
    for wrong in ({"overlap": 1.0}, {"overlap": -0.1}, {"batch": 0}, {"sigma": 0}, {"slack": 0.6}, {"mirror": ((2,),)}):
        with pytest.raises(ValueError, match="got"):
            TileSettings(patch, **wrong)
    with pytest.raises(ValueError, match="needs the value of air"):
        SkipRule()
    with pytest.raises(ValueError, match="needs the value of air"):
        SkipRule(body=np.ones((2, 2), bool), answer="network")
    backend = back([Net(2)], patch)
    for shape, chosen, volume in (
        ((20, 9), TileSettings((8, 9)), noise((20, 9))),
        ((20, 9, 9), TileSettings(patch), noise((20, 9, 9))),
        ((20, 9), TileSettings(patch), noise((20, 8))),
        ((20, 9), TileSettings(patch), noise((20, 9), 2)),
        ((20, 9), TileSettings(patch, skip=SkipRule(value=(0.0, 1.0))), noise((20, 9))),
        ((20, 9), TileSettings(patch, skip=SkipRule(body=np.ones((2, 2, 2), bool))), noise((20, 9))),
        ((20, 9), TileSettings(patch, skip=SkipRule(value=0.0, logits=(1.0,))), noise((20, 9))),
    ):
        with pytest.raises(ValueError, match=r"do not fit|must be|must have|need"):
            list(predict_slabs(volume, shape, backend, chosen, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    shape, patch = (41, 30, 37), (16, 12, 16)
    net, volume = Net(3), noise(shape)
    gpu = make_backend([net], inputs=1, patch=patch, batch=4, device=torch.device("cuda"))
    for half in (False, True):
        found = run(volume, shape, gpu, TileSettings(patch, batch=4, half=half))
        np.testing.assert_allclose(found, monai(volume, patch, net), atol=2e-2)
