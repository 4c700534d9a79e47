"""What was written is read, by row, by patch, mapped or not."""

import pickle

import nibabel as nib
import numpy as np
import pytest
from store_material import SIDE, manifest_of, pictures, plain, png_folder

from vesalius.core.errors import UnreadableFile
from vesalius.data.prepare import prepare
from vesalius.data.store import PIXELS, Store
from vesalius.transforms.preprocess import Preprocess

VOLUME = (66, 70, 68)  # z, y, x: 1.2 MB in float32, kept in chunks


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A store of pictures, and the pictures."""
    root, values = tmp_path_factory.mktemp("flat"), pictures(23)
    return prepare(png_folder(root / "data", values), plain(), cache=root / "cache"), values


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A store of volumes, and the volumes in the order (z, y, x)."""
    root = tmp_path_factory.mktemp("deep")
    values = np.random.default_rng(1).normal(size=(3, *VOLUME)).astype(np.float32)
    (root / "data").mkdir()
    for index, volume in enumerate(values):
        nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4)), root / "data" / f"v{index}.nii")
    spec = {"dims": 3, "size": list(VOLUME), "storage": "float32"}
    manifest = manifest_of(root / "data", [f"v{index}.nii" for index in range(3)])
    return prepare(manifest, Preprocess.from_spec(spec), cache=root / "cache"), values


def test_pictures_lie_in_one_array(flat):
    store, values = flat
    assert (store.kind, store.rows, store.shape, store.dtype) == ("array", 23, (1, SIDE, SIDE), np.uint8)
    assert np.array_equal(store.read(range(23))[:, 0], values)
    assert (store.folder / PIXELS).read_bytes() == values.tobytes()


def test_rows_come_in_the_order_asked_for(flat):
    store, values = flat
    wanted = [7, 0, 22, 7, 3]
    assert np.array_equal(store.read(wanted)[:, 0], values[wanted])
    assert store.read([]).shape == (0, 1, SIDE, SIDE)


def test_reading_the_file_equals_the_map(flat):
    store, values = flat
    direct = Store(store.folder, resident_bytes=0)
    assert direct._map is None
    assert store._map is not None
    wanted = [22, 5, 5, 0]
    assert np.array_equal(direct.read(wanted), store.read(wanted))
    assert np.array_equal(direct.read(wanted)[:, 0], values[wanted])
    assert np.array_equal(direct.read_patch(5, (3, 4), (6, 7)), values[5][None, 3:9, 4:11])
    direct.close()
    assert np.array_equal(direct.read([1])[0, 0], values[1])  # opens again
    direct.close()


def test_volumes_lie_in_chunks(deep):
    store, values = deep
    assert (store.kind, store.rows, store.shape, store.dtype) == ("chunked", 3, (1, *VOLUME), np.float32)
    assert np.array_equal(store.read([2, 0, 1])[:, 0], values[[2, 0, 1]])


@pytest.mark.parametrize("start", [(0, 0, 0), (60, 3, 5), (20, 33, 31)])
def test_a_patch_of_a_volume(deep, start):
    store, values = deep
    (z, y, x), size = start, (6, 30, 35)
    assert np.array_equal(store.read_patch(1, start, size)[0], values[1][z : z + 6, y : y + 30, x : x + 35])


def test_a_patch_of_a_picture(flat):
    store, values = flat
    assert np.array_equal(store.read_patch(4, (2, 5), (10, 3)), values[4][None, 2:12, 5:8])


@pytest.mark.parametrize("kind", ["flat", "deep"])
@pytest.mark.parametrize("row", [-1, 23, 1000])
def test_a_row_that_is_not_there(kind, row, request):
    store, _ = request.getfixturevalue(kind)
    with pytest.raises(IndexError, match=str(row)):
        store.read([0, row])
    with pytest.raises(IndexError, match=str(row)):
        store.read_patch(row, (0,) * (len(store.shape) - 1), (1,) * (len(store.shape) - 1))


def test_a_file_that_was_cut_is_noticed(flat, tmp_path):
    import shutil

    store, _ = flat
    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    with (copy / PIXELS).open("r+b") as file:
        file.truncate(22 * SIDE * SIDE + 5)
    direct = Store(copy, resident_bytes=0)
    assert direct.read([21]).shape == (1, 1, SIDE, SIDE)
    with pytest.raises(UnreadableFile, match="5 bytes in row 22"):
        direct.read([22])


def test_the_index_knows_every_row(flat, deep):
    index = flat[0].index
    assert index["path"].tolist() == [f"p{k:03d}.png" for k in range(23)]
    assert index["ok"].all()
    assert set(index["shape"]) == {f"{SIDE}x{SIDE}"}
    assert set(deep[0].index["shape"]) == {"x".join(map(str, VOLUME))}
    assert set(deep[0].index["spacing"]) == {"1x1x1"}


def test_signatures_come_with_it(flat):
    assert len(flat[0].signatures()) == 23


def test_another_process_gets_a_working_store_and_not_the_pixels(flat):
    store, values = flat
    store.read([0])
    data = pickle.dumps(store)
    assert len(data) < values.nbytes
    assert np.array_equal(pickle.loads(data).read([3, 1])[:, 0], values[[3, 1]])


def test_what_was_read_may_be_changed_without_harm(flat):
    store, values = flat
    store.read([0])[:] = 0
    assert np.array_equal(store.read([0])[0, 0], values[0])
