"""Segmentations as files for mobile devices: one tile at a time, the rest is that of every exported model."""

import json
import subprocess

import nibabel as nib
import numpy as np
import pytest
import torch
from deploy_material import ALONE, python_of
from PIL import Image as Picture
from scipy.spatial.transform import Rotation
from torch import nn

from vesalius.core.errors import AcceptanceError
from vesalius.core.labels import Labels
from vesalius.deploy import mobile_runner, run_masks, runner
from vesalius.deploy.artefact import contract_beside
from vesalius.deploy.mobile import MobileTiles, check_contract, mobile_contract
from vesalius.deploy.planes import in_planes
from vesalius.io.open import open_image
from vesalius.measure.instances import instance_scores
from vesalius.predict.bundle import Bundle
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs
from vesalius.tasks.segment import Segment

ORGANS = Labels(("background", "liver", "spleen"))
CELLS = Labels(("background", "cell"), instances=True)
REGIONS = Labels(("whole", "core"), multilabel=True, regions=((1, 2), (2,)))
TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [10, -20, 95], degrees=True).as_matrix() * [1.5, 1.5, 2.5]

PLAIN = {"name": "unet", "features": [4, 8, 8], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
NETWORKS = {
    "batch": PLAIN | {"norm": "batch"},
    "instance": PLAIN | {"norm": "instance"},
    "residual": PLAIN | {"norm": "instance", "residual": True},
    "encoder": {"name": "unet:resnet18", "width": 8, "norm": "batch"},
    "pyramid": {"name": "deeplabv3plus:lean", "width": 8},
    "dynunet": PLAIN | {"name": "dynunet"},
    "segresnet": {"name": "segresnet", "width": 8},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_volumes_are_the_same_plane_by_plane(name):
    torch.manual_seed(0)
    network = Segment(ORGANS).network(NETWORKS[name], dims=3, inputs=2, size=[32, 32, 32]).eval()
    x = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
        flat, wanted = in_planes(network), network(x)
        assert not any(isinstance(part, nn.Conv3d | nn.ConvTranspose3d | nn.InstanceNorm3d) for part in flat.modules())
        assert wanted.std() > 0.1
        torch.testing.assert_close(flat(x), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(3, 4, 3, padding=2, dilation=2),
        nn.Conv3d(3, 4, (3, 1, 5), stride=(2, 1, 2), padding=(1, 0, 2)),
        nn.ConvTranspose3d(3, 4, (1, 2, 2), (1, 2, 2), bias=False),
        nn.ConvTranspose3d(3, 4, (2, 3, 1), (2, 3, 1)),
    ],
    ids=["dilated", "uneven", "planes only", "all three axes"],
)
def test_layers_are_the_same_plane_by_plane(layer):
    x = torch.randn(2, 3, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(in_planes(layer)(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv3d(4, 4, 3, groups=2), nn.ConvTranspose3d(3, 4, 3, 2), nn.ConvTranspose3d(4, 4, 2, 2, groups=2)],
    ids=["groups", "overlap", "groups back"],
)
def test_other_layers_are_refused(layer):
    with pytest.raises(ValueError, match="is not computed plane by plane"):
        in_planes(layer)


def in_torch(bundle):
    """The graph as the runner calls a file."""
    graph = MobileTiles(bundle).eval()

    @torch.no_grad()
    def call(inputs):
        assert inputs["tiles"].shape[0] == 1
        return [graph(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in inputs)).numpy()]

    return call


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (ORGANS, {"views": [[], [0, 2]], "members": 2}),
        (ORGANS, {"spec": {"window": [20.0, 200.0], "spacing_mm": [2.0, 2.0, 2.0], "crop": "border"}}),
        (REGIONS, {"norm": "instance"}),
        (ORGANS, {"dims": 2, "channels": 3, "views": [[], [0, 1]]}),
    ],
    ids=["ensemble", "window", "regions", "colour"],
)
def test_the_graph_draws_what_the_bundle_draws(labels, options, make_segmenter, smooth, tmp_path):
    folder = make_segmenter(tmp_path / "bundle", labels, **options)
    bundle = Bundle.load(folder)
    contract = json.loads(json.dumps(mobile_contract(bundle, "litert")))
    assert contract["inputs"]["tiles"].startswith("float32 (1, ")
    if options.get("dims") == 2:
        path = tmp_path / "p.png"
        Picture.fromarray(smooth((37, 29, 3)).astype(np.uint8)).save(path)
    else:
        path = tmp_path / "p.nii.gz"
        nib.save(nib.Nifti1Image(smooth((30, 26, 20)).astype(np.float32), TURNED), path)
    found = run_masks.segment(in_torch(bundle), contract, runner.read(path))
    wanted = SegmentPredictor.load(folder, device="cpu", backend="torch")(path).values
    assert found.shape == wanted.shape
    assert (found == wanted).mean() > 0.999
    assert len(np.unique(wanted)) > 1


