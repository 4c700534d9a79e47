"""The choice of post-processing against masks that are really cleaned, and on cases where the answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.postprocessing import COLUMNS, choose_steps
from vesalius.measure.components import apply_steps, apply_to_layers

ONE = Labels(("background", "organ"))
TWO = Labels(("background", "organ", "tumour"))
LAYERS = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)))


def ball(shape, centre, radius):
    place = np.stack(np.indices(shape), axis=-1)
    return np.linalg.norm(place - np.asarray(centre), axis=-1) <= radius


def dice(prediction, truth, value):
    said, true = prediction == value, truth == value
    total = said.sum() + true.sum()
    return 2 * (said & true).sum() / total if total else 1.0


def mean_dice(cases, steps, values, apply=apply_steps):
    return float(
        np.mean([[dice(apply(said, steps, spacing), true, v) for v in values] for said, true, spacing, _ in cases])
    )


def organs(count=8, *, island=True, hole=False, shape=(20, 24, 24)):
    """An organ, predicted a voxel too far to the right, with a false island, or a hole."""
    cases = []
    for number in range(count):
        true = ball(shape, (9 + number % 3, 10, 10), 6).astype(np.uint8)
        said = np.roll(true, 1, axis=2)
        if island:
            said[ball(shape, (4, 20, 20), 2)] = 1
        if hole:
            said[ball(shape, (9, 10, 10), 2)] = 0
        cases.append((said, true, (2.0, 1.0, 1.0), f"p{number}"))
    return cases


def row(choice, name, label="organ"):
    found = choice.evidence[choice.evidence["name"].str.startswith(name) & (choice.evidence["label"] == label)]
    return found.iloc[0]


def test_the_largest_component_is_taken_against_islands():
    cases = organs()
    choice = choose_steps(cases, ONE)
    assert [step.to_json() for step in choice.steps] == [
        {"label": 1, "keep": "largest", "fill_holes": False, "min_volume": 0.0, "connectivity": None}
    ]
    taken = row(choice, "largest component")
    assert taken["chosen"]
    assert taken["before"] == pytest.approx(mean_dice(cases, [], [1]), abs=1e-12)
    assert taken["after"] == pytest.approx(mean_dice(cases, choice.steps, [1]), abs=1e-12)
    assert (taken["false_before"], taken["false_after"], taken["missed_after"]) == (1, 0, 0)
    assert taken["low"] > 0
    assert taken["reason"].startswith("Taken: mean Dice rises by ")
    assert tuple(choice.evidence.columns) == COLUMNS


def test_holes_are_filled_on_top():
    cases = organs(hole=True)
    choice = choose_steps(iter(cases), ONE)
    assert [(step.keep, step.fill_holes) for step in choice.steps] == [("largest", False), (None, True)]
    assert row(choice, "filled holes")["after"] == pytest.approx(mean_dice(cases, choice.steps, [1]), abs=1e-12)
    last = row(choice, "all chosen steps", "all labels")
    assert last["before"] == pytest.approx(mean_dice(cases, [], [1]), abs=1e-12)
    assert last["after"] == pytest.approx(mean_dice(cases, choice.steps, [1]), abs=1e-12)


def test_nothing_is_taken_where_nothing_helps():
    choice = choose_steps(organs(island=False), ONE)
    assert choice.steps == ()
    assert not choice.evidence["chosen"].any()
    assert (choice.evidence["difference"] == 0).all()
    assert row(choice, "largest component")["reason"] == "Not taken: nothing changes."


def test_two_organs_are_not_cut_to_the_larger_one():
    cases = []
    for number in range(8):
        true = (ball((16, 20, 40), (8, 10, 9), 6) | ball((16, 20, 40), (8, 10, 30), 5)).astype(np.uint8)
        said = true.copy()
        said[1, 1, 1 : 3 + number % 2] = 1
        cases.append((said, true, None, f"p{number}"))
    choice = choose_steps(cases, ONE)
    (step,) = choice.steps
    assert step.keep is None
    assert step.min_volume > 3
    assert mean_dice(cases, choice.steps, [1]) == 1
    assert row(choice, "largest component")["difference"] < 0
    assert "asked for" in row(choice, "largest component")["reason"]


def test_false_alarms_of_healthy_patients_count():
    cases = []
    for number in range(12):
        true = np.zeros((30, 30), np.uint8)
        said = np.zeros_like(true)
        if number < 6:
            true[10:18, 10:18] = 1
            said[10:18, 11:19] = 1
        else:
            said[20:22, 20:22] = 1
        cases.append((said, true, (1.0, 1.0), f"p{number}"))
    choice = choose_steps(cases, ONE)
    (step,) = choice.steps
    assert 4 < step.min_volume <= 64
    assert row(choice, "components of at least")["after"] - row(choice, "components of at least")["before"] == 0.5


def test_one_patient_who_loses_much_stops_a_step():
    cases = organs(7)
    shape = (20, 24, 24)
    true = (ball(shape, (9, 7, 7), 5) | ball(shape, (9, 18, 18), 4)).astype(np.uint8)
    cases.append((true, true, (2.0, 1.0, 1.0), "p7"))
    choice = choose_steps(cases, ONE, percentiles=())
    largest = row(choice, "largest component")
    rise = [dice(apply_steps(s, [{"label": 1, "keep": "largest"}]), t, 1) - dice(s, t, 1) for s, t, *_ in cases]
    assert largest["difference"] == pytest.approx(np.mean(rise), abs=1e-12)
    assert min(rise) < 0
    assert largest["chosen"] == (largest["difference"] > 1e-4 and largest["low"] >= 0)
    assert not largest["chosen"]


def test_cases_of_one_patient_count_as_one():
    cases = [(said, true, spacing, "same") for said, true, spacing, _ in organs()]
    choice = choose_steps(cases, ONE)
    assert choice.steps == ()
    assert row(choice, "largest component")["patients"] == 1
    assert "patients with this label: 1, needed to judge it: 5" in row(choice, "largest component")["reason"]
    assert choose_steps(cases, ONE, enough_patients=1).steps


def test_a_rare_label_is_left_alone():
    cases = organs(8)
    for said, true, *_ in cases[:3]:
        true[2:5, 2:5, 2:5] = said[2:5, 2:5, 2:5] = 2
        said[17, 2, 2] = 2
    choice = choose_steps(cases, TWO)
    assert [step.label for step in choice.steps if step.label == 2] == []
    assert row(choice, "largest component", "tumour")["difference"] > 0
    assert "patients with this label: 3" in row(choice, "largest component", "tumour")["reason"]


def test_the_whole_foreground_goes_first_and_must_not_cost_a_label():
    shape = (14, 26, 40)
    cases, apart = [], []
    for number in range(8):
        true = np.zeros(shape, np.uint8)
        true[ball(shape, (7, 12, 12), 6)] = 1
        true[ball(shape, (7, 12, 12), 3)] = 2
        said = true.copy()
        said[3:5, 3:5, 30 : 34 + number % 3] = 1
        said[3:5, 20:22, 30:33] = 2
        cases.append((said, true, None, f"p{number}"))
        other = true.copy()
        other[8:10, 20:23, 30:34] = 2
        noisy = other.copy()
        noisy[1:5, 1:9, 20:39] = 1
        apart.append((noisy, other, None, f"p{number}"))
    choice = choose_steps(cases, TWO)
    assert [step.label for step in choice.steps] == [None]
    assert mean_dice(cases, choice.steps, [1, 2]) == 1
    assert "'tumour' loses" in choose_steps(apart, TWO).evidence.iloc[0]["reason"]


def test_layers_are_judged_one_by_one():
    cases = []
    for number in range(6):
        whole = ball((14, 20, 20), (7, 8, 8), 6)
        core = ball((14, 20, 20), (7, 8, 8), 3)
        said = np.stack([np.roll(whole, 1, 2), core])
        said[:, 2:4, 16:19, 15:19] = True
        said[0, 7, 8, 9] = False
        cases.append((said, np.stack([whole, core]), (1.0, 1.0, 2.0), f"p{number}"))
    choice = choose_steps(cases, LAYERS)
    for layer in range(2):
        rise = [dice(apply_to_layers(s, choice.steps, g)[layer], t[layer], True) for s, t, g, _ in cases]
        label = LAYERS.names[layer]
        mine = choice.evidence[(choice.evidence["label"] == label) & choice.evidence["chosen"]]
        expected = (
            mine["after"].iloc[-1] if len(mine) else choice.evidence[choice.evidence["label"] == label].iloc[0].after
        )
        assert np.mean(rise) == pytest.approx(expected, abs=1e-12)
    assert any(step.label == 0 and step.fill_holes for step in choice.steps)
    assert any(step.label is None for step in choice.steps)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_every_number_is_that_of_the_cleaned_masks(seed, flat):
    """Noise with islands within holes of other labels: the sums over pieces equal masks that are really cleaned."""
    random = np.random.default_rng(seed)
    shape = (18, 20) if flat else (6, 9, 10)
    labels = Labels(("background", "a", "b", "c"))
    share = [0.3, 0.5, 0.15, 0.05]
    cases = []
    for number in range(3):
        true = ndimage.median_filter(random.choice(4, size=shape, p=share), 2).astype(np.uint8)
        said = np.where(random.random(shape) < 0.2, random.choice(4, size=shape, p=share), true).astype(np.uint8)
        cases.append((said, true, (1.5, 0.5, 2.0)[-len(shape) :], f"p{number}"))
    choice = choose_steps(cases, labels, enough_patients=1, resamples=64)
    values = {"a": 1, "b": 2, "c": 3}
    last = row(choice, "all chosen steps", "all labels")
    assert last["after"] == pytest.approx(mean_dice(cases, choice.steps, [1, 2, 3]), abs=1e-12)
    for label, value in values.items():
        mine = choice.evidence[choice.evidence["label"] == label]
        done = mine[mine["chosen"]]
        after = done["after"].iloc[-1] if len(done) else mine["before"].iloc[-1]
        assert after == pytest.approx(mean_dice(cases, choice.steps, [value]), abs=1e-12)


def test_false_and_missed_components_are_those_of_scipy():
    random = np.random.default_rng(3)
    true, said = (ndimage.gaussian_filter(random.normal(size=(40, 40)), 1.2) > 0.25 for _ in range(2))
    cases = [(said.astype(np.uint8), true.astype(np.uint8), None, "p")]
    first = choose_steps(cases, ONE, enough_patients=1).evidence.iloc[0]
    eight = np.ones((3, 3))
    (mine, many), (theirs, more) = ndimage.label(said, eight), ndimage.label(true, eight)
    assert first["false_before"] == many - len(np.unique(mine[true & said]))
    assert first["missed_before"] == more - len(np.unique(theirs[true & said]))
    assert first["false_before"] > 0
    assert first["missed_before"] > 0


def test_ignored_voxels_count_for_nothing():
    labels = Labels(("background", "organ"), ignore=9)
    cases = organs()
    for _, true, *_ in cases:
        true[2:7, 17:, 17:] = 9
    choice = choose_steps(cases, labels)
    assert choice.steps == ()
    first = choice.evidence.iloc[0]
    known = [(np.where(true == 9, 0, said), np.where(true == 9, 0, true), g, p) for said, true, g, p in cases]
    assert first["before"] == pytest.approx(mean_dice(known, [], [1]), abs=1e-12)
    assert first["false_before"] == 0


def test_flips_change_nothing_and_draws_are_repeated():
    cases = organs(hole=True)
    turned = [(said[::-1, :, ::-1].copy(), true[::-1, :, ::-1].copy(), g, p) for said, true, g, p in cases]
    one, two = choose_steps(cases, ONE, seed=4), choose_steps(turned, ONE, seed=4)
    assert one.steps == two.steps
    assert one.evidence.equals(two.evidence)


def test_what_cannot_be_judged_is_said():
    with pytest.raises(DataError, match="no held-out case"):
        choose_steps([], ONE)
    cases = organs(2)
    with pytest.raises(DataError, match="mm³ and voxels"):
        choose_steps([cases[0], (*cases[1][:2], None, "q")], ONE)
    with pytest.raises(ValueError, match="one shape"):
        choose_steps([(np.zeros((3, 3)), np.zeros((3, 4)), None, "p")], ONE)
    with pytest.raises(ValueError, match="2 layers"):
        choose_steps([(np.zeros((3, 9, 9)), np.zeros((3, 9, 9)), None, "p")], LAYERS)


def test_empty_masks_score_one_and_need_nothing():
    empty = np.zeros((5, 6, 7), np.uint8)
    choice = choose_steps([(empty, empty, None, f"p{k}") for k in range(6)], TWO)
    assert choice.steps == ()
    assert (choice.evidence["before"] == 1).all()
