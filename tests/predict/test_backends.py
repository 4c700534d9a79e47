"""Back ends against the network itself, in torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from vesalius.core.errors import AcceptanceError, MissingExtra, UsageError
from vesalius.models.segmenters import SegmenterShape, build_segmenter
from vesalius.predict import backends
from vesalius.predict.backends import OpenVinoBackend, TorchBackend, make_backend


def network(dims, *, seed=0, norm="batch", inputs=2):
    torch.manual_seed(seed)
    made = DynUNet(dims, inputs, 3, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 8, 12], norm_name=norm)
    for part in made.modules():  # statistics as after training
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    return made.eval()


def tiles(patch, count=3, inputs=2):
    return np.random.default_rng(0).normal(size=(count, inputs, *patch)).astype(np.float32)


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize(("patch", "norm"), [((24, 16), "batch"), ((8, 16, 12), "instance")])
def test_logits_are_those_of_the_networks(name, patch, norm):
    pytest.importorskip(name)
    nets = [network(len(patch), seed=seed, norm=norm) for seed in (0, 1)]
    backend = make_backend(nets, inputs=2, patch=patch, batch=2, name=name)
    x = tiles(patch)
    with torch.no_grad():
        expected = [net(torch.from_numpy(x)).numpy() for net in nets]
    for found, own in zip(backend.each(x), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), own, atol=2e-4)
    found = backend(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (expected[0] + expected[1]) / 2, atol=2e-4)
    assert (backend.members, backend.name, backend.notes) == (2, name, [])


@pytest.mark.slow
def test_onnxruntime():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network(2)
    backend = make_backend([net], inputs=2, patch=(16, 8), name="onnxruntime")
    x = tiles((16, 8))
    with torch.no_grad():
        np.testing.assert_allclose(backend(x), net(torch.from_numpy(x)).numpy(), atol=2e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_streams_that_run_ahead_give_each_network_its_own_answers(batch, count, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(backends, "available_cores", lambda: 4)
    nets = [network(2, seed=seed) for seed in range(3)]
    backend = make_backend(nets, inputs=2, patch=(24, 16), batch=batch, name="openvino")
    x = tiles((24, 16), count)
    found = [logits.clone() for logits in backend.each(x)]
    assert len(found) == 3
    for member, (logits, net) in enumerate(zip(found, nets, strict=True)):
        with torch.no_grad():
            np.testing.assert_allclose(logits.numpy(), net(torch.from_numpy(x)).numpy(), atol=2e-4)
        assert torch.equal(logits, backends.OneMember(backend, member)._logits(0, x))
    # A caller that stops in between leaves nothing behind.
    first = backend.each(x)
    assert torch.equal(next(first), found[0])
    first.close()
    assert all(torch.equal(a, b) for a, b in zip(backend.each(x), found, strict=True))


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bfloat16_is_near(name):
    pytest.importorskip(name)
    net = network(3, norm="instance")
    x = tiles((16, 16, 16))
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    found = make_backend([net], inputs=2, patch=(16, 16, 16), name=name, precision="bf16")(x)
    assert found.dtype == np.float32
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * expected.std()


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_a_tile_has_the_same_bits_in_any_company(name):
    pytest.importorskip(name)
    x = tiles((8, 16, 8), 5)
    backend = make_backend([network(3)], inputs=2, patch=(8, 16, 8), batch=2, name=name)
    together = backend(x)
    alone = np.concatenate([backend(x[k : k + 1]) for k in (4, 3, 2, 1, 0)])[::-1]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("kind", ["unet", "resunet"])
def test_our_own_networks_reach_openvino(kind):
    pytest.importorskip("openvino")
    torch.manual_seed(1)
    shape = SegmenterShape(dims=3, inputs=1, outputs=3, patch=(8, 32, 32), features=(4, 8, 8, 8), norm="batch")
    net = build_segmenter(kind, shape)
    backend = make_backend([net], inputs=1, patch=(8, 32, 32))
    assert (backend.name, backend.notes) == ("openvino", [])
    assert net.training  # the network of the caller stays as it was
    x = tiles((8, 32, 32), inputs=1)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(backend(x), expected, atol=2e-4)


class SizeInPython(nn.Module):
    """Adds a ramp whose length is a number in Python: a trace on a smaller tile fixes it at the wrong size."""

    multiple = (4, 4)

    def forward(self, x):
        return torch.cat([x, x * float(x.shape[-1])], dim=1)


def test_a_network_that_computes_with_its_size_is_traced_on_a_whole_tile(monkeypatch):
    pytest.importorskip("openvino")
    tried = []
    start = OpenVinoBackend.__init__

    def spy(self, networks, *, small=True, **options):
        tried.append(small)
        start(self, networks, small=small, **options)

    monkeypatch.setattr(OpenVinoBackend, "__init__", spy)
    backend = make_backend([SizeInPython()], inputs=1, patch=(32, 24), name="openvino")
    assert tried == [True, False]
    x = tiles((32, 24), inputs=1)
    np.testing.assert_allclose(backend(x), np.concatenate([x, 24 * x], axis=1), rtol=1e-5)


class Unrepeatable(nn.Module):
    def forward(self, x):
        return torch.cat([x, torch.randn_like(x)], dim=1)


def test_what_openvino_does_not_reproduce_is_computed_by_torch():
    pytest.importorskip("openvino")
    backend = make_backend([Unrepeatable()], inputs=1, patch=(16, 16))
    assert isinstance(backend, TorchBackend)
    assert len(backend.notes) == 1
    assert "torch" in backend.notes[0]
    assert "\n" not in backend.notes[0]
    with pytest.raises(AcceptanceError, match="choose torch"):
        make_backend([Unrepeatable()], inputs=1, patch=(16, 16), name="openvino")


def test_without_the_package(monkeypatch):
    for name in [name for name in sys.modules if name == "openvino" or name.startswith("openvino.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "openvino":
                raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    backend = make_backend([network(2)], inputs=2, patch=(8, 8))
    assert backend.name == "torch"
    assert "pip install 'vesalius[openvino]'" in backend.notes[0]
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(MissingExtra, match="pip install"):
            make_backend([network(2)], inputs=2, patch=(8, 8), name=name)


@pytest.mark.slow
def test_openvino_is_loaded_without_its_telemetry():
    pytest.importorskip("openvino")
    code = (
        "import sys, torch\n"
        "from vesalius.predict.backends import make_backend\n"
        "made = make_backend([torch.nn.Conv2d(1, 2, 3, padding=1)], inputs=1, patch=(8, 8), name='openvino')\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "print(used.tm.__name__, 'openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


def test_a_batch_on_an_accelerator_keeps_its_size(monkeypatch):
    seen = []

    class Counting(nn.Conv2d):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    net = Counting(1, 2, 3, padding=1)
    backend = make_backend([net], inputs=1, patch=(8, 8), batch=4, name="torch")
    x = tiles((8, 8), 6, inputs=1)
    expected = backend(x)
    assert seen == [1] * 6
    seen.clear()
    monkeypatch.setattr(backends.TorchBackend, "size", property(lambda self: self.batch))
    found = backend(x)
    assert seen == [4, 4]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_wrong_calls_are_refused():
    net = network(2)
    with pytest.raises(UsageError, match="back end 'tensorrt' is unknown"):
        make_backend([net], inputs=2, patch=(8, 8), name="tensorrt")
    with pytest.raises(UsageError, match="precision 'int4' is unknown"):
        make_backend([net], inputs=2, patch=(8, 8), precision="int4")
    with pytest.raises(UsageError, match="fp32 on a CPU"):
        make_backend([net], inputs=2, patch=(8, 8), name="onnxruntime", precision="bf16")
    with pytest.raises(UsageError, match="on the CPU, not on cuda"):
        make_backend([net], inputs=2, patch=(8, 8), name="openvino", device=torch.device("cuda"))
    with pytest.raises(ValueError, match="at least one network"):
        make_backend([], inputs=2, patch=(8, 8))
    backend = make_backend([net], inputs=2, patch=(8, 8), name="torch")
    for wrong in (tiles((8, 12)), tiles((8, 8), inputs=1), tiles((8, 8)).astype(np.float64), tiles((8, 8))[:0]):
        with pytest.raises(ValueError, match="tiles must be float32"):
            backend(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_on_a_gpu_is_torch():
    net = network(3)
    backend = make_backend([net], inputs=2, patch=(8, 16, 8), batch=2, device=torch.device("cuda"))
    assert backend.name == "torch"
    x = tiles((8, 16, 8))
    with torch.no_grad():
        np.testing.assert_allclose(backend(x), net(torch.from_numpy(x)).numpy(), atol=2e-2)
