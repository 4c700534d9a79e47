"""The scripts in examples/ run as they are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
QUICK = ["optim.max_steps=8", "optim.batch_size=16", "preprocess.size=[32, 32]", "run.device=cpu"]


def run(name, *words):
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_train_and_predict(tiny_films, tmp_path):
    image = next((tiny_films / "spot").iterdir())
    said = run("train_and_predict.py", tiny_films, tmp_path / "run", image, *QUICK)
    assert "AUROC" in said
    assert "normal" in said.splitlines()[-1]


@pytest.mark.slow
def test_own_network(tiny_films, tmp_path):
    assert "accuracy" in run("own_network.py", tiny_films, tmp_path / "run", *QUICK)
    assert (tmp_path / "run" / "bundle" / "bundle.json").is_file()


def test_read_any_image(tiny_films, tmp_path):
    import nibabel as nib

    affine = np.array([[-2.0, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 5.0, 30], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine), tmp_path / "scan.nii.gz")
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    picture = next((tiny_films / "spot").iterdir())
    item = f"{tmp_path / 'set.npz'}#images/1"
    said = run("read_any_image.py", tmp_path / "scan.nii.gz", item, picture, tmp_path / "notes.txt")
    assert "(1, 6, 5, 4)" in said
    assert "spacing mm (5.0, 2.0, 2.0)" in said
    assert said.count("spacing mm unknown") == 2
    assert "content of kind text" in said


def test_every_example_is_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in text for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_segment(tmp_path):
    import nibabel as nib

    from vesalius.phantoms.layouts import write_tree

    scans = write_tree("solid", tmp_path / "bodies", layout="nnunet", cases=12, seed=3, size=24)
    image = next((scans / "imagesTr").iterdir())
    small = ["optim.max_steps=8", "model.patch=[16,16,16]", "model.strides=[[1,1,1],[2,2,2]]", "model.features=[4,8]"]
    said = run("segment.py", scans, tmp_path / "run", image, tmp_path / "mask.nii.gz", *small, "run.device=cpu")
    assert "body: Dice" in said
    assert "certainty" in said.splitlines()[-1]
    mask, header = nib.load(tmp_path / "mask.nii.gz"), nib.load(image).header
    assert mask.shape == (24, 24, 24)
    assert np.array_equal(mask.header.get_sform(), header.get_sform())
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


def test_measure_masks(tmp_path):
    said = run("measure_masks.py", tmp_path / "out")
    assert "heart to lung: 0.0 mm" in said
    assert (tmp_path / "out" / "measurements" / "index.html").is_file()
