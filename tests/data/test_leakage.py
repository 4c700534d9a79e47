"""Signatures, duplicates and the judgement on a split."""

from __future__ import annotations

import hashlib
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from vesalius.core.errors import LeakageError, UnreadableFile
from vesalius.core.geometry import Grid
from vesalius.core.image import Image
from vesalius.data.duplicates import NEAR, exact_groups, find_duplicates, likeness, mirror
from vesalius.data.leakage import check_leakage, duplicate_groups, repair, repair_published
from vesalius.data.signature import Signatures, concatenate, signatures_from_arrays, signatures_from_image


def textures(count: int, side: int = 64, *, seed: int = 0) -> np.ndarray:
    """Different random pictures ``(count, side, side)`` uint8 with detail of a few pixels."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    smooth = gaussian_filter(noise, (0, 2, 2)) + 2 * gaussian_filter(noise, (0, 6, 6))
    smooth /= smooth.std(axis=(1, 2), keepdims=True)
    return np.clip(128 + 40 * smooth, 0, 255).astype(np.uint8)


def saved_again(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Picture.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Picture.open(stream))


def signed(pictures) -> Signatures:
    return concatenate(signatures_from_arrays(picture[None, None]) for picture in pictures)


def table(splits, *, patients=None, labels=None) -> pd.DataFrame:
    count = len(splits)
    return pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(count)],
            "split": list(splits),
            "patient_id": patients or [f"p{i}" for i in range(count)],
            "label": labels or ["a"] * count,
        }
    )


class TestHash:
    def test_ignores_type_and_container(self):
        pixels = textures(1)[0]
        image = Image(Grid(pixels.shape), np.stack([pixels] * 3))
        hashes = [
            signatures_from_arrays(pixels[None, None].astype(kind)).hashes
            for kind in ("u1", "<i2", ">i2", "i8", "f4", "f8")
        ]
        hashes.append(signatures_from_image(image).hashes)
        assert all(np.array_equal(hashes[0], other) for other in hashes)

    @given(st.integers(0, 63), st.integers(0, 63), st.sampled_from(["u1", "i2", "f4", "f8"]))
    @settings(max_examples=25, deadline=None)
    def test_one_pixel_changes_it(self, y, x, kind):
        pixels = textures(1).astype(kind)
        other = pixels.copy()
        other[0, y, x] += 1
        assert not np.array_equal(
            signatures_from_arrays(pixels[:, None]).hashes, signatures_from_arrays(other[:, None]).hashes
        )

    def test_shape_belongs_to_it(self):
        flat = np.arange(48, dtype=np.uint8)
        assert not np.array_equal(
            signatures_from_arrays(flat.reshape(1, 1, 6, 8)).hashes,
            signatures_from_arrays(flat.reshape(1, 1, 8, 6)).hashes,
        )

    def test_small_float_differences_are_kept(self):
        one = np.full((1, 1, 4, 4), 0.1)
        one[..., 0] = 0.5
        two = one.copy()
        two[..., 1] = np.nextafter(0.1, 1)
        assert not np.array_equal(signatures_from_arrays(one).hashes, signatures_from_arrays(two).hashes)

    def test_refuses_other_axes(self):
        with pytest.raises(ValueError, match=r"\(N, C, Y, X\).*\(3, 64, 64\)"):
            signatures_from_arrays(textures(3))


class TestSignatures:
    def test_stack_equals_single_images(self):
        stack = textures(5)
        whole, single = signatures_from_arrays(stack[:, None]), signed(stack)
        assert np.array_equal(whole.hashes, single.hashes)
        assert np.abs(whole.descriptors[2].fine.astype(int) - single.descriptors[2].fine).max() <= 1

    def test_take_and_save(self, tmp_path):
        volumes = np.random.default_rng(0).integers(0, 255, (2, 1, 40, 40, 40)).astype(np.uint8)
        mixed = concatenate([signed(textures(3, 20)), signatures_from_arrays(volumes), signed(textures(4))])
        assert mixed.comparable.tolist() == [False] * 3 + [True] * 6
        some = mixed.take([8, 0, 3, 8])
        assert some.comparable.tolist() == [True, False, True, True]
        assert np.array_equal(some.hashes, mixed.hashes[[8, 0, 3, 8]])
        assert np.array_equal(some.descriptors[2].fine[0], mixed.descriptors[2].fine[-1])
        assert np.array_equal(some.descriptors[2].rows, [0, 3])
        again = Signatures.load(mixed.save(tmp_path / "s.npz"))
        assert np.array_equal(again.hashes, mixed.hashes)
        assert all(np.array_equal(again.descriptors[d].fine, mixed.descriptors[d].fine) for d in (2, 3))

    def test_refuses_foreign_file(self, tmp_path):
        (tmp_path / "s.npz").write_bytes(b"PK nonsense")
        with pytest.raises(UnreadableFile, match=r"s\.npz.*made again"):
            Signatures.load(tmp_path / "s.npz")

    def test_empty(self):
        nothing = concatenate([])
        assert len(nothing) == 0
        assert len(find_duplicates(nothing).pairs) == 0

    def test_nan_and_blank(self):
        pictures = textures(2).astype(np.float32)
        pictures[0, :4] = np.nan
        blank = np.full((2, 1, 64, 64), 7.0)
        blank[1] = np.nan
        assert signatures_from_arrays(pictures[:, None]).comparable.all()
        assert signatures_from_arrays(blank).blank.all()
        assert not signatures_from_arrays(blank).comparable.any()


class TestLikeness:
    def test_finds_a_turned_and_shifted_copy(self):
        from scipy.ndimage import affine_transform

        first = textures(1, 128)[0]
        turn = np.array([[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]) * 0.98
        centre = np.array([63.5, 63.5])
        moved = affine_transform(first.astype(float), turn, centre - turn @ centre + [2.0, -1.5], mode="nearest")
        fine = signed([first, moved]).descriptors[2].fine
        inner = [d.reshape(32, 32)[2:-2, 2:-2].ravel() for d in fine]
        assert np.corrcoef(inner)[0, 1] < 0.9  # it is not found where it stands
        assert likeness(fine[:1], fine[1:], 2)[0] > 0.97

    def test_is_the_correlation_when_nothing_moved(self):
        pixels = textures(1, 96)[0].astype(float)
        noisy = pixels + np.random.default_rng(1).normal(0, 60, pixels.shape)
        fine = signed([pixels, noisy]).descriptors[2].fine
        inner = [d.reshape(32, 32)[2:-2, 2:-2].ravel().astype(float) for d in fine]
        value = np.corrcoef(inner)[0, 1]
        assert value < 0.95
        assert likeness(fine[:1], fine[1:], 2)[0] == pytest.approx(value, abs=0.03)
        assert likeness(fine[:1], fine[1:], 2)[0] >= value - 1e-4

    def test_volumes(self):
        from scipy.ndimage import gaussian_filter, shift

        noise = gaussian_filter(np.random.default_rng(0).normal(size=(2, 48, 48, 48)), (0, 3, 3, 3))
        moved = shift(noise[0], (1.5, -1.0, 1.5), mode="nearest")
        fine = signed([noise[0], noise[1], 3 * moved + 5]).descriptors[3].fine
        assert likeness(fine[:1], fine[2:], 3)[0] > 0.95
        assert likeness(fine[:1], fine[1:2], 3)[0] < 0.6

    def test_mirror(self):
        picture = textures(1, 64)[0]
        both = signed([picture, picture[:, ::-1]]).descriptors[2]
        assert np.abs(mirror(both.fine[:1], 2).astype(int) - both.fine[1:]).max() <= 1


class TestDuplicates:
    def test_exact_groups_against_dictionary(self):
        stack = textures(12, 24)[[0, 1, 2, 1, 3, 0, 4, 1, 5, 6, 7, 8]]
        expected: dict[str, list[int]] = {}
        for row, picture in enumerate(stack):
            expected.setdefault(hashlib.md5(picture.tobytes()).hexdigest(), []).append(row)
        found = {tuple(g) for g in exact_groups(find_duplicates(signed(stack)).group)}
        assert found == {tuple(rows) for rows in expected.values() if len(rows) > 1}

    @pytest.mark.parametrize("parts", [None, ["train"] * 30 + ["test"] * 6])
    def test_finds_copies_and_nothing_else(self, parts):
        stack = list(textures(30, 80))
        copies = [
            saved_again(stack[3], 75),
            np.clip(stack[5].astype(int) + 20, 0, 255).astype(np.uint8),
            np.asarray(Picture.fromarray(stack[7]).resize((50, 60), Picture.Resampling.BILINEAR)),
            stack[9][2:-2, 1:-3],
            np.ascontiguousarray(stack[11][:, ::-1]),
            textures(1, 80, seed=9)[0],
        ]
        found = find_duplicates(signed(stack + copies), parts=parts)
        assert found.pairs.tolist() == [[3, 30], [5, 31], [7, 32], [9, 33], [11, 34]]
        assert found.flipped.tolist() == [False] * 4 + [True]
        assert (found.similarity >= NEAR).all()

    def test_mirrored_copies_only_if_wanted(self):
        picture = textures(1, 80)[0]
        assert len(find_duplicates(signed([picture, picture[:, ::-1]]), mirrored=False).pairs) == 0

    def test_only_across_parts(self):
        stack = list(textures(4, 80))
        stack.append(saved_again(stack[0], 80))
        assert len(find_duplicates(signed(stack), parts=["a"] * 5).pairs) == 0
        assert len(find_duplicates(signed(stack), parts=["b", "a", "a", "a", "a"]).pairs) == 1

    def test_small_images_count_only_when_equal(self):
        stack = list(textures(3, 28))
        stack += [stack[0].copy(), np.clip(stack[1] + 1, 0, 255).astype(np.uint8)]
        found = find_duplicates(signed(stack))
        assert [g.tolist() for g in exact_groups(found.group)] == [[0, 3]]
        assert len(found.pairs) == 0

    def test_images_without_detail_count_only_when_equal(self):
        y, x = np.mgrid[:64, :64]
        ovals = [np.where((y - 32) ** 2 + (x - 32) ** 2 < r**2, 200, 10).astype(np.uint8) for r in (10, 11, 10)]
        found = find_duplicates(signed(ovals))
        assert [g.tolist() for g in exact_groups(found.group)] == [[0, 2]]
        assert len(found.pairs) == 0

    def test_many_equal_images_do_not_hide_a_near_one(self):
        picture = textures(1, 80)[0]
        stack = [picture] * 20 + [saved_again(picture, 75)]
        assert len(find_duplicates(signed(stack)).pairs) == 1

    def test_refuses_wrong_number_of_parts(self):
        with pytest.raises(ValueError, match="5 images, got 2"):
            find_duplicates(signed(textures(5)), parts=["a", "b"])


class TestCheck:
    def test_clean_split_is_not_refused(self):
        leakage = check_leakage(table(["train"] * 8 + ["test"] * 4), signed(textures(12)))
        leakage.refuse()
        assert leakage.clean
        assert leakage.lines() == []
        assert leakage.counts()["near_duplicates"] == 0

    def test_shared_patients(self):
        frame = table(["train", "train", "test", "val", ""], patients=["a", "b", "a", "c", "b"])
        leakage = check_leakage(frame, signed(textures(5)))
        assert leakage.patients.to_dict("records") == [{"patient_id": "a", "splits": "train and test", "images": 2}]
        with pytest.raises(LeakageError) as caught:
            leakage.refuse()
        assert str(caught.value) == (
            "patient a stands in train and test (1 patient in all, 2 images); correct the split "
            "column, or pass --allow-leakage, which marks the report"
        )
        assert caught.value.exit_code == 4
        leakage.refuse(allow=True)

    def test_exact_and_near_across(self):
        stack = list(textures(6, 80))
        stack[4], stack[5] = stack[0].copy(), saved_again(stack[1], 75)
        leakage = check_leakage(table(["test", "train", "train", "train", "train", "val"]), signed(stack))
        assert leakage.exact[["first", "second", "split_first", "split_second"]].values.tolist() == [
            [4, 0, "train", "test"]
        ]
        assert leakage.near[["first", "second", "split_first", "split_second"]].values.tolist() == [
            [1, 5, "train", "val"]
        ]
        with pytest.raises(
            LeakageError,
            match=r"c4 \(train\) and c0 \(test\) hold the same pixels \(1 such pair\); "
            r"c1 \(train\) and c5 \(val\) show the same picture",
        ):
            leakage.refuse()

    @pytest.mark.parametrize("within", [False, True])
    def test_copies_of_a_near_duplicate_are_all_named(self, within):
        picture = textures(1, 80)[0]
        stack = [picture, picture, saved_again(picture, 75), textures(1, 80, seed=4)[0]]
        leakage = check_leakage(table(["train", "train", "test", "val"]), signed(stack), within=within)
        assert sorted(leakage.near["first"]) == [0, 1]
        assert leakage.within == {"train": 1, "val": 0, "test": 0}

    def test_near_is_seen_through_an_equal_image_of_another_split(self):
        picture = textures(1, 80)[0]
        stack = [picture, saved_again(picture, 75), picture]
        duplicates = find_duplicates(signed(stack))
        leakage = check_leakage(table(["train", "train", "test"]), signed(stack), duplicates=duplicates)
        assert sorted(leakage.near["first"]) == [1]
        assert leakage.exact["first"].tolist() == [0]

    def test_label_conflicts_and_within(self):
        stack = list(textures(4, 80))
        stack[1], stack[3] = stack[0].copy(), saved_again(stack[2], 80)
        leakage = check_leakage(table(["train"] * 4, labels=["a", "b", "a", "a"]), signed(stack), within=True)
        assert leakage.label_conflicts["rows"].tolist() == [[0, 1]]
        assert leakage.within == {"train": 1}
        assert leakage.near_within == 1
        assert leakage.clean
        assert "c0, c1 are a, b" in " ".join(leakage.lines())

    def test_blank_images_leak_nothing(self):
        blank = np.zeros((64, 64), np.uint8)
        leakage = check_leakage(table(["train", "test"]), signed([blank, blank]))
        assert leakage.clean
        assert leakage.blank == 2

    def test_says_how_many_could_not_be_compared(self):
        leakage = check_leakage(table(["train", "test"]), signed(textures(2, 28)))
        assert leakage.not_comparable == 2
        assert "2 of 2 images have too few pixels" in leakage.lines()[0]

    def test_refuses_other_length(self):
        with pytest.raises(ValueError, match="2 rows but 3 signatures"):
            check_leakage(table(["train", "test"]), signed(textures(3)))


class TestRepair:
    def test_train_gives_way(self):
        stack = list(textures(6, 80))
        stack[3], stack[4] = stack[0].copy(), saved_again(stack[1], 75)
        frame = table(["train", "train", "train", "val", "val", "test"])
        mended = repair_published(check_leakage(frame, signed(stack)), frame)
        assert mended.leave_out.tolist() == [0, 1]
        assert "2 from train" in mended.note

    def test_published_test_part_is_refused(self):
        stack = list(textures(4, 80))
        stack[3] = stack[0].copy()
        frame = table(["train", "train", "val", "test"])
        leakage = check_leakage(frame, signed(stack))
        with pytest.raises(LeakageError, match=r"c0 \(train\) and c3 \(test\)"):
            repair_published(leakage, frame)
        assert repair(leakage, frame).leave_out.tolist() == [0]

    def test_shared_patient(self):
        frame = table(["train", "train", "val", "test"], patients=["a", "b", "a", "c"])
        leakage = check_leakage(frame, signed(textures(4)))
        assert repair_published(leakage, frame).leave_out.tolist() == [0]

    def test_nothing_to_do(self):
        frame = table(["train", "test"])
        mended = repair_published(check_leakage(frame, signed(textures(2))), frame)
        assert mended.leave_out.tolist() == []
        assert mended.note == ""

    def test_is_clean_afterwards(self):
        stack = list(textures(8, 80))
        stack[1], stack[6], stack[7] = stack[0].copy(), stack[0].copy(), saved_again(stack[2], 75)
        frame = table(["train"] * 4 + ["val"] * 2 + ["test"] * 2, patients=["a", "b", "c", "d", "d", "e", "f", "g"])
        signatures = signed(stack)
        out = repair(check_leakage(frame, signatures), frame).leave_out
        frame.loc[out, "split"] = ""
        assert check_leakage(frame, signatures).clean
        assert (frame["split"] == "test").sum() == 2


class TestGroups:
    def test_patients_and_copies_stay_together(self):
        stack = list(textures(6, 80))
        stack[5] = stack[0].copy()
        signatures = signed(stack)
        groups, cut = duplicate_groups(find_duplicates(signatures), signatures, patients=["a", "b", "b", "c", "d", "e"])
        assert cut == 0
        assert groups[1] == groups[2]
        assert groups[0] == groups[5]
        assert len(set(groups)) == 4

    def test_a_chain_is_cut_at_its_weakest_links(self):
        from vesalius.data.duplicates import Duplicates

        count = 60
        signatures = signed(textures(count, 20))
        pairs = np.array(list(pairwise(range(count))))
        similarity = np.full(len(pairs), 0.98, np.float32)
        similarity[[19, 39]] = 0.97
        chain = Duplicates(np.full(count, -1), pairs, similarity, np.zeros(len(pairs), bool))
        groups, cut = duplicate_groups(chain, signatures, cap=20)
        assert cut == 2
        assert np.bincount(groups).tolist() == [20, 20, 20]

    def test_blank_images_do_not_join_patients(self):
        signatures = signed([np.zeros((64, 64), np.uint8)] * 3)
        assert len(set(duplicate_groups(find_duplicates(signatures), signatures)[0])) == 3


def medmnist(path: Path) -> tuple[np.ndarray, list[str]]:
    with np.load(path) as file:
        parts = [(name, file[f"{name}_images"]) for name in ("train", "val", "test")]
    return np.concatenate([images for _, images in parts])[:, None], [n for n, images in parts for _ in images]


@pytest.mark.realdata
class TestRealData:
    def test_pneumoniamnist_train_and_val_share_eight_images(self, real_data):
        images, splits = medmnist(real_data / "medmnist" / "pneumoniamnist.npz")
        frame = table(splits)
        leakage = check_leakage(frame, signatures_from_arrays(images))
        train, val, test = (
            {i.tobytes() for i, s in zip(images, splits, strict=True) if s == name} for name in ("train", "val", "test")
        )
        assert len(train & val) == 8  # counted without our code
        assert not test & (train | val)
        assert leakage.exact["second"].nunique() == 8
        assert set(leakage.exact["split_second"]) == {"val"}
        assert len(leakage.near) == 0
        mended = repair_published(leakage, frame)
        kept = {i.tobytes() for row, i in enumerate(images) if splits[row] == "train" and row not in mended.leave_out}
        assert not kept & val

    @pytest.mark.parametrize("name", ["mnist/mnist.npz", "medmnist/adrenalmnist3d.npz"])
    def test_look_alikes_of_few_pixels_are_not_refused(self, real_data, name):
        images, splits = medmnist(real_data / name)
        check_leakage(table(splits), signatures_from_arrays(images)).refuse()

    def test_mednist(self, real_data):
        files = sorted((real_data / "mednist" / "HeadCT").glob("*.jpeg"))
        pictures = np.stack([np.asarray(Picture.open(file)) for file in files])
        digests = pd.Series([hashlib.md5(p.tobytes()).hexdigest() for p in pictures])
        expected = {tuple(rows) for rows in digests.groupby(digests).groups.values() if len(rows) > 1}
        signatures = signatures_from_arrays(pictures[:, None])
        found = find_duplicates(signatures, near=2)
        assert expected
        assert {tuple(g) for g in exact_groups(found.group)} == expected

    def test_chest_xray_copies_are_found_and_other_patients_are_not(self, real_data):
        rows = pd.read_csv(real_data / "chest-xray" / "manifest.csv").drop_duplicates("patient_id").iloc[:240]
        pictures = [np.asarray(Picture.open(real_data / "chest-xray" / path).convert("L")) for path in rows["path"]]
        copies = [saved_again(p, 75) for p in pictures[:40]]
        copies += [np.clip(p.astype(int) + 15, 0, 255).astype(np.uint8) for p in pictures[40:80]]
        splits = ["train"] * len(pictures) + ["test"] * len(copies)
        leakage = check_leakage(table(splits), signed(pictures + copies))
        # Every copy is found and no other pair; saving a JPEG again at its own quality may give equal pixels.
        assert sorted([*leakage.exact["first"], *leakage.near["first"]]) == list(range(80))
        assert len(leakage.near) > 60
        assert len(find_duplicates(signed(pictures)).pairs) == 0