def test_a_contract_that_prepares_otherwise_is_refused(make_segmenter, tmp_path):
    bundle = Bundle.load(make_segmenter(tmp_path / "bundle", ORGANS))
    contract = json.loads(json.dumps(mobile_contract(bundle, "executorch")))
    check_contract(tmp_path / "model.pte", contract, bundle)
    contract["conform"]["window"] = [0, 1]
    contract["post"] = [{"label": 1, "keep": "largest"}]
    with pytest.raises(AcceptanceError, match="differs from the bundle in conform, post"):
        check_contract(tmp_path / "model.pte", contract, bundle)


@pytest.fixture(scope="session", params=["litert", "executorch"])
def python(request):
    """A kind of file, and a Python that makes and runs it."""
    return request.param, python_of(request.param)


def cases(root, smooth, *, dims):
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for k in range(3):
        shape = (40 + k, 48) if dims == 2 else (20 + k, 24, 18)
        values, truth = smooth(shape, seed=k), np.zeros(shape, np.uint16)
        truth[4:10, 4:10], truth[4:10, 12:18] = 1, 2
        if dims == 2:
            Picture.fromarray(values.astype(np.uint8)).save(root / "images" / f"{k}.png")
            Picture.fromarray(truth).save(root / "labels" / f"{k}.png")
        else:
            for name, array in (("images", values.astype(np.float32)), ("labels", truth)):
                nib.save(nib.Nifti1Image(array, TURNED), root / name / f"{k}.nii.gz")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("what", ["objects", "volume"])
def test_a_file_gives_the_masks_of_its_bundle(python, what, make_segmenter, smooth, tmp_path):
    kind, place = python
    if what == "objects":
        folder, dims = make_segmenter(tmp_path / "bundle", CELLS, dims=2, views=[[], [1]]), 2
    else:
        spec = {"spacing_mm": [2.0, 1.5, 1.5], "window": [10.0, 240.0]}
        folder, dims = make_segmenter(tmp_path / "bundle", ORGANS, norm="instance", views=[[], [0, 2]], spec=spec), 3
    data = cases(tmp_path / "data", smooth, dims=dims)
    path = tmp_path / "out" / f"model.{'tflite' if kind == 'litert' else 'pte'}"
    record = jobs.export(folder, to=kind, out=path, data=data)
    assert record["accepted"]
    assert record["tolerance"] == 0.999
    assert len(record["cases"]) == 3
    assert json.loads(contract_beside(path).read_text()) == mobile_runner.contract_in(path)
    # The runner by itself, from the raw files, against the bundle in this environment.
    files = sorted((data / "images").iterdir())
    words = [path.parent, path.parent / "run_mobile.py", path, *files, "--out", tmp_path / "masks"]
    done = subprocess.run([place, "-c", ALONE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    model = SegmentPredictor.load(folder, device="cpu", backend="torch")
    for file, line in zip(files, lines, strict=True):
        mask, wanted = open_image(line["mask"]).pixels[0].squeeze(), model(file).values.squeeze()
        assert wanted.any()
        assert (mask > 0).sum() == sum(line["voxels"].values())
        if what == "objects":
            assert line["objects"] == mask.max()
            assert instance_scores(mask.astype(np.int32), wanted)["panoptic_quality"] > 0.97
        else:
            assert (mask == wanted).mean() > 0.999
    # One bit of the model.
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.with_name(f"{path.name}.accepted.json").unlink()
    with pytest.raises(AcceptanceError, match="was changed after it was exported") as caught:
        jobs.export(folder, accept=path, data=data)
    assert caught.value.exit_code == 6
