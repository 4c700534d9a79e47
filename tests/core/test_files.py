"""Files are whole or absent, and names never meet."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vesalius.core.files import atomic, jsonable, safe_stem, sha256, write_json, write_text

KILLED = """
import os, sys
from vesalius.core.files import atomic
with atomic(sys.argv[1]) as file:
    file.write(b"new" * 1000)
    file.flush()
    os._exit(9)
"""


@pytest.mark.parametrize("before", [b"old", None])
def test_a_write_that_is_killed_midway_leaves_the_old_file(tmp_path, before):
    path = tmp_path / "a.bin"
    if before is not None:
        path.write_bytes(before)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == 9
    assert (path.read_bytes() if path.exists() else None) == before
    with atomic(path) as file:
        file.write(b"third")
    assert path.read_bytes() == b"third"


def test_an_error_in_the_block_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    with atomic(path) as file:
        file.write(b"old")
    with pytest.raises(TypeError), atomic(path) as file:
        file.writelines([b"new", "text, which this file does not take"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_the_file_is_not_there_before_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    with atomic(path) as file:
        file.write(b"x" * 100_000)
        assert not path.exists()
    assert path.stat().st_size == 100_000


def test_text_is_utf_8(tmp_path):
    assert write_text(tmp_path / "a", "Größe µm\n").read_bytes() == "Größe µm\n".encode()


def test_json_holds_what_json_can_hold(tmp_path):
    data = {
        "n": np.float32(0.5),
        "nan": float("nan"),
        "inf": [np.inf, -np.inf],
        "a": np.arange(3),
        3: {"x"},
        "b": np.bool_(True),
        "p": tmp_path,
        "t": (1, None),
        "nested": {"nan": np.array([[np.nan, 1.0]])},
    }
    back = json.loads(write_json(tmp_path / "a.json", data).read_text(encoding="utf-8"))
    assert back == {
        "n": 0.5,
        "nan": None,
        "inf": [None, None],
        "a": [0, 1, 2],
        "3": ["x"],
        "b": True,
        "p": str(tmp_path),
        "t": [1, None],
        "nested": {"nan": [[None, 1.0]]},
    }
    assert back["b"] is True


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_plain_data_pass_unchanged(data):
    assert jsonable(data) == data


def test_sha256(tmp_path):
    data = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@given(st.text(), st.text())
@example("a/b", "a_b")
@example("a/b", "a:b")
@example("", "case")
@example(".hidden", "hidden")
@example("x" * 300, "x" * 301)
def test_different_texts_give_different_names(one, two):
    if one != two:
        assert safe_stem(one) != safe_stem(two)


@given(st.text())
def test_the_name_of_a_text_that_looks_like_a_made_name_is_another(text):
    assert text == safe_stem(text) or safe_stem(safe_stem(text)) != safe_stem(text)


@given(st.text(max_size=400))
@example("../../etc/passwd")
@example("..")
@example("\udcff bad bytes of a file name")
@example("Ärzte " * 60)
def test_a_name_is_a_name(text):
    stem = safe_stem(text)
    assert stem
    assert not set(stem) & set('/\\:*?"<>| \n\0')
    assert not stem.startswith(".")
    assert len(stem.encode()) <= 240
    assert safe_stem(text) == stem


@pytest.mark.parametrize("text", ["chest_001", "1.2.840.113619", "Müller-3", "a"])
def test_a_good_name_is_kept(text):
    assert safe_stem(text) == text
