"""Rates against hand formulas, and a course that never jumps."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.train.schedule import Course, rate


def settings(kind, **changes):
    return {"lr": 0.2, "warmup": 0.25, "schedule": kind, "step_at": [0.5, 0.75], **changes}


@pytest.mark.parametrize("kind", ["one_cycle", "cosine"])
def test_the_top_and_the_end(kind):
    chosen = settings(kind)
    assert rate(chosen, 0.25) == pytest.approx(0.2)
    assert rate(chosen, 1.0) == pytest.approx(0.002)
    assert max(rate(chosen, k / 1000) for k in range(1001)) == pytest.approx(0.2)
    assert 0 < rate(chosen, 0.0) < 0.1 * 0.2
    assert rate(settings(kind, warmup=0.0), 0.0) == pytest.approx(0.2)


@pytest.mark.parametrize("kind", ["one_cycle", "cosine"])
def test_the_rate_rises_linearly(kind):
    first, middle, last = (rate(settings(kind), p) for p in (0.05, 0.10, 0.15))
    assert middle - first == pytest.approx(last - middle)
    assert middle > first


def test_one_cycle_falls_linearly_to_a_hundredth():
    for part in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert rate(settings("one_cycle"), 0.25 + 0.75 * part) == pytest.approx(0.2 * (1 - 0.99 * part))


def test_cosine_falls_along_half_a_cosine():
    for part in (0.0, 0.2, 0.5, 0.9, 1.0):
        by_hand = 0.002 + (0.2 - 0.002) * (1 + math.cos(math.pi * part)) / 2
        assert rate(settings("cosine"), 0.25 + 0.75 * part) == pytest.approx(by_hand)


def test_steps_divide_by_ten():
    assert [rate(settings("step"), p) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == pytest.approx(
        [0.2, 0.2, 0.02, 0.02, 0.002, 0.002]
    )


def test_constant_stays():
    assert {rate(settings("constant"), p) for p in (0.0, 0.3, 1.0)} == {0.2}


def test_a_course_without_revisions_is_a_straight_line():
    course = Course(40)
    assert [course.progress(step) for step in (0, 10, 40, 50)] == [0.0, 0.25, 1.0, 1.0]
    assert course.end(13) == 40


@st.composite
def histories(draw):
    """A planned length, and revisions (step, new end) that were possible when they were made."""
    total = draw(st.integers(1, 500))
    revisions, step, end = [], 0, total
    for _ in range(draw(st.integers(0, 5))):
        if step >= end:
            break
        step = draw(st.integers(step + 1, end))
        end = draw(st.integers(step, step + 300))
        revisions.append((step, end))
    return total, revisions


@given(histories())
def test_progress_is_continuous_rises_and_ends_at_one(history):
    total, revisions = history
    course = Course(total)
    for step, end in revisions:
        before = course.progress(step)
        course.revise(step, end)
        if end > step:
            assert course.progress(step) == pytest.approx(before)
        assert course.end(step) == end
        assert course.decided(step)
    last = revisions[-1][1] if revisions else total
    line = [course.progress(step) for step in range(last + 1)]
    assert all(b >= a - 1e-12 for a, b in pairwise(line))
    if not revisions or revisions[-1][1] > revisions[-1][0]:  # else it was told to end at once
        assert line[-1] == pytest.approx(1.0)
    # Between revisions every step counts the same.
    since = revisions[-1][0] if revisions else 0
    gaps = [b - a for a, b in pairwise(line[since:])]
    assert not gaps or max(gaps) - min(gaps) < 1e-9


@given(histories())
def test_the_past_does_not_change(history):
    total, revisions = history
    course = Course(total)
    for step, end in revisions:
        before = [course.progress(k) for k in range(step)]
        ends = [course.end(k) for k in range(step)]
        course.revise(step, end)
        assert [course.progress(k) for k in range(step)] == before
        assert [course.end(k) for k in range(step)] == ends


def test_a_revision_into_the_past_ends_now():
    course = Course(100)
    course.revise(50, 10)
    assert course.end(50) == 50


def test_the_journal_gives_the_same_course(tmp_path):
    one = Course(100, tmp_path / "course.jsonl")
    one.revise(10, 80)
    one.revise(30, 120)
    two = Course(100, tmp_path / "course.jsonl")
    assert [two.progress(k) for k in range(121)] == [one.progress(k) for k in range(121)]
    assert two.decided(30)
    assert not two.decided(31)


@pytest.mark.parametrize("torn", ['{"step": 30, "tot', "{", '{"step": 30, "total": 120'])
def test_a_torn_last_line_never_took_effect_and_hides_nothing_after_it(tmp_path, torn):
    path = tmp_path / "course.jsonl"
    Course(100, path).revise(10, 80)
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    course = Course(100, path)
    assert course.revisions == [(10, 80)]
    course.revise(30, 120)
    course.revise(50, 90)
    again = Course(100, path)
    assert again.revisions == [(10, 80), (30, 120), (50, 90)]


def test_a_revision_is_on_disk_when_it_returns(tmp_path):
    path = tmp_path / "course.jsonl"
    course = Course(10, path)
    course.revise(5, 20)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    assert lines == [{"step": 5, "total": 20}]
