"""Cores that other processes leave."""

import os
import shlex
import signal
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


def test_busy_processes_of_others_are_seen():
    # Started by a shell that ends at once: what a child of this process computes would be our own work.
    program = f"{shlex.quote(sys.executable)} -c 'while True: pass'"
    line = f"for one in $(seq {2 * available_cores()}); do {program} >/dev/null 2>&1 & echo $!; done"
    shell = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    busy = [int(number) for number in shell.stdout.split()]
    try:
        looks = load.Load()
        # The new processes need a moment to start.
        assert min(looks.spare_cores() for _ in range(8)) == 1
    finally:
        for one in busy:
            os.kill(one, signal.SIGKILL)


def test_what_a_child_computes_is_our_own():
    program = "import time\nwhile time.process_time() < 1: pass\nprint(flush=True)\ninput()"
    before = load._reading()
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        after = load._reading()
    finally:
        child.communicate(b"\n")
    ended = load._reading()
    # The system counts in hundredths of a second. One that has ended is not forgotten.
    assert before[2] + 0.9 < after[2] <= ended[2] + 0.1
