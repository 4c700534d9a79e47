"""numpy files against numpy: every type, order and member, refusals, and the reader of many items."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refusals import read_or_refused

from vesalius.core.errors import LimitError, UnreadableFile, UsageError
from vesalius.core.image import Unit
from vesalius.io.array_out import write_npz
from vesalius.io.arrays import list_arrays, load_array, read_array, split_fragment
from vesalius.io.limits import read_limits
from vesalius.io.open import open_image
from vesalius.io.stacks import StackReader

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TYPES = ["?", "u1", "i1", "<u2", ">i2", "<i4", ">u8", "f2", "<f4", ">f8"]
arrays = hnp.arrays(st.sampled_from(TYPES), hnp.array_shapes(min_dims=1, max_dims=4, max_side=6))


def ramp(*shape, dtype=np.int16):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def same(one, two):
    return one.shape == two.shape and np.array_equal(one, two, equal_nan=two.dtype.kind == "f")


@MANY
@given(arrays, st.sampled_from("CF"), st.integers(0, 5))
def test_npy_and_its_items(tmp_path, values, order, item):
    np.save(tmp_path / "a.npy", np.asarray(values, order=order))
    back = load_array(tmp_path / "a.npy")
    assert same(back, values)
    assert back.dtype.isnative
    if item < len(values):
        assert same(load_array(tmp_path / "a.npy", None, item), values[item])


@MANY
@given(st.dictionaries(st.sampled_from(["a", "images", "0", "mask b"]), arrays, min_size=1), st.booleans())
def test_npz_by_us_and_by_numpy(tmp_path, content, ours):
    path = tmp_path / "a.npz"
    (write_npz if ours else np.savez)(path, **content)
    theirs = np.load(path)
    assert set(theirs.files) == set(content)
    listed = list_arrays(path)
    for key, values in content.items():
        assert same(theirs[key], values)
        assert same(load_array(path, key), values)
        assert same(load_array(path, key, len(values) - 1), values[-1])
        assert listed[key] == (values.shape, values.dtype)


def test_single_numbers_and_the_same_bytes(tmp_path):
    first = write_npz(tmp_path / "a.npz", one=np.array(3.5), text=np.array(["a", "bc"]))
    theirs = np.load(first)
    assert theirs["one"].shape == ()
    assert list(theirs["text"]) == ["a", "bc"]
    again = write_npz(tmp_path / "b.npz", one=np.array(3.5), text=np.array(["a", "bc"]))
    assert first.read_bytes() == again.read_bytes()
    with pytest.raises(UsageError, match=r"c\.npz.*objects"):
        write_npz(tmp_path / "c.npz", bad=np.array([{}], dtype=object))
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((6, 7), "YX"), ((6, 7, 3), "YXC"), ((6, 7, 4), "YXC"), ((3, 6, 7), "CYX"), ((1, 6, 7), "CYX"),
        ((8, 6, 7), "ZYX"), ((3, 3, 3), "ZYX"), ((6, 7, 8, 2), "ZYXC"), ((2, 6, 7, 8), "CZYX"),
    ],
)  # fmt: skip
def test_axes_from_the_shape(tmp_path, shape, axes):
    values = ramp(*shape)
    np.save(tmp_path / "a.npy", values)
    expected = values if "C" in axes else values[None]
    order = [("C" + axes if "C" not in axes else axes).index(letter) for letter in "CZYX" if letter in "C" + axes]
    mine = open_image(tmp_path / "a.npy")
    assert same(mine.pixels, expected.transpose(order))
    assert any(axes in note.text for note in mine.record) is (axes != "YX")
    assert mine.grid.spacing_mm is None


def test_axes_that_are_given(tmp_path):
    np.save(tmp_path / "a.npy", ramp(3, 4, 5))
    assert same(read_array(tmp_path / "a.npy", axes="YXZ").pixels[0], ramp(3, 4, 5).transpose(2, 0, 1))
    assert same(read_array(tmp_path / "a.npy", axes="XYC").pixels, ramp(3, 4, 5).transpose(2, 1, 0))
    for axes in ("ZY", "ZYXT", "YYX", ""):
        if axes:
            with pytest.raises(UnreadableFile, match="correct the axes"):
                read_array(tmp_path / "a.npy", axes=axes)


def test_units_and_booleans(tmp_path):
    np.save(tmp_path / "rgb.npy", ramp(6, 7, 3, dtype=np.uint8))
    assert open_image(tmp_path / "rgb.npy").unit is Unit.RED_GREEN_BLUE
    np.save(tmp_path / "mask.npy", ramp(6, 7) % 2 == 0)
    mine = open_image(tmp_path / "mask.npy")
    assert mine.pixels.dtype == np.uint8
    assert same(mine.pixels[0], (ramp(6, 7) % 2 == 0).astype(np.uint8))


def test_items_by_name(tmp_path):
    path = tmp_path / "Daten #1 ü.npz"
    np.savez_compressed(path, train_images=ramp(9, 6, 7), **{"17": ramp(5, 6)})
    assert same(open_image(f"{path}#train_images/8").pixels[0], ramp(9, 6, 7)[8])
    assert same(open_image(f"{path}#17").pixels[0], ramp(5, 6))
    assert same(open_image(f"{path}#train_images").pixels[0], ramp(9, 6, 7))
    np.save(tmp_path / "b.npy", ramp(9, 6, 7))
    assert same(open_image(f"{tmp_path}/b.npy#3").pixels[0], ramp(9, 6, 7)[3])
    (tmp_path / "b.npy").rename(tmp_path / "b.png")
    assert same(open_image(f"{tmp_path}/b.png#3").pixels[0], ramp(9, 6, 7)[3])
    assert split_fragment("x.npz#a/3") == (tmp_path.__class__("x.npz"), "a", 3)


@pytest.mark.parametrize(
    ("member", "found"),
    [
        ("", "2 arrays; expected one of a, b"),
        ("#c", "no array 'c'"),
        ("#a/9", "item 9 of an array of shape .9, 6, 7."),
        ("#a/-1", "a number after the last /"),
        ("#a/²", "a number after the last /"),
        ("#b/0", "item 0 of an array of shape"),
    ],
)
def test_wrong_members(tmp_path, member, found):
    np.savez(tmp_path / "a.npz", a=ramp(9, 6, 7), b=np.array(3))
    with pytest.raises(UnreadableFile, match=found) as caught:
        open_image(f"{tmp_path}/a.npz{member}")
    assert str(caught.value).startswith(str(tmp_path / "a.npz"))


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[Trap()]], dtype=object), "Python objects, which could run code"),
        (np.zeros((2, 2), [("a", object)]), "Python objects, which could run code"),
        (np.zeros((2, 2), [("a", "i2")]), "values of type"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([["a"]]), "values of type <U1"),
        (np.zeros((2, 2), "M8[s]"), "datetime64"),
        (np.zeros((2, 2), np.longdouble), "values of type"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.array(5), r"shape \(\)"),
        (np.zeros((0, 5, 5)), "empty array"),
        (np.zeros((9, 9, 9, 9)), "name one item"),
    ],
)
def test_what_is_no_image(tmp_path, values, found):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=values)
    for name in ("a.npy", "a.npz", "a.npz#a"):
        for read in (open_image, read_array):
            with pytest.raises(UnreadableFile, match=found) as caught:
                read(f"{tmp_path}/{name}")
            assert str(caught.value).startswith(f"{tmp_path}/a.np")
            assert "\n" not in str(caught.value)


def test_limits_hold_before_reading(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6, 10**6)}
    )
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    for name in ("a.npy", "a.npz"):
        with pytest.raises(LimitError, match=name.replace(".", r"\.")):
            open_image(tmp_path / name)
    np.save(tmp_path / "b.npy", ramp(9, 6, 7))
    with read_limits(max_pixels=42):
        assert same(open_image(f"{tmp_path}/b.npy#8").pixels[0], ramp(9, 6, 7)[8])
        with pytest.raises(LimitError, match="9 x 6 x 7"):
            open_image(tmp_path / "b.npy")
        with StackReader(tmp_path / "b.npy", None) as reader, pytest.raises(LimitError, match="2 x 6 x 7"):
            reader.read(0, 2)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.9999), changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=5))
def test_cuts_and_damage(tmp_path, name, part, changes):
    values = ramp(5, 6, 7)
    (np.save if name == "a.npy" else np.savez_compressed)(tmp_path / name, values)
    whole = bytearray((tmp_path / name).read_bytes())
    (tmp_path / f"cut.{name}").write_bytes(whole[: int(part * len(whole))])
    assert read_or_refused(open_image, tmp_path / f"cut.{name}") is None
    for place, value in changes:
        whole[int(place * len(whole))] = value
    (tmp_path / f"damaged.{name}").write_bytes(whole)
    with read_limits(max_pixels=10**7):
        read_or_refused(read_array, tmp_path / f"damaged.{name}")


@MANY
@given(
    hnp.arrays(st.sampled_from(TYPES), hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=12)),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6),
    st.sampled_from(["C", "F", "npz"]),
)
def test_runs_of_items(tmp_path, values, runs, how):
    path = tmp_path / ("a.npz" if how == "npz" else "a.npy")
    if how == "npz":
        np.savez_compressed(path, images=values, other=ramp(3))
    else:
        np.save(path, np.asarray(values, order=how))
    with StackReader(path, "images" if how == "npz" else None) as reader:
        assert (reader.shape, reader.dtype) == (values.shape, values.dtype)
        for start, stop in runs:
            if start <= stop <= len(values):
                items = reader.read(start, stop)
                assert same(items, values[start:stop])
                assert items.dtype.isnative
            else:
                with pytest.raises(UnreadableFile, match="correct the item"):
                    reader.read(start, stop)


def test_a_stack_that_ends_too_early(tmp_path):
    np.save(tmp_path / "a.npy", ramp(9, 6, 7))
    raw = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(raw[:-100])
    with StackReader(tmp_path / "a.npy", None) as reader:
        assert same(reader.read(0, 3), ramp(9, 6, 7)[:3])
        with pytest.raises(UnreadableFile, match="ends before item 9"):
            reader.read(6, 9)
        # The reader is as good as before.
        assert same(reader.read(4, 6), ramp(9, 6, 7)[4:6])
    for key, found in (("x", "leave the name out"), (None, "no such file")):
        with pytest.raises(UnreadableFile, match=found):
            StackReader(tmp_path / ("a.npy" if key else "none.npy"), key)
    np.save(tmp_path / "one.npy", np.array(1))
    with pytest.raises(UnreadableFile, match="single number"):
        StackReader(tmp_path / "one.npy", None)


@pytest.mark.realdata
def test_real_stacks_agree_with_numpy(real_data):
    path = real_data / "medmnist" / "pneumoniamnist.npz"
    theirs = np.load(path)["val_images"]
    assert list_arrays(path)["val_images"] == (theirs.shape, theirs.dtype)
    assert same(open_image(f"{path}#val_images/200").pixels[0], theirs[200])
    with StackReader(path, "val_images") as reader:
        assert same(reader.read(100, 300), theirs[100:300])
