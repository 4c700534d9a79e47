"""Cores that other processes leave."""

import subprocess
import sys

import pytest

from vesalius.core import load
from vesalius.core.environment import available_cores


@pytest.mark.parametrize(
    ("cores", "others", "wanted"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 0.7, 1), (2, 1.0, 1), (2, 2.0, 1), (2, 9.0, 1), (1, 1.0, 1), (16, 3.1, 13),
     (16, 0.2, 16), (2, -0.5, 2)],
)  # fmt: skip
def test_a_core_that_somebody_uses_is_not_counted(cores, others, wanted):
    assert load.spare(cores, others) == wanted


def test_our_own_work_is_not_that_of_others(monkeypatch):
    readings = iter([(0.0, 100.0, 50.0), (10.0, 118.0, 68.0), (20.0, 136.0, 76.0), (30.0, 154.0, 94.0)])
    monkeypatch.setattr(load, "_reading", lambda: next(readings))
    monkeypatch.setattr(load, "available_cores", lambda: 2)
    monkeypatch.setattr(load.time, "monotonic", lambda: 1e9)
    looks = load.Load()
    assert [looks.spare_cores() for _ in range(3)] == [2, 1, 2]


def test_where_nobody_tells_all_cores_count(monkeypatch):
    import psutil

    def refused(**options):
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refused)
    assert load.Load().spare_cores() == available_cores()


def test_busy_processes_are_seen():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * available_cores())]
    try:
        looks = load.Load()
        # The new processes need a moment to start.
        assert min(looks.spare_cores() for _ in range(8)) == 1
    finally:
        for one in busy:
            one.kill()
            one.wait()
