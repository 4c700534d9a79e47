"""From files to predictions: the same numbers as by hand, once each."""

import json

import numpy as np
import pytest
import scipy.special
import torch
from bundle_material import NAMES, SIDE, bundle, network, pixels, write_pictures

from vesalius.core.case import Case
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.predict.cohort import Item, _unique, gather, predict_cohort
from vesalius.predict.device import pick_device
from vesalius.predict.predictor import Predictor


def by_hand(values, seed=0, classes=3):
    """Logits of pictures ``(N, Y, X)`` that already have the network's size: normalise as the spec says, forward."""
    x = (torch.from_numpy(values).float()[:, None] - 120.0) / 50.0
    with torch.inference_mode():
        return network(seed, classes)(x).double().numpy()


def predictor(*args, **options):
    return Predictor(bundle(*args, **options), device="cpu")


def test_one_network_one_view():
    values = pixels(4)
    found = predictor(temperature=1.6).decode(values[:, None], list("abcd"))
    z = by_hand(values)
    np.testing.assert_allclose([f.logits for f in found], scipy.special.log_softmax(z, axis=1), rtol=1e-4, atol=1e-4)
    p = np.array([f.probabilities for f in found])
    np.testing.assert_allclose(p, scipy.special.softmax(z / 1.6, axis=1), rtol=1e-4, atol=1e-5)
    assert [f.top for f in found] == [NAMES[k] for k in p.argmax(axis=1)]
    assert [f.case_id for f in found] == list("abcd")
    assert {f.spread for f in found} == {None}
    assert np.ptp(p, axis=0).min() > 1e-3  # the network does look at the picture


def test_views_and_members_are_averaged_as_log_probabilities():
    values = pixels(3, seed=5)
    views = [[], [1], [0, 1]]  # as it is, left-right, both
    found = predictor(2, views=views).decode(values[:, None], list("abc"))
    flipped = [values, values[:, :, ::-1].copy(), values[:, ::-1, ::-1].copy()]
    each = np.stack([by_hand(v, seed) for v in flipped for seed in (0, 1)])
    log_p = scipy.special.log_softmax(each, axis=-1).mean(axis=0)
    mean = scipy.special.softmax(log_p, axis=-1)
    np.testing.assert_allclose([f.probabilities for f in found], mean, rtol=1e-3, atol=1e-5)
    top = mean.argmax(axis=1)
    spread = scipy.special.softmax(each, axis=-1)[:, np.arange(3), top].std(axis=0)
    np.testing.assert_allclose([f.spread for f in found], spread, rtol=1e-2, atol=1e-5)


def test_multi_label_averages_log_odds():
    labels = Labels(NAMES, multilabel=True)
    values = pixels(3)
    found = predictor(2, labels=labels).decode(values[:, None], list("abc"))
    mean = (by_hand(values, 0) + by_hand(values, 1)) / 2
    np.testing.assert_allclose([f.probabilities for f in found], scipy.special.expit(mean), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.001, 0.999])
def test_a_threshold_decides(threshold):
    found = predictor(names=("no", "yes"), threshold=threshold).decode(pixels(4)[:, None], list("abcd"))
    p = scipy.special.softmax(by_hand(pixels(4), classes=2), axis=1)[:, 1]
    assert [f.top for f in found] == ["yes" if x >= threshold else "no" for x in p]


def test_a_case_an_image_and_a_file_are_the_same(tmp_path):
    values = pixels(1)
    path = write_pictures(tmp_path, values)[0]
    image = Image(Grid((SIDE, SIDE)), values[0][None], source="x")
    model = predictor()
    results = [model(path), model(str(path)), model(image), model(Case("mine", "p", images={"image": image}))]
    assert [r.case_id for r in results] == ["p00", "p00", "x", "mine"]
    for result in results:
        assert np.array_equal(result.probabilities, results[0].probabilities)
    np.testing.assert_allclose(results[0].probabilities, scipy.special.softmax(by_hand(values)[0]), rtol=1e-4)


def test_a_volume_does_not_fit_a_model_of_pictures():
    volume = Image(Grid((3, 8, 8)), np.zeros((1, 3, 8, 8), np.uint8), source="v.nii")
    with pytest.raises(DataError, match=r"v\.nii.*3 dimensions"):
        predictor()(volume)
    colours = Image(Grid((8, 8)), np.zeros((2, 8, 8), np.uint8), source="two.tif")
    with pytest.raises(DataError, match=r"two\.tif.*2 channels"):
        predictor()(colours)


