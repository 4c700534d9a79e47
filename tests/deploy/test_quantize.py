"""Int8 bundles: close to the float one, smaller, verified, exported, with sensitive layers left in float."""

import importlib.util
import subprocess
import sys

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image as Picture

from vesalius.core.errors import AcceptanceError, UnreadableFile, UsageError
from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.deploy import quantize as module
from vesalius.deploy import runner
from vesalius.deploy.artefact import Artefact
from vesalius.deploy.inline import with_networks
from vesalius.deploy.qdq import joined
from vesalius.predict.backends import make_backend
from vesalius.predict.bundle import Bundle
from vesalius.predict.graph_network import GraphNetwork
from vesalius.predict.predictor import Predictor
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs

for needed in ("nncf", "openvino"):  # importing them here would wake their telemetry
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

ORGANS = Labels(("background", "liver", "spleen"))
quantize = module.quantize


@pytest.fixture(autouse=True)
def the_same_weights_every_time():
    torch.manual_seed(0)


@pytest.fixture
def inputs(smooth):
    def made(bundle, count=6, seed=0):
        sides = bundle.inference["tile"]["patch"] if bundle.task == "segment" else bundle.preprocess["size"]
        shape = (1, bundle.preprocess["channels"], *sides)
        found = []
        for k in range(count):
            values = smooth(shape, seed=seed + k)
            found.append(((values - values.mean()) / values.std()).astype(np.float32))
        return found

    return made


