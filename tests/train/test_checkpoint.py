"""Checkpoints are whole or absent, and run no code."""

import pytest
import torch

from vesalius.core.errors import UnreadableFile
from vesalius.train import checkpoint


def state(k):
    return {
        "state": {"step": k, "best": float("-inf"), "weights": {"a": torch.full((50, 20), float(k))}},
        "policy": {"lr": 0.1 * k},
    }


def test_what_was_kept_comes_back(tmp_path):
    checkpoint.save(tmp_path / "new" / "folder", 7, state(7))
    step, found = checkpoint.load(tmp_path / "new" / "folder")
    assert step == 7
    assert torch.equal(found["state"]["weights"]["a"], torch.full((50, 20), 7.0))
    assert found["state"]["best"] == float("-inf")
    assert found["policy"] == {"lr": 0.1 * 7}


def test_two_generations_are_kept(tmp_path):
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    for k in (1, 5, 20, 100):
        checkpoint.save(tmp_path, k, state(k))
    assert checkpoint.steps(tmp_path) == [20, 100]
    assert (tmp_path / "note.txt").exists()
    assert checkpoint.load(tmp_path)[0] == 100


def test_nothing_there(tmp_path):
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.load(tmp_path / "none") is None
    assert checkpoint.steps(tmp_path / "none") == []


DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"this is no checkpoint\n" * 50,
    "ones in the middle": lambda data: data[: len(data) // 2] + b"\xff" * 40 + data[len(data) // 2 + 40 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_newest_file_falls_back_to_the_older(tmp_path, damage):
    checkpoint.save(tmp_path, 10, state(10))
    newest = checkpoint.save(tmp_path, 20, state(20))
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    step, found = checkpoint.load(tmp_path)
    assert step == 10
    assert found["state"]["step"] == 10
    # And the training that goes on from there replaces the torn file.
    checkpoint.save(tmp_path, 20, state(21))
    assert checkpoint.load(tmp_path)[1]["state"]["step"] == 21


def test_nothing_readable_is_one_line(tmp_path):
    for k in (10, 20):
        checkpoint.save(tmp_path, k, state(k)).write_bytes(b"rubbish")
    with pytest.raises(UnreadableFile, match="remove the checkpoints folder"):
        checkpoint.load(tmp_path)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_from_elsewhere_runs_no_code(tmp_path):
    home = tmp_path / "c"
    checkpoint.save(home, 5, state(5))
    torch.save({"state": Evil(tmp_path / "made")}, home / "step-000000009.pt")
    assert checkpoint.load(home)[0] == 5
    assert not (tmp_path / "made").exists()


def test_a_part_of_a_killed_write_is_not_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 5, state(5))
    (tmp_path / ".step-000000009.pt.77.part").write_bytes(b"half")
    assert checkpoint.steps(tmp_path) == [5]