def test_a_broken_file_is_reported_and_the_rest_is_done(tmp_path):
    paths = write_pictures(tmp_path / "in", pixels(7))
    paths[3].write_bytes(b"no picture")
    told = Silent()
    items = gather(paths)
    done = predict_cohort(predictor(), items, tmp_path / "out", batch_size=4, progress=told)
    assert list(done.failed) == ["p03"]
    assert "p03.png" in done.failed["p03"]
    assert told.warnings == [done.failed["p03"]]
    assert sorted(done.written) == [f"p0{k}" for k in (0, 1, 2, 4, 5, 6)]
    assert json.loads((tmp_path / "out" / "failed.json").read_text(encoding="utf-8")) == done.failed
    for k in (0, 1, 2, 4, 5, 6):
        data = json.loads((tmp_path / "out" / f"p0{k}.json").read_text(encoding="utf-8"))
        p = scipy.special.softmax(by_hand(pixels(7)[k][None])[0])
        np.testing.assert_allclose([data["probabilities"][name] for name in NAMES], p, rtol=1e-3, atol=1e-5)
        assert data["class"] == NAMES[int(p.argmax())]
        assert data["source"] == str(paths[k])
    # Once the file is repaired, the next call does only that one and takes the note away.
    write_pictures(tmp_path / "in", pixels(7))
    again = predict_cohort(predictor(), items, tmp_path / "out")
    assert again.written == ["p03"]
    assert not (tmp_path / "out" / "failed.json").exists()


def test_the_second_run_writes_nothing(tmp_path):
    items = gather([tmp_path / "in"]) if write_pictures(tmp_path / "in", pixels(5)) else []
    model = bundle(1)
    model.checksum = "abc"
    first = predict_cohort(Predictor(model, device="cpu"), items, tmp_path / "out")
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()}
    assert len(before) == len(first.written) == 5
    second = predict_cohort(Predictor(model, device="cpu"), items, tmp_path / "out")
    assert second.written == []
    assert sorted(second.skipped) == sorted(first.written)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()} == before
    assert {e["case_id"]: e for e in second.predictions} == {e["case_id"]: e for e in first.predictions}
    forced = predict_cohort(Predictor(model, device="cpu"), items, tmp_path / "out", force=True)
    assert len(forced.written) == 5
    model.checksum = "other weights"
    assert len(predict_cohort(Predictor(model, device="cpu"), items, tmp_path / "out").written) == 5
    victim = next((tmp_path / "out").iterdir())
    victim.write_text("{ torn", encoding="utf-8")
    assert len(predict_cohort(Predictor(model, device="cpu"), items, tmp_path / "out").written) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_batches_do_not_change_the_numbers(tmp_path, batch_size):
    items = gather(write_pictures(tmp_path / "in", pixels(5)))
    done = predict_cohort(predictor(), items, tmp_path / "out", batch_size=batch_size, workers=3)
    assert [e["case_id"] for e in done.predictions] == [item.case_id for item in items]
    got = np.array([[e["probabilities"][name] for name in NAMES] for e in done.predictions])
    np.testing.assert_allclose(got, scipy.special.softmax(by_hand(pixels(5)), axis=1), rtol=1e-3, atol=1e-5)


def test_ids_are_unique():
    items = [Item(name, str(place)) for place, name in enumerate(["a", "a", "a-2", "a", "b", "a-2", "a-3"])]
    made = _unique(items)
    assert len({item.case_id for item in made}) == len(made)
    assert [item.source for item in made] == [item.source for item in items]
    assert made[0].case_id == "a"
    assert made[4].case_id == "b"


def test_points_in_a_name_belong_to_the_case(tmp_path):
    one, two = write_pictures(tmp_path, pixels(2))
    one, two = one.rename(tmp_path / "1.2.840.113619.5.png"), two.rename(tmp_path / "1.2.840.113619.6.png")
    assert [item.case_id for item in gather([one, two])] == ["1.2.840.113619.5", "1.2.840.113619.6"]
    assert predictor()(two).case_id == "1.2.840.113619.6"


def test_equal_names_in_two_folders_are_two_cases(tmp_path):
    one = write_pictures(tmp_path / "one", pixels(2, seed=1))
    two = write_pictures(tmp_path / "two", pixels(2, seed=2))
    items = gather([*one, *two])
    assert len({item.case_id for item in items}) == 4
    predict_cohort(predictor(), items, tmp_path / "out")
    sources = {json.loads(p.read_text(encoding="utf-8"))["source"] for p in (tmp_path / "out").iterdir()}
    assert sources == {str(p) for p in [*one, *two]}


def test_what_is_gathered(tmp_path):
    paths = write_pictures(tmp_path / "in", pixels(3))
    np.savez(tmp_path / "d.npz", images=pixels(4))
    np.savez(tmp_path / "mnist.npz", test_images=pixels(4), test_labels=np.zeros((4, 1), np.uint8))
    assert sorted(item.source for item in gather([tmp_path / "in"])) == sorted(map(str, paths))
    items = gather([tmp_path / "mnist.npz"])
    assert [item.source for item in items] == [f"{tmp_path / 'mnist.npz'}#test_images/{k}" for k in range(4)]
    one = gather([f"{tmp_path / 'd.npz'}#images/2"])
    assert [item.source for item in one] == [f"{tmp_path / 'd.npz'}#images/2"]
    done = predict_cohort(predictor(), one, tmp_path / "out")
    got = [done.predictions[0]["probabilities"][name] for name in NAMES]
    np.testing.assert_allclose(got, scipy.special.softmax(by_hand(pixels(4)[2:3])[0]), rtol=1e-3, atol=1e-5)


def test_nothing_to_gather(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        gather([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        gather([tmp_path / "empty"])


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu9", "cuda:99"):
        with pytest.raises(UsageError, match="--device"):
            pick_device(name)
