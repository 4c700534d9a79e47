"""Whole trainings of rarer questions and networks: regions, voxels without a verdict, a hundred labels, MONAI's."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from segment_material import QUICK

from vesalius.phantoms.layouts import write_tree
from vesalius.predict.bundle import Bundle, learned_values
from vesalius.serve import jobs

MANY = 100


def trained(root, out):
    done = jobs.train(root, out=out, task="segment", settings=QUICK, device="cpu", workers=1)
    curve = pd.read_csv(done.run / "metrics.csv")
    assert curve["train_loss"].iloc[-1] < curve["train_loss"].iloc[0]
    return done, json.loads((done.run / "report" / "metrics.json").read_text(encoding="utf-8"))


def test_overlapping_regions_of_four_channels(tmp_path):
    root = write_tree("solid", tmp_path / "data", layout="brats", cases=8, seed=1, size=20)
    done, metrics = trained(root, tmp_path / "run")
    labels = Bundle.load(done.run).labels
    assert labels.multilabel
    assert set(metrics["per_class"]) == set(labels.names)
    assert len(labels.names) == 3
    kept = sorted((done.run / "predictions").glob("*.nii.gz"))
    assert np.asarray(nib.load(kept[0]).dataobj).squeeze().shape[-1] == 3


def test_voxels_without_a_verdict_are_neither_learnt_nor_judged(tmp_path):
    root = write_tree("solid", tmp_path / "data", layout="nnunet", cases=8, seed=1, size=20)
    about = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    about["labels"]["ignore"] = 2
    (root / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    for path in (root / "labelsTr").glob("*.nii.gz"):
        mask = nib.load(path)
        values = np.asarray(mask.dataobj).astype(np.uint8)
        values[:, :, :8] = 2
        nib.save(nib.Nifti1Image(values, mask.affine), path)
    done, metrics = trained(root, tmp_path / "run")
    assert Bundle.load(done.run).labels.ignore == 2
    assert list(metrics["per_class"]) == ["body"]
    table = pd.read_parquet(done.run / "cases.parquet")
    for case in table.loc[table["split"] == "test", "case_id"]:
        said = np.asarray(nib.load(done.run / f"predictions/{case}.nii.gz").dataobj)
        true = np.asarray(nib.load(root / f"labelsTr/{case}.nii.gz").dataobj)
        assert set(np.unique(said)) <= {0, 1}
        told = true != 2
        both = (said == 1) & (true == 1)
        dice = 2 * both.sum() / (((said == 1) & told).sum() + (true == 1).sum())
        assert table.loc[table["case_id"] == case, "dice"].iloc[0] == pytest.approx(dice)


def test_a_hundred_labels(tmp_path):
    draw = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    blocks = np.arange(1, MANY + 1).reshape(5, 5, 4).repeat(4, 0).repeat(4, 1).repeat(5, 2).astype(np.uint8)
    for case in range(8):
        mask = np.where(draw.random(blocks.shape) < 0.9, blocks, 0).astype(np.uint8)
        image = blocks * 10.0 + draw.normal(0, 3, mask.shape)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), tmp_path / f"data/imagesTr/c{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / f"data/labelsTr/c{case}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **{f"block {k}": k for k in range(1, MANY + 1)}},
        "numTraining": 8,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "data/dataset.json").write_text(json.dumps(about), encoding="utf-8")
    done, metrics = trained(tmp_path / "data", tmp_path / "run")
    assert len(Bundle.load(done.run).labels.names) == MANY + 1
    assert len(metrics["per_class"]) == MANY
    masks = [np.asarray(nib.load(path).dataobj) for path in (done.run / "predictions").glob("*.nii.gz")]
    assert masks
    assert max(mask.max() for mask in masks) <= MANY
    assert done.report.stat().st_size < 20_000_000


NETWORKS = {
    "dynunet": {"model.features": [4, 8, 8], "model.strides": [[1] * 3, [2] * 3, [2] * 3]},
    "segresnet": {"model.width": 8},
    "swinunetr": {"model.width": 12, "model.patch": [64, 64, 64], "optim.batch_size": 1},
    "unet:lean": {"model.width": 4},
    "deeplabv3plus:lean": {"model.width": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_from_images_to_a_file(name, tmp_path):
    if ":" not in name:
        pytest.importorskip("monai")
    root = write_tree("solid", tmp_path / "data", layout="nnunet", cases=8, seed=1, size=20)
    plain = {key: value for key, value in QUICK.items() if not key.startswith("model.") or key == "model.patch"}
    settings = {**plain, "model.name": name, "optim.max_steps": 2, "validate.every": 2, **NETWORKS[name]}
    done = jobs.train(root, out=tmp_path / "run", task="segment", settings=settings, device="cpu", workers=1)
    bundle = Bundle.load(done.run)
    assert bundle.model["name"] == name
    names = [f"{value.data_ptr()}:{tuple(value.shape)}" for value in bundle.members[0].values() if value.numel()]
    assert len(set(names)) == len(names)
    learned = sum(value.numel() for value in bundle.networks()[0].parameters())
    assert learned_values(bundle.members) == learned
    if name != "swinunetr":  # half a minute in three dimensions; tests/deploy/test_export.py has it in two
        assert jobs.export(done.run, cases=1)["accepted"]
