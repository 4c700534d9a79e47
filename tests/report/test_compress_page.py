"""The page of lighter models: which of them no other one beats, and what is said about each."""

import itertools

import numpy as np
import pytest

from vesalius.report.compress_page import best_of, pareto_figure, write_compress_page


def variant(name, dice, ms, size=4e6, *, change=None):
    """One model as variants.json describes it."""
    found = {"name": name, "bundle": f"run/{name}", "metrics": {"dice": dice}, "latency_ms": ms, "bytes": size,
             "parameters": 1e6, "operations": 2e9, "memory_bytes": 5e7, "batch_ms": None,
             "runtime": "openvino"}  # fmt: skip
    if change is not None:
        difference = {"value": change, "low": change - 0.01, "high": change + 0.02}
        metrics = {"dice": {"first": dice - change, "second": dice, "difference": difference}}
        found["comparison"] = {"cases": 12, "patients": 7, "metrics": metrics}
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_front_holds_what_nothing_beats_in_both(seed):
    draw = np.random.default_rng(seed)
    models = [variant(str(k), *map(float, draw.integers(1, 6, 2))) for k in range(8)]  # with equal values among them
    points = [(one["latency_ms"], one["metrics"]["dice"]) for one in models]

    def beaten(k):
        return any(
            a <= points[k][0] and b >= points[k][1] and (a, b) != points[k]
            for a, b in itertools.chain(points[:k], points[k + 1 :])
        )

    front = best_of(models, "dice", "latency_ms")
    assert {points[k] for k in front} == {points[k] for k in range(8) if not beaten(k)}
    assert [points[k][0] for k in front] == sorted(points[k][0] for k in front)


def test_the_picture_names_the_front_and_marks_the_others():
    models = [variant("original", 0.9, 10.0), variant("int8", 0.91, 3.0), variant("student", 0.8, 2.0)]
    figure = pareto_figure(models, "dice", "latency_ms", "time of one pass, ms", "Dice against time")
    assert "not beaten by another: student and int8" in figure.chart
    assert figure.chart.count("<circle") == 2  # the diamond is the original, slower and worse than int8


def test_the_page_says_what_each_saves_and_costs(tmp_path):
    models = [variant("original", 0.9, 10.0), variant("int8", 0.91, 2.5, 1e6, change=0.01)]
    record = {"metric": "dice", "variants": models, "cores": 2}
    page = write_compress_page(tmp_path / "index.html", run="brains", record=record).read_text(encoding="utf-8")
    assert "int8: 4.0 times as fast, 4.0 times as small, Dice +0.010 (+0.000 to +0.030)." in page
    assert "12" in page
    assert "7" in page