def apart(found, wanted):
    """Root mean square difference over the spread."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def logits(bundle, x):
    with torch.no_grad():
        return [network(torch.from_numpy(x)).numpy() for network in bundle.networks()]


def int8_weights(graph):
    model = onnx.load_from_string(graph)
    return [one for one in model.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) > 1]


def kinds(graph):
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_classifier(dims, make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float", dims=dims, members=2, views=[[], [1]], temperature=1.3))
    found = quantize(bundle, inputs(bundle, 12), inputs(bundle, 6, seed=50), tolerance=0.5)
    assert found.kept == ()
    assert found.sensitivity == {}
    assert found.deviation[0] == found.deviation[1] < 0.5
    small = found.bundle
    assert (small.arithmetic, small.members, len(small.graphs)) == ("int8", [], 2)
    for graph in small.graphs:
        assert kinds(graph).count("QuantizeLinear") >= 4
        # Every convolution has int8 weights, except those of single values (squeeze and excitation).
        model = onnx.load_from_string(graph)
        rest = [one.name for one in model.graph.initializer if one.data_type == TensorProto.FLOAT and len(one.dims) > 2]
        assert all("excite" in name for name in rest)
        assert len(int8_weights(graph)) >= (8 if dims == 2 else 3)
    x = np.concatenate(inputs(bundle, 5, seed=80))
    for one, other in zip(logits(small, x), logits(bundle, x), strict=True):
        assert one.shape == other.shape
        assert 0 < apart(one, other) < 0.3
    # A batch is as good as one.
    np.testing.assert_allclose(logits(small, x[2:3])[0], logits(small, x)[0][2:3], atol=1e-5)


def test_attention(make_segmenter, inputs, tmp_path):
    pytest.importorskip("monai")
    model = {"name": "swinunetr", "width": 12, "patch": [64, 64]}
    bundle = Bundle.load(make_segmenter(tmp_path / "float", ORGANS, dims=2, model=model))
    found = quantize(bundle, inputs(bundle, 8), inputs(bundle, 3, seed=50), tolerance=0.5)
    assert len(int8_weights(found.bundle.graphs[0])) > 30
    x = np.concatenate(inputs(bundle, 2, seed=80))
    assert 0 < apart(logits(found.bundle, x)[0], logits(bundle, x)[0]) < 0.5


def test_it_is_saved_read_and_predicts(make_classifier, inputs, smooth, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float", members=2))
    small = quantize(bundle, inputs(bundle, 12), tolerance=0.5).bundle
    small.save(tmp_path / "int8")
    names = {path.name for path in (tmp_path / "int8").iterdir()}
    assert names == {"member-0.onnx", "member-1.onnx", "bundle.json", "plan.yaml", "card.md", "SHA256SUMS"}
    back = Bundle.load(tmp_path / "int8")
    assert back.same_as(small)
    assert not back.same_as(bundle)
    assert (back.checksum, back.arithmetic) == (small.checksum, "int8")
    assert back.checksum != bundle.checksum
    path = tmp_path / "p.png"
    Picture.fromarray(smooth((30, 25)).astype(np.uint8)).save(path)
    found, wanted = Predictor.load(tmp_path / "int8", device="cpu")(path), Predictor(bundle, device="cpu")(path)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=0.1)
    assert found.spread is not None


def test_a_changed_graph_is_refused(make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float", members=2))
    quantize(bundle, inputs(bundle), tolerance=0.5).bundle.save(tmp_path / "int8")
    path = tmp_path / "int8" / "member-1.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AcceptanceError, match="member-1") as caught:
        Bundle.load(tmp_path / "int8")
    assert caught.value.exit_code == 6
    path.unlink()
    with pytest.raises(AcceptanceError, match="missing"):
        Bundle.load(tmp_path / "int8")


def test_an_arithmetic_of_a_later_version_is_named(make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    small = quantize(bundle, inputs(bundle), tolerance=0.5).bundle
    small.arithmetic = "int4"
    small.save(tmp_path / "int4")
    with pytest.raises(UnreadableFile, match="int4"):
        Bundle.load(tmp_path / "int4")


def test_it_is_smaller(make_classifier, inputs, tmp_path):
    folder = make_classifier(tmp_path / "float")
    bundle = Bundle.load(folder)
    encoder = {"name": "resnet18", "width": 32}
    torch.manual_seed(0)
    network = bundle.make_task().network(encoder, dims=2, inputs=1, size=bundle.preprocess["size"])
    bundle.model, bundle.members = encoder, [network.state_dict()]
    bundle.save(folder)
    small = quantize(bundle, inputs(bundle), tolerance=0.5).bundle
    assert len(small.graphs[0]) < 0.35 * (folder / "model.safetensors").stat().st_size
    assert str(tmp_path.anchor + "site-packages").encode() not in small.graphs[0]
    assert b".py" not in small.graphs[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_tiles_of_a_segmentation(dims, norm, make_segmenter, inputs, smooth, tmp_path):
    folder = make_segmenter(tmp_path / "float", ORGANS, dims=dims, members=2, norm=norm, views=[[], [1]])
    bundle = Bundle.load(folder)
    small = quantize(bundle, inputs(bundle, 10), inputs(bundle, 4, seed=40), tolerance=0.5).bundle
    small.save(tmp_path / "int8")
    small = Bundle.load(tmp_path / "int8")
    assert small.inference["backend"] == "auto"
    assert small.inference["tile"] == bundle.inference["tile"]
    shape = (30, 26, 20) if dims == 3 else (60, 45)
    path = tmp_path / ("scan.nii.gz" if dims == 3 else "p.png")
    if dims == 3:
        nib.save(nib.Nifti1Image(smooth(shape).astype(np.float32), np.eye(4)), path)
    else:
        Picture.fromarray(smooth(shape).astype(np.uint8)).save(path)
    wanted = SegmentPredictor(bundle, device="cpu")(path).values
    assert len(np.unique(wanted)) > 1
    for backend in ("auto", "openvino", "onnxruntime", "torch"):
        model = SegmentPredictor(small, device="cpu", backend=backend)
        assert model.backend.name == {"auto": "openvino"}.get(backend, backend)
        assert (model(path).values == wanted).mean() > 0.9, backend


def test_backends_of_an_int8_network_agree(make_segmenter, inputs, tmp_path):
    bundle = Bundle.load(make_segmenter(tmp_path / "float", ORGANS))
    small = quantize(bundle, inputs(bundle, 8), tolerance=0.5).bundle
    tiles = np.concatenate(inputs(bundle, 5, seed=70))
    options = {"inputs": 1, "patch": (16, 16, 16), "batch": 2}
    found = {name: make_backend(small.networks(), name=name, **options)(tiles)
             for name in ("torch", "openvino", "onnxruntime")}  # fmt: skip
    wanted = make_backend(bundle.networks(), name="torch", **options)(tiles)
    for name, values in found.items():
        assert 0 < apart(values, wanted) < 0.2, name
    np.testing.assert_allclose(found["torch"], found["openvino"], atol=1e-4)
    assert apart(found["onnxruntime"], found["openvino"]) < 0.1


def test_without_openvino_tiles_are_computed_by_onnx_runtime(make_segmenter, inputs, tmp_path, monkeypatch):
    from vesalius.core.errors import MissingExtra
    from vesalius.predict import backends

    bundle = Bundle.load(make_segmenter(tmp_path / "float", ORGANS))
    small = quantize(bundle, inputs(bundle, 8), tolerance=0.5).bundle

    def missing():
        raise MissingExtra("computing with OpenVINO needs `openvino`")

    monkeypatch.setattr(backends, "import_openvino", missing)
    backend = make_backend(small.networks(), inputs=1, patch=(16, 16, 16))
    assert backend.name == "onnxruntime"
    x = inputs(bundle, 1)[0]
    np.testing.assert_allclose(small.networks()[0](torch.from_numpy(x)).numpy(), backend(x), atol=1e-5)


def test_a_sensitive_layer_stays_in_float(make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    calibration, validation = inputs(bundle, 12), inputs(bundle, 6, seed=30)
    usual = quantize(bundle, calibration, validation, tolerance=0.01)
    # What counts lies below the first step of the common scale of the values that this layer takes.
    name = spoilt(bundle.members[0])
    found = quantize(bundle, calibration, validation, tolerance=0.01)
    assert found.sensitivity[name] > 3 * usual.sensitivity[name]
    assert name in found.kept
    assert found.kept[0] == max(found.sensitivity, key=found.sensitivity.get)
    assert found.deviation[1] < found.deviation[0] < usual.deviation[0] + 0.5
    assert len(found.kept) < len(found.sensitivity)
    stored = {one.name for one in int8_weights(found.bundle.graphs[0])}
    assert not any(f"{found.kept[0]}.weight" in one for one in stored)
    assert stored
    x = np.concatenate(inputs(bundle, 8, seed=90))
    assert apart(logits(found.bundle, x)[0], logits(bundle, x)[0]) < found.deviation[0]


def spoilt(weights, block="body.stages.0.0", factor=3000.0):
    """Make one channel between two convolutions very large, and undo it in the second, whose name is returned."""
    weights[f"{block}.first.1.bias"][0] = 1.0
    for name in ("weight", "bias"):
        weights[f"{block}.first.1.{name}"][0] *= factor
    weights[f"{block}.second.0.weight"][:, 0] /= factor
    return f"{block}.second.0"


def test_most_of_the_work_stays_int8(make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    progress = Silent()
    found = quantize(bundle, inputs(bundle), tolerance=1e-9, progress=progress)
    assert "stay in float32" in progress.warnings[0]
    assert found.deviation[1] <= found.deviation[0]
    assert int8_weights(found.bundle.graphs[0])
    assert len(found.kept) < len(found.sensitivity)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_classifier_leaves_as_one_int8_file(kind, make_classifier, inputs, smooth, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float", members=2, views=[[], [1]], temperature=1.5))
    quantize(bundle, inputs(bundle, 12), tolerance=0.5).bundle.save(tmp_path / "int8")
    data = tmp_path / "data"
    for name in ("no", "yes"):
        (data / name).mkdir(parents=True)
        for k in range(3):
            Picture.fromarray(smooth((30, 40 + k), seed=k + len(name)).astype(np.uint8)).save(data / name / f"{k}.png")
    out = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    record = jobs.export(tmp_path / "int8", to=kind, out=out, data=data)
    assert record["accepted"]
    assert (record["arithmetic"], record["tolerance"]) == ("int8", 0.02)
    artefact = Artefact(out)
    assert artefact.contract["arithmetic"] == "int8"
    path = data / "no" / "1.png"
    found = runner.classify(artefact.call, artefact.contract, runner.read(path))
    wanted = Predictor.load(tmp_path / "int8", device="cpu")(path)
    np.testing.assert_allclose(list(found["probabilities"].values()), wanted.probabilities, atol=0.02)
    images = np.stack([smooth((1, 25, 33), seed=k) for k in range(3)]).astype(np.float32)
    assert artefact.call({"image": images})[0].shape == (3, 3)
    if kind == "onnx":
        whole, single = onnx.load(out), sum(len(int8_weights(graph)) for graph in Bundle.load(tmp_path / "int8").graphs)
        stored = [one for one in whole.graph.initializer if one.data_type == TensorProto.INT8 and len(one.dims) > 1]
        assert len(stored) == single  # both views share them
        assert not any(node.domain for node in whole.graph.node)
        with pytest.raises(UsageError, match="quantised"):
            jobs.export(tmp_path / "int8", to="litert", data=data)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_segmentation_leaves_as_one_int8_file(kind, make_segmenter, inputs, smooth, tmp_path):
    bundle = Bundle.load(make_segmenter(tmp_path / "float", ORGANS, members=2, views=[[], [2]]))
    quantize(bundle, inputs(bundle, 12), tolerance=0.5).bundle.save(tmp_path / "int8")
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(smooth((30, 26, 20), seed=3).astype(np.float32), np.eye(4)), path)
    root = tmp_path / "data"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "images" / path.name).write_bytes(path.read_bytes())
    mask = np.zeros((30, 26, 20), np.uint8)
    mask[4:8, 4:8, 4:8] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), root / "labels" / path.name)
    out = tmp_path / ("m.onnx" if kind == "onnx" else "m.xml")
    record = jobs.export(tmp_path / "int8", to=kind, out=out, data=root, cases=1)
    assert record["accepted"]
    assert record["tolerance"] == 0.99
    if kind == "onnx":
        assert len(int8_weights(out.read_bytes())) == sum(
            len(int8_weights(graph)) for graph in Bundle.load(tmp_path / "int8").graphs
        )


def test_concatenations_join_eight_bit_values(make_segmenter, inputs, tmp_path):
    bundle = Bundle.load(make_segmenter(tmp_path / "float", ORGANS))
    graph = quantize(bundle, inputs(bundle, 8), tolerance=0.5).bundle.graphs[0]
    model = onnx.load_from_string(graph)
    made = {name: node for node in model.graph.node for name in node.output}
    joins = [node for node in model.graph.node if node.op_type == "Concat"]
    assert joins
    for node in joins:
        assert {made[name].op_type for name in node.input} == {"QuantizeLinear"}
    again = joined(model)
    assert len(again.graph.node) == len(model.graph.node)


def test_bad_inputs_are_named(make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    good = inputs(bundle)
    with pytest.raises(UsageError, match="at least one"):
        quantize(bundle, [])
    with pytest.raises(UsageError, match=r"calibration inputs must be finite, of shape \(B, 1, 18, 18\)"):
        quantize(bundle, [np.zeros((1, 1, 18, 17), np.float32)])
    with pytest.raises(UsageError, match="not finite"):
        quantize(bundle, good, [np.full((1, 1, 18, 18), np.nan, np.float32)])
    small = quantize(bundle, good, tolerance=0.5).bundle
    with pytest.raises(UsageError, match="int8 already"):
        quantize(small, good)


def test_nothing_reaches_the_screen(make_classifier, inputs, tmp_path, capfd):
    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    capfd.readouterr()
    quantize(bundle, inputs(bundle), tolerance=0.5)
    assert capfd.readouterr() == ("", "")


def test_nothing_reaches_a_server():
    code = (
        "import logging, sys\n"
        "from vesalius.deploy.quantize import _libraries\n"
        "before = logging.getLoggerClass()\n"
        "_libraries()\n"
        "from nncf.telemetry import telemetry\n"
        "print(type(telemetry).__module__, 'openvino_telemetry' in sys.modules, before is logging.getLoggerClass())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unittest.mock", "False", "True"]


def test_a_graph_of_another_operator_set_is_refused(make_classifier, inputs, tmp_path):
    from vesalius.deploy.onnx_out import write_onnx

    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    small = quantize(bundle, inputs(bundle), tolerance=0.5).bundle
    model = onnx.load_from_string(small.graphs[0])
    model.opset_import[0].version = 21
    small.graphs = [model.SerializeToString()]
    with pytest.raises(AcceptanceError, match="operator set 21"):
        write_onnx(small, tmp_path / "m.onnx")
    with pytest.raises(AcceptanceError, match="not in the exported graph"):
        with_networks(onnx.load_from_string(small.graphs[0]), small.graphs)


def test_a_graph_network_keeps_few_shapes_compiled(make_classifier, inputs, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "float"))
    small = quantize(bundle, inputs(bundle), tolerance=0.5).bundle
    network = GraphNetwork(small.graphs[0], outputs=3, dense=False)
    x = np.concatenate(inputs(bundle, 6))
    whole = network.compute(x)
    for k in range(1, 7):
        np.testing.assert_allclose(network.compute(x[:k]), whole[:k], atol=1e-5)
    assert len(network._ready) <= 4
    assert numpy_helper.to_array(int8_weights(small.graphs[0])[0]).dtype == np.int8
