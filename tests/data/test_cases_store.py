"""Prepared cases, the patches cut from them, and the survey before: whole, repeatable, and what numpy says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.data.cases import joined, mask_values, places_of, prepare_cases
from vesalius.data.discover import discover
from vesalius.data.patches import Patches, cut
from vesalius.data.segment_survey import survey_segments
from vesalius.data.truth import open_case_image, open_channels, open_truth
from vesalius.phantoms.layouts import write_tree
from vesalius.tasks.instances import instance_targets
from vesalius.transforms.conform import Conform

COUNT, SIDE = 6, 24
SPEC = {
    "dims": 3,
    "channels": 1,
    "orient": True,
    "crop": "none",
    "spacing_mm": [1.0, 1.2, 1.2],
    "scale": 1.0,
    "window": None,
    "normalise": {"kind": "body"},
}
FLAT = SPEC | {"dims": 2, "spacing_mm": None, "channels": 3, "normalise": {"kind": "percentile"}}


@pytest.fixture(scope="module")
def solids(tmp_path_factory):
    root = tmp_path_factory.mktemp("solids") / "data"
    return discover(write_tree("solid", root, layout="nnunet", cases=COUNT, seed=1, size=SIDE))


@pytest.fixture(scope="module")
def store(solids, tmp_path_factory):
    return prepare_cases(solids, SPEC, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    root = tmp_path_factory.mktemp("cells") / "data"
    options = {"layout": "paired-folders", "cases": 3, "seed": 1, "size": 96, "instances": True, "cells": 12}
    return discover(write_tree("smear", root, **options))


def arrays(store):
    """Everything a row holds, read back."""
    found = {}
    for row in range(store.rows):
        whats = ("image", "mask", *(("further",) if store.has_further() else ()))
        found |= {(row, what): np.asarray(getattr(store, what)(row)[...]) for what in whats}
        found |= {(row, "places", v): store.places(row, v) for v in range(len(mask_values(store.labels)))}
    return found


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestStore:
    def test_a_case_is_what_conform_says(self, solids, store):
        assert store.rows == COUNT
        assert store.index["ok"].all()
        assert store.labels.names == ("background", "body")
        for row, case in enumerate(solids.cases["case_id"]):
            image = open_case_image(solids, case)
            seen = Conform(SPEC)(image)
            assert store.shape(row) == seen.shape == (24, 20, 20)
            np.testing.assert_array_equal(np.asarray(store.image(row)[...]), seen.all().astype(np.float16))
            mask = seen.labels(open_truth(solids, case, image))
            np.testing.assert_array_equal(np.asarray(store.mask(row)[...])[0], mask)
            np.testing.assert_array_equal(store.counts(row), [(mask == 0).sum(), (mask == 1).sum()])
            assert store.index["spacing"].iloc[row] == "1x1.2x1.2"

    def test_found_made_the_second_time(self, solids, tmp_path, monkeypatch):
        first = prepare_cases(solids, SPEC, cache=tmp_path)
        before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in first.folder.rglob("*")}
        monkeypatch.setattr("vesalius.data.truth.open_case_image", lambda *a: pytest.fail("opened again"))
        second = prepare_cases(solids, SPEC, cache=tmp_path)
        assert second.folder == first.folder
        assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in second.folder.rglob("*")} == before

    def test_workers_do_not_change_a_byte(self, solids, store, tmp_path):
        assert contents(prepare_cases(solids, SPEC, cache=tmp_path, workers=3).folder) == contents(store.folder)

    def test_the_key_follows_spec_targets_and_names(self, solids, store, tmp_path):
        other = prepare_cases(solids, SPEC | {"crop": "border"}, cache=tmp_path)
        further = prepare_cases(solids, SPEC, cache=tmp_path, further=instance_targets)
        assert len({store.key, other.key, further.key}) == 3

    def test_from_disk_and_from_memory_the_same(self, store):
        from vesalius.data.cases import CaseStore

        mapped, kept = CaseStore(store.folder, resident_bytes=0), CaseStore(store.folder)
        part = (slice(None), slice(3, 17), slice(2, 9), slice(5, 20))
        for row in range(COUNT):
            np.testing.assert_array_equal(np.asarray(mapped.image(row)[part]), kept.image(row)[part])
        assert isinstance(kept.image(0), np.ndarray)
        assert not isinstance(mapped.image(0), np.ndarray)

    def test_places_are_voxels_of_their_label(self, store):
        for row in range(COUNT):
            mask = np.asarray(store.mask(row)[...])[0]
            for value in (0, 1):
                found = store.places(row, value)
                assert (mask[tuple(found.T)] == value).all()
                assert len(found) == min(4096, int((mask == value).sum()))
            assert store.places(row, 7).shape == (0, 3)

    def test_sampled_places_are_spread_evenly(self):
        mask = np.zeros((40, 40, 40), dtype=np.uint8)
        mask[:, :20] = 1
        (_, found), counts = places_of(mask, [0, 1], key="a")
        assert counts.tolist() == [32000, 32000]
        assert len(found) == 4096
        per_octant = np.bincount((found[:, 0] >= 20) * 2 + (found[:, 2] >= 20), minlength=4) / 4096
        np.testing.assert_allclose(per_octant, 0.25, atol=0.03)
        again, _ = places_of(mask, [0, 1], key="a")
        np.testing.assert_array_equal(again[1], found)
        assert not np.array_equal(places_of(mask, [0, 1], key="b")[0][1], found)

    def test_an_unreadable_case_is_recorded_and_left_out(self, tmp_path):
        root = write_tree("solid", tmp_path / "data", layout="nnunet", cases=8, seed=1, size=SIDE)
        name = "imagesTr/solid0000{}_0000.nii.gz"
        made = nib.load(root / name.format(0))
        values = np.asarray(made.dataobj).astype(np.float32)
        change = {
            0: np.where(np.arange(values.size).reshape(values.shape) == 5, np.nan, values),
            1: np.full_like(values, 3),
        }
        for case, pixels in change.items():
            nib.save(nib.Nifti1Image(pixels.astype(np.float32), made.affine), root / name.format(case))
        manifest = discover(root)
        (root / name.format(2)).write_bytes(b"no volume")
        shifted = made.affine.copy()
        shifted[:3, 3] += 3.5
        mask = nib.load(root / "labelsTr/solid00003.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), shifted), root / "labelsTr/solid00003.nii.gz")
        wrong = np.asarray(nib.load(root / "labelsTr/solid00004.nii.gz").dataobj) * 3
        nib.save(nib.Nifti1Image(wrong.astype(np.uint8), mask.affine), root / "labelsTr/solid00004.nii.gz")
        found = prepare_cases(manifest, SPEC, cache=tmp_path / "cache")
        assert found.index["ok"].tolist() == [False] * 5 + [True] * 3
        said = found.index["reason"].tolist()
        for line, words, file in (
            (said[0], "1 values are not finite", "solid00000_0000"),
            (said[1], "every pixel has the value 3", "solid00001_0000"),
            (said[2], "", "solid00002_0000"),
            (said[3], "another place", "solid00003.nii"),
            (said[4], "the value 3", "solid00004.nii"),
        ):
            assert words in line
            assert file in line
            assert "\n" not in line
        assert found.image(5).shape == (1, 24, 20, 20)

    def test_not_one_readable_case(self, tmp_path):
        root = write_tree("solid", tmp_path / "data", layout="nnunet", cases=2, seed=1, size=SIDE)
        manifest = discover(root)
        for path in (root / "imagesTr").iterdir():
            path.write_bytes(b"no volume")
        with pytest.raises(DataError, match=r"not one of 2 cases can be read; the first: .*solid00000_0000"):
            prepare_cases(manifest, SPEC, cache=tmp_path / "cache")

    def test_objects_bring_their_targets(self, cells, tmp_path):
        found = prepare_cases(cells, FLAT, cache=tmp_path, further=instance_targets)
        assert found.has_further()
        mask = np.asarray(found.mask(0)[...])[0]
        assert mask.max() > 3
        np.testing.assert_array_equal(np.asarray(found.further(0)[...]), instance_targets(mask).astype(np.float16))
        np.testing.assert_array_equal(found.counts(0), [(mask == 0).sum(), (mask > 0).sum()])
        # Every object can be drawn, not only the one with number 1.
        drawn = mask[tuple(found.places(0, 1).T)]
        assert (drawn > 0).all()
        assert len(np.unique(drawn)) > 3


KILLED = f"""
import os, signal, sys
from pathlib import Path
import vesalius.data.cases as room
from vesalius.data.discover import discover

