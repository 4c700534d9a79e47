"""The artefact comes back bit for bit, or not at all."""

import hashlib
import json
import stat
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from bundle_material import NAMES, bundle

from vesalius.core.errors import AcceptanceError, DataError, FileError, UnreadableFile
from vesalius.core.labels import Labels
from vesalius.predict.bundle import CARD, HEAD, PLAN, SUMS, WEIGHTS, Bundle, find_bundle


@pytest.fixture
def saved(tmp_path):
    return bundle(
        2,
        temperature=1.7,
        threshold=None,
        views=[[], [1]],
        facts={"training_cases": 12},
        plan_yaml="schema: 1\n",
        card="# Kärtchen\n",
    ).save(tmp_path / "bundle")


def seal(folder):
    """Write the checksums anew, as someone would who edits a bundle on purpose."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in (WEIGHTS, HEAD, PLAN, CARD)
    ]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def test_everything_comes_back(saved):
    one = bundle(2, temperature=1.7, views=[[], [1]])
    again = Bundle.load(saved)
    assert again.same_as(one)
    for mine, theirs in zip(one.members, again.members, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine)
    assert again.labels == Labels(NAMES)
    assert (again.task, again.temperature, again.threshold, again.views) == ("classify", 1.7, None, [[], [1]])
    assert (again.preprocess, again.model) == (one.preprocess, one.model)
    assert (again.plan_yaml, again.card, again.facts) == ("schema: 1\n", "# Kärtchen\n", {"training_cases": 12})
    assert again.checksum == hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest()


def test_the_same_bundle_is_the_same_bytes(saved, tmp_path):
    other = Bundle.load(saved).save(tmp_path / "other")
    for name in (WEIGHTS, HEAD, PLAN, CARD, SUMS):
        assert (saved / name).read_bytes() == (other / name).read_bytes()


def test_a_difference_of_one_bit_is_a_difference():
    one, two = bundle(1), bundle(1)
    assert one.same_as(two)
    name = next(iter(two.members[0]))
    two.members[0][name] = two.members[0][name].clone()
    two.members[0][name].view(torch.int32).view(-1)[0] ^= 1
    assert not one.same_as(two)
    assert not one.same_as(bundle(2))


def test_the_folder_holds_no_pickle_and_no_code(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted([WEIGHTS, HEAD, PLAN, CARD, SUMS])
    for path in saved.iterdir():
        assert not zipfile.is_zipfile(path)  # what torch.save writes
        data = path.read_bytes()
        assert not data.startswith(b"\x80")  # a pickle's first byte
        if path.name != WEIGHTS:
            data.decode()
    length = int.from_bytes((saved / WEIGHTS).read_bytes()[:8], "little")
    head = json.loads((saved / WEIGHTS).read_bytes()[8 : 8 + length])
    assert {name.split(".")[0] for name in head if name != "__metadata__"} == {"0", "1"}


def test_the_checksums_are_those_of_sha256sum(saved):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", SUMS], cwd=saved, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 4


def test_whoever_may_read_the_head_may_read_the_weights(saved):
    modes = {name: stat.S_IMODE((saved / name).stat().st_mode) for name in (WEIGHTS, HEAD, PLAN, CARD, SUMS)}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("name", [WEIGHTS, HEAD, PLAN, CARD])
@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_byte_is_refused(saved, name, place):
    data = bytearray((saved / name).read_bytes())
    data[place] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(AcceptanceError, match="checksum") as caught:
        Bundle.load(saved)
    assert name in str(caught.value)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", [WEIGHTS, PLAN, CARD, SUMS])
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(AcceptanceError, match="missing") as caught:
        Bundle.load(saved)
    assert name in str(caught.value)


def test_a_file_that_is_not_listed_is_not_trusted(saved):
    lines = (saved / SUMS).read_text(encoding="utf-8").splitlines(keepends=True)
    (saved / SUMS).write_text("".join(line for line in lines if WEIGHTS not in line), encoding="utf-8")
    with pytest.raises(AcceptanceError, match=WEIGHTS):
        Bundle.load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": None}, "schema None"),
        ({"kind": "other"}, "bundle of schema"),
        ({"task": "detect"}, "one of classify, segment"),
    ],
)
def test_a_foreign_head_is_refused(saved, change, words):
    head = json.loads((saved / HEAD).read_text(encoding="utf-8")) | change
    (saved / HEAD).write_text(json.dumps(head), encoding="utf-8")
    seal(saved)
    with pytest.raises(UnreadableFile, match=words) as caught:
        Bundle.load(saved)
    assert HEAD in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_head_that_is_no_json(saved):
    (saved / HEAD).write_text("{", encoding="utf-8")
    seal(saved)
    with pytest.raises(UnreadableFile, match="no JSON"):
        Bundle.load(saved)


def test_weights_of_another_network_are_refused(saved):
    head = json.loads((saved / HEAD).read_text(encoding="utf-8"))
    head["model"]["width"] = 12
    (saved / HEAD).write_text(json.dumps(head), encoding="utf-8")
    seal(saved)
    with pytest.raises(AcceptanceError, match="does not fit"):
        Bundle.load(saved).networks()


def test_a_run_stands_for_its_bundle(saved, tmp_path):
    assert find_bundle(tmp_path) == saved
    assert find_bundle(saved) == saved
    assert Bundle.load(tmp_path).same_as(Bundle.load(saved))


def test_where_no_bundle_is(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, word in ((tmp_path / "none", "nothing at this path"), (tmp_path / "empty", "no bundle.json")):
        with pytest.raises(FileError, match=word) as caught:
            Bundle.load(path)
        assert isinstance(caught.value, DataError)
        assert str(path) in str(caught.value)


def test_saving_over_an_older_one_leaves_one_whole_bundle(saved):
    bundle(1, temperature=3.0).save(saved)
    again = Bundle.load(saved)
    assert len(again.members) == 1
    assert again.temperature == 3.0
    assert [path.name for path in saved.parent.iterdir()] == ["bundle"]


def test_a_rest_of_a_killed_save_is_no_obstacle(tmp_path):
    for rest in (".bundle.part", ".bundle.old"):
        (tmp_path / rest).mkdir()
        (tmp_path / rest / "junk").write_bytes(b"x")
    folder = bundle(1).save(tmp_path / "bundle")
    assert Bundle.load(folder).same_as(bundle(1))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_members_are_networks_in_evaluation_mode():
    made = bundle(2)
    networks = made.networks()
    assert not any(part.training for net in networks for part in net.modules())
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, 18, 18)).astype(np.float32))
    with torch.inference_mode():
        assert not torch.allclose(networks[0](x), networks[1](x))
