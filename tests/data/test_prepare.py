"""Prepared once, whole or not at all, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_material import SIDE, manifest_of, pictures, plain, png_folder

from vesalius.core.errors import DataError, ResourceError
from vesalius.data.locking import exclusive
from vesalius.data.prepare import for_dims, prepare, runs, split_item, store_key, with_channels

COUNT = 40
# Leaves room for chunks of four rows with two threads.
MEMORY = 16 * 3 * 4 * SIDE * SIDE


@pytest.fixture
def cohort(tmp_path):
    return png_folder(tmp_path / "data", pictures(COUNT))


@pytest.fixture
def decoded(monkeypatch):
    """Paths that were opened."""
    import vesalius.io.open

    seen, real = [], vesalius.io.open.open_image
    monkeypatch.setattr(
        vesalius.io.open, "open_image", lambda path, **options: (seen.append(Path(path).name), real(path, **options))[1]
    )
    return seen


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_the_second_time_there_is_nothing_to_do(cohort, tmp_path, decoded):
    first = prepare(cohort, plain(), cache=tmp_path / "cache", workers=2)
    assert sorted(decoded) == [f"p{k:03d}.png" for k in range(COUNT)]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.folder.rglob("*")}
    second = prepare(cohort, plain(), cache=tmp_path / "cache")
    assert len(decoded) == COUNT
    assert second.folder == first.folder
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in second.folder.rglob("*")} == before


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("memory", [MEMORY, None])
def test_workers_and_chunks_do_not_change_the_store(cohort, tmp_path, workers, memory):
    one = prepare(cohort, plain(), cache=tmp_path / "a", workers=2, memory_bytes=2 * MEMORY)
    two = prepare(cohort, plain(), cache=tmp_path / "b", workers=workers, memory_bytes=memory)
    assert contents(one.folder) == contents(two.folder)
    assert np.array_equal(two.read(range(COUNT))[:, 0], pictures(COUNT))


def test_the_key_follows_content_and_spec(cohort, tmp_path):
    key = store_key(cohort, plain().spec)
    file = cohort.root / "p007.png"
    assert store_key(cohort, plain(fit="pad").spec) != key
    assert store_key(cohort, plain(SIDE + 1).spec) != key
    assert store_key(manifest_of(cohort.root, cohort.cases["path"].tolist()[::-1]), plain().spec) != key
    assert store_key(manifest_of(cohort.root, cohort.cases["path"].tolist()[:-1]), plain().spec) != key
    stat, data = file.stat(), bytearray(file.read_bytes())
    os.utime(file, (1, 1))
    assert store_key(cohort, plain().spec) == key  # only the content counts
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store_key(cohort, plain().spec) != key  # one bit, same size, same time


def test_the_key_does_not_depend_on_the_place(cohort, tmp_path):
    cohort.root.rename(tmp_path / "moved")
    moved = manifest_of(tmp_path / "moved", cohort.cases["path"].tolist())
    png_folder(cohort.root, pictures(COUNT))
    assert store_key(moved, plain().spec) == store_key(cohort, plain().spec)


@pytest.mark.parametrize(
    "broken",
    [b"", b"not a picture at all", "half"],
    ids=["empty", "text", "half"],
)
def test_an_unreadable_file_is_marked_and_the_rest_kept(cohort, tmp_path, broken):
    file = cohort.root / "p005.png"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if broken == "half" else broken)
    store = prepare(cohort, plain(), cache=tmp_path / "cache", workers=2, memory_bytes=MEMORY)
    assert store.index["ok"].tolist() == [k != 5 for k in range(COUNT)]
    reason = store.index["reason"].iloc[5]
    assert "p005.png" in reason
    assert "\n" not in reason
    good = [k for k in range(COUNT) if k != 5]
    assert np.array_equal(store.read(good)[:, 0], pictures(COUNT)[good])
    assert not store.read([5]).any()
    assert len(store.signatures()) == COUNT


def test_a_missing_file_is_data_that_cannot_be_used(cohort, tmp_path):
    (cohort.root / "p003.png").unlink()
    with pytest.raises((DataError, OSError)):
        prepare(cohort, plain(), cache=tmp_path / "cache")


def test_nothing_readable_is_an_error_and_leaves_no_store(tmp_path):
    cohort = png_folder(tmp_path / "data", pictures(5))
    for path in cohort.cases["path"]:
        (cohort.root / path).write_bytes(b"rubbish")
    for _ in range(2):  # also the second time
        with pytest.raises(DataError, match="not one of 5 images") as caught:
            prepare(cohort, plain(), cache=tmp_path / "cache")
        assert "p000.png" in str(caught.value)
    assert not (tmp_path / "cache" / "store" / store_key(cohort, plain().spec)).exists()


def test_another_number_of_dimensions_is_marked(cohort, tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), cohort.root / "v.nii")
    mixed = manifest_of(cohort.root, ["p000.png", "v.nii", "p001.png"])
    store = prepare(mixed, plain(), cache=tmp_path / "cache")
    assert store.index["ok"].tolist() == [True, False, True]
    assert "3 dimensions" in store.index["reason"].iloc[1]


def test_a_volume_of_one_slice_is_a_picture(tmp_path):
    import nibabel as nib

    from vesalius.io.open import open_image

    values = np.arange(12, dtype=np.uint8).reshape(4, 3)  # y, x
    nib.save(nib.Nifti1Image(values.T[:, :, None], np.diag([0.5, 0.25, 4, 1])), tmp_path / "v.nii")
    image = for_dims(open_image(tmp_path / "v.nii"), 2)
    assert np.array_equal(image.pixels[0], values)
    assert image.grid.spacing_mm == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("colours", [0, 3])
def test_items_of_an_array_file(tmp_path, colours):
    shape = (SIDE, SIDE, 3) if colours else (SIDE, SIDE)
    values = pictures(11, shape=shape)
    np.savez_compressed(tmp_path / "d.npz", images=values, other=np.zeros(3))
    order = [4, 5, 6, 0, 1, 10, 9]
    cohort = manifest_of(tmp_path, [f"d.npz#images/{k}" for k in order])
    store = prepare(cohort, plain(channels=3 if colours else 1), cache=tmp_path / "cache", workers=2)
    expected = np.moveaxis(values[order], -1, 1) if colours else values[order][:, None]
    assert np.array_equal(store.read(range(7)), expected)


def test_runs_of_items():
    paths = [
        "a.npz#x/0",
        "a.npz#x/1",
        "a.npz#x/3",
        "a.npz#y/4",
        "b.npz#y/5",
        "c.png",
        "d.png",
        "b.npz#y/6",
        "b.npz#y/7",
    ]
    assert runs(paths) == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 9)]
    assert runs([]) == []
    assert split_item("a#b/c.npz#x/17") == ("a#b/c.npz", "x", 17)


def test_channels_of_items():
    assert with_channels(np.zeros((5, 8, 9)), 2).shape == (5, 1, 8, 9)
    assert with_channels(np.zeros((5, 8, 9, 3)), 2).shape == (5, 3, 8, 9)
    assert with_channels(np.zeros((5, 8, 9, 4)), 2).shape == (5, 3, 8, 9)
    assert with_channels(np.zeros((5, 7, 8, 9)), 3).shape == (5, 1, 7, 8, 9)
    with pytest.raises(DataError, match="axes"):
        with_channels(np.zeros((5, 8, 9, 2)), 2)


# What the other process does: WHEN tells before which of the atomic JSON records it is killed. The first is the head of
# the work, then one per chunk of four rows (its pixels are on disk by then), the last one makes the store whole.
OTHER = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
import vesalius.io.open
import vesalius.data.prepare as room
from store_material import manifest_of, plain
root, cache, when, go = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
seen, real_open, real_write = [], vesalius.io.open.open_image, room.write_json
vesalius.io.open.open_image = lambda path, **options: (seen.append(path), real_open(path, **options))[1]
calls = []
def write_json(path, data):
    calls.append(path)
    if len(calls) == when:
        os.kill(os.getpid(), signal.SIGKILL)
    return real_write(path, data)
room.write_json = write_json
manifest = manifest_of(root, sorted(path.name for path in root.iterdir()))
(go.parent / f"ready-{{os.getpid()}}").touch()
while not go.exists():
    time.sleep(0.005)
store = room.prepare(manifest, plain(), cache=cache, workers=1, memory_bytes={MEMORY // 3 * 2})
print(len(seen), store.read(range(store.rows)).sum(), (store.folder / "pixels.bin").stat().st_ino)
"""