root, cache, when = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls, real = [], room.write_json
def write_json(path, data):
    calls.append(path)
    if len(calls) == when:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, data)
room.write_json = write_json
room.prepare_cases(discover(root), {SPEC!r}, cache=cache)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", [1, 4, COUNT + 1], ids=["first case", "in the middle", "the head"])
def test_a_killed_preparation_goes_on_with_the_same_bytes(solids, store, tmp_path, when, monkeypatch):
    words = [sys.executable, "-c", KILLED, str(solids.root), str(tmp_path), str(when)]
    world = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, check=False, capture_output=True, timeout=120, env=world)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "cases" / store.key).exists()
    opened, real = [], open_case_image
    monkeypatch.setattr("vesalius.data.truth.open_case_image", lambda m, case: (opened.append(case), real(m, case))[1])
    found = prepare_cases(solids, SPEC, cache=tmp_path)
    assert len(opened) == COUNT - (when - 1)
    assert contents(found.folder) == contents(store.folder)


class TestPatches:
    def make(self, store, **options):
        settings = {"size": 4, "seed": 5, "patch": (12, 10, 10), "foreground": 0.5} | options
        return Patches(store, np.arange(COUNT), **settings)

    def test_a_batch_is_a_function_of_seed_and_step(self, store):
        one, two = self.make(store), self.make(store)
        for step in (7, 0, 3):
            a, b = one(step), two(step)
            np.testing.assert_array_equal(a.pixels, b.pixels)
            np.testing.assert_array_equal(a.targets, b.targets)
        streamed = list(self.make(store).stream(2, 6))
        assert [batch.step for batch in streamed] == [2, 3, 4, 5]
        for batch in streamed:
            np.testing.assert_array_equal(batch.pixels, one(batch.step).pixels)
        assert not np.array_equal(one(0).pixels, one(1).pixels)
        assert not np.array_equal(one(0).pixels, self.make(store, seed=6)(0).pixels)

    def test_two_processes_see_together_what_one_sees(self, store):
        for step in range(4):
            whole = self.make(store)(step)
            parts = [self.make(store, rank=rank, world=2)(step) for rank in range(2)]
            assert [part.first for part in parts] == [0, 2]
            np.testing.assert_array_equal(np.concatenate([p.pixels for p in parts]), whole.pixels)
            np.testing.assert_array_equal(np.concatenate([p.targets for p in parts]), whole.targets)
        with pytest.raises(ValueError, match="does not divide over 3"):
            self.make(store, world=3)

    def test_every_case_once_in_an_epoch(self, store):
        batches = self.make(store)
        assert batches.steps_per_epoch == COUNT / 4
        drawn = np.concatenate([batches.places(step) for step in range(9)]).reshape(-1, COUNT)
        for epoch in drawn:
            assert sorted(epoch) == list(range(COUNT))
        assert len({tuple(epoch) for epoch in drawn}) > 1

    def test_a_patch_is_a_part_of_its_case(self, store):
        batches = self.make(store)
        batch = batches(3)
        assert batch.pixels.shape == (4, 1, 12, 10, 10)
        assert batch.targets.shape == (4, 1, 12, 10, 10)
        for item, place in enumerate(batch.places):
            start = batches.start(3, item, int(place))
            box = (slice(None), *(slice(a, a + n) for a, n in zip(start, batches.patch, strict=True)))
            np.testing.assert_array_equal(batch.pixels[item], np.asarray(store.image(int(place))[...])[box])
            np.testing.assert_array_equal(batch.targets[item], np.asarray(store.mask(int(place))[...])[box])

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_share_of_patches_around_a_structure(self, share):
        store = Corner()
        batches = Patches(store, np.arange(1), size=1, seed=0, patch=(4, 4, 4), foreground=share)
        starts = np.array([batches.start(step, 0, 0) for step in range(3000)])
        hits = float(np.mean([(start + 4 > 38).all() and (start <= 38).all() for start in starts]))
        # The structure is one voxel at 38 of 40; a random patch of 4 holds it with chance (3 / 37)^3.
        random = (3 / 37) ** 3
        assert hits == pytest.approx(share + (1 - share) * random, abs=0.03)
        if share == 1:
            assert hits == 1

    def test_rare_structures_are_drawn_as_often_as_frequent_ones(self):
        store = Corner(names=3)
        batches = Patches(store, np.arange(1), size=1, seed=0, patch=(4, 4, 4), foreground=1.0)
        starts = np.array([batches.start(step, 0, 0) for step in range(2000)])
        rare = np.mean([(start + 4 > 38).all() for start in starts])
        assert rare == pytest.approx(0.5, abs=0.04)

    def test_beyond_the_borders(self, store):
        batches = self.make(store, patch=(30, 12, 26), outside=9)
        for step in range(3):
            batch = batches(step)
            assert batch.pixels.shape == (4, 1, 30, 12, 26)
            for item, place in enumerate(batch.places):
                beyond = batch.targets[item] == 9
                assert int((~beyond).sum()) == 24 * 12 * 20  # the case is whole along the short sides
                assert (batch.pixels[item][beyond] == 0).all()
                start = batches.start(step, item, int(place))
                assert -6 <= start[0] <= 0 <= start[1] <= 8
                assert -6 <= start[2] <= 0

    def test_further_targets_come_along(self, cells, tmp_path):
        store = prepare_cases(cells, FLAT, cache=tmp_path, further=instance_targets)
        batch = Patches(store, np.arange(3), size=3, seed=0, patch=(64, 64), foreground=0.5)(0)
        assert batch.targets.shape == (3, 3, 64, 64)
        assert set(np.unique(batch.targets[:, 0])) == {0, 1}
        # The distance belongs to the foreground (half a pixel of tolerance at objects cut by the store's edge).
        assert (batch.targets[:, 1][batch.targets[:, 0] == 0] == 0).all()
        assert (batch.targets[:, 1] > 0.5).any()

    def test_no_cases(self, store):
        with pytest.raises(ValueError, match="no training cases"):
            Patches(store, np.arange(0), size=1, seed=0, patch=(4, 4, 4))


