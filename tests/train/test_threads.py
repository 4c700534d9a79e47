"""The number of threads follows the load, and a resumed run repeats what was decided."""

import json

import pytest
import torch

from vesalius.train.threads import Threads


@pytest.fixture(autouse=True)
def as_before():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def spares(*counts):
    each = iter(counts)
    return lambda: next(each)


def test_every_milestone_decides(tmp_path):
    threads = Threads(tmp_path / "threads.jsonl", spares(2, 1, 2))
    for step, wanted in ((0, 2), (40, 1), (80, 2)):
        assert threads.at(step) == wanted == torch.get_num_threads()
    lines = [json.loads(line) for line in (tmp_path / "threads.jsonl").read_text().split("\n") if line]
    assert lines == [{"step": 0, "threads": 2}, {"step": 40, "threads": 1}, {"step": 80, "threads": 2}]


def test_a_resumed_run_repeats_what_was_decided(tmp_path):
    path = tmp_path / "threads.jsonl"
    first = Threads(path, spares(2, 1, 2))
    for step in (0, 40, 80):
        first.at(step)
    # The checkpoint lay between the first two milestones; the load is another one now.
    second = Threads(path, spares(1))
    assert [second.at(step) for step in (17, 40, 80)] == [2, 1, 2]
    assert second.at(120) == 1


def test_a_torn_line_never_took_effect(tmp_path):
    path = tmp_path / "threads.jsonl"
    Threads(path, spares(2)).at(0)
    with path.open("a") as file:
        file.write('\n{"step": 40, "thr')
    threads = Threads(path, spares(1))
    assert threads.at(23) == 2
    assert threads.at(40) == 1
    assert Threads(path, spares()).at(40) == 1