def other(cohort, cache, when, go):
    words = [sys.executable, "-c", OTHER, cohort.root, cache, when, go]
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "when", [1, 2, 5, COUNT // 4 + 2], ids=["at once", "first chunk", "fourth chunk", "last record"]
)
def test_a_killed_preparation_goes_on_and_ends_in_the_same_store(cohort, tmp_path, decoded, when):
    go = tmp_path / "go"
    go.touch()
    killed = other(cohort, tmp_path / "cache", when, go)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    key = store_key(cohort, plain().spec)
    assert not (tmp_path / "cache" / "store" / key).exists()  # a half-made store is never seen
    store = prepare(cohort, plain(), cache=tmp_path / "cache", workers=1, memory_bytes=MEMORY // 3 * 2)
    if 2 < when < COUNT // 4:
        assert len(decoded) == COUNT - 4 * (when - 2)  # chunks with a record are not done again
    whole = prepare(cohort, plain(), cache=tmp_path / "other", workers=1, memory_bytes=MEMORY // 3 * 2)
    assert contents(store.folder) == contents(whole.folder)
    assert np.array_equal(store.read(range(COUNT))[:, 0], pictures(COUNT))


@pytest.mark.slow
def test_two_processes_at_once_do_the_work_once(cohort, tmp_path):
    go, cache = tmp_path / "go", tmp_path / "cache"
    both = [other(cohort, cache, 0, go) for _ in range(2)]
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    go.touch()
    said = []
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append([int(word) for word in out.split()])
    assert sorted(words[0] for words in said) == [0, COUNT]
    assert {words[1] for words in said} == {int(pictures(COUNT).sum())}
    assert said[0][2] == said[1][2]


def test_a_lock_is_waited_for_and_then_given_up(tmp_path):
    with exclusive(tmp_path / "lock") as waited:
        assert waited is False
        with (
            pytest.raises(ResourceError, match="held by another process"),
            exclusive(tmp_path / "lock", patience_s=0.05, poll_s=0.01),
        ):
            pytest.fail("two holders of one lock")
    with exclusive(tmp_path / "lock", patience_s=0) as waited:
        assert waited is False


def test_a_full_disk_is_said_before_anything_is_decoded(cohort, tmp_path, monkeypatch, decoded):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, COUNT * SIDE * SIDE - 1))
    with pytest.raises(ResourceError, match="VESALIUS_CACHE"):
        prepare(cohort, plain(), cache=tmp_path / "cache")
    assert decoded == []


def test_prepared_pixels_are_for_their_owner_only(cohort, tmp_path):
    store = prepare(cohort, plain(), cache=tmp_path / "cache")
    assert (store.folder.parent.stat().st_mode & 0o077) == 0