class Corner:
    """A case of 40 voxels a side with one voxel of the last label near the far corner, and many of the first."""

    def __init__(self, names=2):
        self.labels = Labels(("background", "organ", "lesion")[:names])
        far = np.full((1, 3), 38)
        near = np.stack(np.unravel_index(np.arange(8000), (20, 20, 20)), axis=1)
        self._places = [np.empty((0, 3), np.int64), near, far] if names == 3 else [np.empty((0, 3), np.int64), far]

    def shape(self, row):
        return (40, 40, 40)

    def places(self, row, value):
        return self._places[value]


@pytest.mark.parametrize("start", [(-2, 3), (0, 0), (5, -1), (6, 7), (-1, -1)])
def test_cut_pads_what_is_missing(start):
    values = np.arange(2 * 8 * 9).reshape(2, 8, 9)
    wide = np.pad(values, ((0, 0), (10, 10), (10, 10)), constant_values=-1)
    wanted = wide[:, start[0] + 10 : start[0] + 15, start[1] + 10 : start[1] + 16]
    np.testing.assert_array_equal(cut(values, start, (5, 6), -1), wanted)


class TestValues:
    def test_of_every_kind_of_labels(self):
        assert mask_values(Labels(("background", "a", "b"))) == [0, 1, 2]
        assert mask_values(Labels(("background", "cell"), instances=True)) == [0, 1]
        brats = Labels(("whole", "core", "enhancing"), multilabel=True, regions=((1, 2, 4), (1, 4), (4,)))
        assert mask_values(brats) == [0, 1, 2, 4]
        assert mask_values(Labels(("a", "b"), multilabel=True)) == [0, 1, 2, 3]

    def test_structures_that_overlap_become_bits(self):
        planes = np.random.default_rng(0).integers(0, 2, (9, 3, 4, 5)).astype(np.uint8)
        found = joined(planes, 3)
        assert found.dtype == np.uint16
        for bit in range(9):
            np.testing.assert_array_equal(found >> bit & 1, planes[bit])
        np.testing.assert_array_equal(joined(planes[0], 3), planes[0])
        with pytest.raises(DataError, match="17 overlapping structures"):
            joined(np.zeros((17, 2, 2, 2), np.uint8), 3)


