"""What inspect says about masks, against the files read by other libraries."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture
from scipy import ndimage

from vesalius.phantoms.layouts import write_tree
from vesalius.serve import jobs


@pytest.fixture
def solids(tmp_path):
    return write_tree("solid", tmp_path / "data", layout="nnunet", cases=6, seed=1, size=20)


def sizes_of(root):
    """Millilitres of label 1 in every mask."""
    out = []
    for path in sorted((root / "labelsTr").glob("*.nii.gz")):
        mask = nib.load(path)
        out.append((np.asarray(mask.dataobj) == 1).sum() * np.prod(mask.header.get_zooms()[:3]) / 1000)
    return out


def test_structures_with_their_sizes(solids):
    found = jobs.inspect(solids)
    assert found["masks"]["unusable"] == {}
    (entry,) = found["masks"]["structures"].values()
    true = [size for size in sizes_of(solids) if size]
    assert entry["cases"] == len(true)
    assert entry["unit"] == "ml"
    np.testing.assert_allclose(entry["size"], np.percentile(true, (5, 50, 95)), rtol=1e-5)
    json.dumps(found)


def test_masks_that_cannot_be_used_are_named(solids):
    first, second, *_ = sorted((solids / "labelsTr").glob("*.nii.gz"))
    mask = nib.load(first)
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj) * 9, mask.affine), first)
    other = nib.load(second)
    moved = other.affine.copy()
    moved[0, 3] += 40
    nib.save(nib.Nifti1Image(np.asarray(other.dataobj), moved), second)
    found = jobs.inspect(solids)["masks"]["unusable"]
    assert len(found) == 2
    assert any("9" in line and first.name in line for line in found.values())
    assert any("place" in line and second.name in line for line in found.values())


def test_the_page_shows_outlines_and_structures(solids, tmp_path):
    page = jobs.inspect(solids, out=tmp_path / "page")["page"]
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert str(tmp_path / "page" / "index.html") == page
    assert "Structures of the masks" in text
    assert "cases with their masks" in text


def test_single_objects_are_counted(tmp_path):
    draw = np.random.default_rng(0)
    counts, diameters = [], []
    for case in range(5):
        mask = np.zeros((64, 64), dtype=np.uint16)
        for number in range(1, 10 + case):
            y, x = 8 + 14 * ((number - 1) // 4), 8 + 14 * ((number - 1) % 4)
            mask[y - 4 : y + 5, x - 4 : x + 5] = number
        counts.append(ndimage.label(mask)[1])
        diameters += [2 * np.sqrt(81 / np.pi)] * counts[-1]
        for kind, values in (("images", draw.integers(0, 255, (64, 64)).astype(np.uint8)), ("labels", mask)):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            Picture.fromarray(values).save(tmp_path / "data" / kind / f"cell{case}.png")
    (entry,) = jobs.inspect(tmp_path / "data")["masks"]["structures"].values()
    assert entry["objects"] == sum(counts)
    assert entry["objects_per_case"][1] == np.median(counts)
    assert entry["diameter_px"][1] == pytest.approx(diameters[0])
    assert entry["unit"] == "px"