def test_numbered_objects_count_together_and_nothing_else_does():
    mask = np.array([[0, 1, 7], [2, 1, 0]], dtype=np.uint8)
    places, counts = places_of(mask, [0, 1], key="k", objects=True)
    assert counts.tolist() == [2, 4]
    assert places[1].tolist() == [[0, 1], [0, 2], [1, 0], [1, 1]]
    one_region = Labels(("enhancing",), multilabel=True, regions=((2,),))
    places, counts = places_of(mask, mask_values(one_region), key="k")
    assert counts.tolist() == [2, 1]
    assert places[1].tolist() == [[1, 0]]


def test_an_ignored_value_is_no_structure():
    mask = np.array([[0, 1, 255], [1, 255, 0]], dtype=np.uint8)
    _, counts = places_of(mask, mask_values(Labels(("background", "a"), ignore=255)), key="k")
    assert counts.tolist() == [2, 2]


class TestChannels:
    def write(self, folder, count=2, shift=0.0):
        paths = []
        for channel in range(count):
            affine = np.diag([1.0, 2.0, 3.0, 1.0])
            affine[0, 3] = shift * channel
            values = np.random.default_rng(channel).integers(0, 99, (5, 6, 7)).astype(np.int16)
            paths.append(folder / f"case_{channel:04d}.nii.gz")
            nib.save(nib.Nifti1Image(values, affine), paths[-1])
        return paths

    def test_files_become_channels(self, tmp_path):
        paths = self.write(tmp_path)
        image = open_channels(paths)
        assert image.pixels.shape == (2, 7, 6, 5)
        for channel, path in enumerate(paths):
            np.testing.assert_array_equal(image.pixels[channel], np.asarray(nib.load(path).dataobj).T)

    def test_files_on_other_grids_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"case_0001.*resample the channel to the image"):
            open_channels(self.write(tmp_path, shift=2.0))


class TestSurvey:
    def test_numbers_of_solids(self, solids):
        found = survey_segments(solids)
        assert (found.cases, found.looked, found.dims, found.channels) == (COUNT, COUNT, 3, 1)
        assert found.shape == (SIDE,) * 3
        assert found.spacing == pytest.approx((1.0, 1.0, 1.0))
        masks, inside = [], []
        for case in solids.cases["case_id"]:
            image = open_case_image(solids, case)
            masks.append(open_truth(solids, case, image))
            inside.append(image.pixels[0][masks[-1] > 0].astype(float))
        np.testing.assert_array_equal(found.volumes, [[(m == 0).sum(), (m == 1).sum()] for m in masks])
        values = np.concatenate(inside)
        wanted = [values.mean(), values.std(), *np.percentile(values, (0.5, 99.5))]
        np.testing.assert_allclose(found.foreground[0], wanted, rtol=1e-4)
        assert found.lowest == pytest.approx(np.percentile(values, 0.1))
        assert found.to_json()["dims"] == 3

    def test_size_and_number_of_objects(self, cells):
        found = survey_segments(cells)
        truths = [open_truth(cells, case, open_case_image(cells, case)) for case in cells.cases["case_id"]]
        areas = [ndimage.sum_labels(np.ones(t.shape), t, np.unique(t)[1:]) for t in truths]
        diameters = 2 * np.sqrt(np.concatenate(areas) / np.pi)
        assert found.objects == pytest.approx((np.median(diameters), len(diameters) / 3))
        assert found.colour
        assert found.spacings is None

    def test_test_cases_are_not_looked_at(self, solids, monkeypatch):
        frame = solids.frame.copy()
        tests = frame["case_id"].isin(["solid00001", "solid00004"])
        frame["split"] = np.where(tests, "test", "train")
        opened = []
        monkeypatch.setattr(
            "vesalius.data.segment_survey.open_case_image",
            lambda m, case: (opened.append(case), open_case_image(m, case))[1],
        )
        found = survey_segments(solids.with_frame(frame))
        assert found.looked == COUNT - 2
        assert not {"solid00001", "solid00004"} & set(opened)

    def test_unreadable_cases_are_told(self, tmp_path):
        root = write_tree("solid", tmp_path / "data", layout="nnunet", cases=3, seed=1, size=SIDE)
        manifest = discover(root)
        images = sorted(Path(root / "imagesTr").iterdir())
        images[0].write_bytes(b"no volume")
        found = survey_segments(manifest)
        assert found.looked == 2
        assert len(found.failed) == 1
        assert images[0].name in found.failed[0]
        for path in images:
            path.write_bytes(b"no volume")
        with pytest.raises(DataError, match="none of 3 cases can be read; the first: "):
            survey_segments(manifest)
