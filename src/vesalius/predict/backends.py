"""Segmentation networks behind one call, computed by torch, OpenVINO or ONNX Runtime.

A back end takes float32 tiles of one fixed size and gives float32 logits. On a CPU every tile is computed by itself,
whatever stands beside it in the batch: its logits have the same bits alone and in any company, so that leaving tiles
out or filling batches differently changes nothing. A batch is what runs at the same time, one tile per stream.
"""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vesalius.core.environment import available_cores
from vesalius.core.errors import AcceptanceError, MissingExtra, UsageError
from vesalius.core.extras import extra
from vesalius.models.segmenters import fold_batchnorm
from vesalius.predict.graph_network import GraphNetwork, onnx_session

NAMES = ("auto", "torch", "openvino", "onnxruntime")
PRECISIONS = ("fp32", "bf16")
# Allowed deviation from torch in fp32 on a tile of noise, as root mean square over the deviation of the logits.
# Networks with instance norm reach 2e-4 in fp32 and 0.03 in bf16; a wrong graph is off by about 1.
TOLERANCE = {"fp32": 5e-3, "bf16": 0.15}
# Of int8 networks two libraries round differently before every layer, and noise is not what they were calibrated on:
# networks with random weights reach 0.1.
_INT8 = 0.3

FloatArray = NDArray[np.float32]


class Backend(ABC):
    """Networks in evaluation mode, compiled for tiles of one size. One caller at a time.

    Parameters
    ----------
    members
        Number of networks.
    inputs
        Channels of a tile.
    patch
        Sides of a tile, ``(z, y, x)`` or ``(y, x)``.
    batch
        Tiles that are computed at the same time; calls may have more or fewer.
    device
        Where `each` leaves its logits.

    Attributes
    ----------
    name, precision
        What computes, and in which arithmetic.
    notes
        Warnings for the person, one line each, such as why ``auto`` did not take the fastest.
    """

    name = ""

    def __init__(
        self,
        members: int,
        *,
        inputs: int,
        patch: tuple[int, ...],
        batch: int,
        precision: str,
        device: torch.device,
    ) -> None:
        self.members, self.inputs, self.patch, self.batch = members, inputs, patch, batch
        self.precision, self.device = precision, device
        self.notes: list[str] = []

    def __call__(self, tiles: FloatArray) -> FloatArray:
        """Logits ``(B, K, *patch)`` of tiles ``(B, C, *patch)``: the mean over the networks, float32."""
        total: Tensor | None = None
        for logits in self.each(tiles):
            total = logits if total is None else total.add_(logits)
        if total is None:
            raise ValueError("a back end needs at least one network")
        if self.members > 1:
            total = total.div_(self.members)
        found: FloatArray = total.cpu().numpy()
        return found

    def each(self, tiles: FloatArray) -> Iterator[Tensor]:
        """Logits ``(B, K, *patch)`` of every network in turn, float32 on `device`; the caller may change them."""
        tiles = self._checked(tiles)
        for member in range(self.members):
            yield self._logits(member, tiles)

    def _checked(self, tiles: FloatArray) -> FloatArray:
        wanted = (self.inputs, *self.patch)
        if tiles.ndim != len(wanted) + 1 or tiles.shape[1:] != wanted or tiles.dtype != np.float32 or not len(tiles):
            raise ValueError(
                f"tiles must be float32 (B, {', '.join(map(str, wanted))}), got {tiles.dtype} {tiles.shape}"
            )
        return np.ascontiguousarray(tiles)

    @abstractmethod
    def _logits(self, member: int, tiles: FloatArray) -> Tensor: ...


class OneMember(Backend):
    """One network of a back end by itself, without compiling it again."""

    def __init__(self, whole: Backend, member: int) -> None:
        super().__init__(
            1,
            inputs=whole.inputs,
            patch=whole.patch,
            batch=whole.batch,
            precision=whole.precision,
            device=whole.device,
        )
        self.name, self.whole, self.member = whole.name, whole, member

    def _logits(self, member: int, tiles: FloatArray) -> Tensor:
        return self.whole._logits(self.member, tiles)


def make_backend(
    networks: Sequence[nn.Module],
    *,
    inputs: int,
    patch: tuple[int, ...],
    batch: int = 1,
    name: str = "auto",
    precision: str = "fp32",
    device: torch.device | None = None,
) -> Backend:
    """Networks made ready for tiles of one size; the networks of the caller are not changed.

    Parameters
    ----------
    networks
        The members of an ensemble; each maps ``(B, C, *patch)`` to logits ``(B, K, *patch)`` in evaluation mode.
    inputs, patch
        Channels and sides of a tile.
    batch
        Tiles that are computed at the same time.
    name
        ``"auto"`` takes OpenVINO on a CPU if it is installed and reproduces torch on a tile of noise, else torch, and
        tells the reason in `Backend.notes`. An int8 network (`GraphNetwork`) is computed by ONNX Runtime then.
    precision
        ``"fp32"``, or ``"bf16"`` for products in bfloat16 (the weights stay as they are).
    device
        For torch; the others compute on the CPU.

    Raises
    ------
    UsageError
        For an unknown name or precision, or a back end that cannot compute on the device or in the precision.
    MissingExtra
        If the named back end is not installed; the message holds the command.
    AcceptanceError
        If the named back end cannot convert a network or does not reproduce torch.
    """
    device = device or torch.device("cpu")
    _check(networks, name, precision, device)
    patch = tuple(int(side) for side in patch)
    ready = [_prepared(network) for network in networks]
    options: dict[str, Any] = {
        "inputs": int(inputs),
        "patch": patch,
        "batch": max(1, int(batch)),
        "precision": precision,
    }
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return TorchBackend(ready, device=device, **options)
    if name == "onnxruntime":
        return _accepted(OnnxBackend, ready, options)
    try:
        return _accepted(OpenVinoBackend, ready, options)
    except (MissingExtra, AcceptanceError) as error:
        if name != "auto":
            raise
        if isinstance(error, MissingExtra) and any(isinstance(network, GraphNetwork) for network in ready):
            return _accepted(OnnxBackend, ready, {**options, "precision": "fp32"})
        fallback = TorchBackend(ready, device=device, **options)
        fallback.notes.append(f"computing with torch, which is slower: {error}")
        return fallback


def _check(networks: Sequence[nn.Module], name: str, precision: str, device: torch.device) -> None:
    if not networks:
        raise ValueError("a back end needs at least one network")
    if name not in NAMES:
        raise UsageError(f"back end {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if name in ("openvino", "onnxruntime") and device.type != "cpu":
        raise UsageError(f"back end {name} computes on the CPU, not on {device}; choose auto or torch")
    if name == "onnxruntime" and precision != "fp32":
        raise UsageError(
            f"back end onnxruntime computes in fp32 on a CPU, not in {precision}; choose openvino or torch"
        )


def _prepared(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the CPU, with batch norm folded into the convolutions before it."""
    return fold_batchnorm(network).to("cpu").eval().requires_grad_(False)


class TorchBackend(Backend):
    """Plain torch on any device, channels last; on a CPU tile by tile, elsewhere in batches of one fixed size."""

    name = "torch"

    def __init__(self, networks: Sequence[nn.Module], *, device: torch.device, **options: Any) -> None:
        super().__init__(len(networks), device=device, **options)
        self.order = torch.channels_last if len(self.patch) == 2 else torch.channels_last_3d
        where: Any = {"device": device, "memory_format": self.order}  # torch's stub of `to` lacks memory_format
        self.networks = [network.to(**where) for network in networks]

    @property
    def size(self) -> int:
        """Tiles of one call of a network."""
        return 1 if self.device.type == "cpu" else self.batch

    @torch.no_grad()
    def _logits(self, member: int, tiles: FloatArray) -> Tensor:
        count, size = len(tiles), self.size
        if count % size:
            # Another batch size may take another algorithm and other rounding.
            tiles = np.concatenate([tiles, np.repeat(tiles[-1:], size - count % size, axis=0)])
        parts = []
        for start in range(0, len(tiles), size):
            x = torch.from_numpy(tiles[start : start + size]).to(self.device)
            mixed: Any = nullcontext()
            if self.precision == "bf16":
                mixed = torch.autocast(self.device.type, dtype=torch.bfloat16)
            with mixed:
                logits = self.networks[member](x.contiguous(memory_format=self.order))
            parts.append(logits.to(torch.float32, memory_format=torch.contiguous_format))
        return torch.cat(parts)[:count] if len(parts) > 1 else parts[0][:count]


class OpenVinoBackend(Backend):
    """OpenVINO on the CPU: one compiled model per network, one stream per tile of a batch."""

    name = "openvino"

    def __init__(self, networks: Sequence[nn.Module], *, small: bool = True, **options: Any) -> None:
        super().__init__(len(networks), device=torch.device("cpu"), **options)
        library = import_openvino()
        core = library.Core()
        cores = available_cores()
        streams = max(1, min(self.batch, cores))
        hints = openvino_hints(self.precision, streams)
        self.requests = []
        for network in networks:
            model = _converted(network, (1, self.inputs, *self.patch), small=small)
            compiled = core.compile_model(model, "CPU", hints)
            self.requests.append([compiled.create_infer_request() for _ in range(streams)])

    def each(self, tiles: FloatArray) -> Iterator[Tensor]:
        """Logits of every network in turn; a stream that one network leaves idle begins with the next."""
        yield from self._in_turn(range(self.members), self._checked(tiles))

    def _logits(self, member: int, tiles: FloatArray) -> Tensor:
        return next(self._in_turn([member], tiles))

    def _in_turn(self, members: Sequence[int], tiles: FloatArray) -> Iterator[Tensor]:
        streams = len(self.requests[0])
        outputs = tuple(self.requests[0][0].model_outputs[0].shape)[1:]
        found: dict[int, FloatArray] = {}
        flying: deque[tuple[int, int, Any]] = deque()
        jobs = [(member, index) for member in members for index in range(len(tiles))]
        try:
            for count, (member, index) in enumerate(jobs):
                if len(flying) == streams:
                    yield from self._landed(flying, found, len(tiles), outputs)
                request = self.requests[member][count % streams]
                request.start_async([tiles[index : index + 1]], share_inputs=True)
                flying.append((member, index, request))
            while flying:
                yield from self._landed(flying, found, len(tiles), outputs)
        finally:  # a caller that stops early must not free what is still read
            for _, _, request in flying:
                request.wait()

    @staticmethod
    def _landed(
        flying: deque[tuple[int, int, Any]], found: dict[int, FloatArray], count: int, outputs: tuple[int, ...]
    ) -> Iterator[Tensor]:
        """Take the oldest answer; give the logits of its network if it was the last one."""
        member, index, request = flying[0]
        request.wait()
        flying.popleft()
        mine = found.setdefault(member, np.empty((count, *outputs), dtype=np.float32))
        mine[index] = request.get_output_tensor(0).data[0]
        if index == count - 1:
            yield torch.from_numpy(found.pop(member))


def openvino_hints(precision: str, streams: int) -> dict[str, Any]:
    """How OpenVINO compiles for the CPU, in ``"fp32"`` or ``"bf16"``; int8 layers stay int8 in both."""
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(available_cores()),
        # Pinned threads of two processes would wait for the same core while another is idle.
        "ENABLE_CPU_PINNING": False,
    }


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    with without_telemetry():
        return extra("openvino", group="openvino", purpose="computing with OpenVINO")


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Libraries of OpenVINO report their import to a server unless one package is missing: inside, it is."""
    silenced = "openvino_telemetry" not in sys.modules
    if silenced:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if silenced:
            del sys.modules["openvino_telemetry"]


def _converted(network: nn.Module, shape: tuple[int, ...], *, small: bool) -> Any:
    """The network as an OpenVINO model for input of `shape`; traced on a small tile, which is faster, if `small`."""
    if isinstance(network, GraphNetwork):
        model = import_openvino().Core().read_model(network.graph)
        model.reshape(list(shape))
        return model
    from openvino.frontend import FrontEndManager  # type: ignore[import-not-found]
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # type: ignore[import-not-found]

    sides = shape[2:]
    if small:
        steps = getattr(network, "multiple", (16,) * len(sides))
        sides = tuple(min(side, 2 * int(step)) for side, step in zip(sides, steps, strict=True))
    # The front end itself, since `openvino.convert_model` reports every conversion to a server.
    front = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that is checked in Python
        traced = TorchScriptPythonDecoder(network, example_input=torch.zeros(*shape[:2], *sides))
        model = front.convert(front.load(traced))
    model.reshape(list(shape))
    return model


class OnnxBackend(Backend):
    """ONNX Runtime on the CPU, through torch's exporter."""

    name = "onnxruntime"

    def __init__(self, networks: Sequence[nn.Module], *, small: bool = True, **options: Any) -> None:
        super().__init__(len(networks), device=torch.device("cpu"), **options)
        self.sessions = [onnx_session(self._graph(network)) for network in networks]

    def _graph(self, network: nn.Module) -> bytes:
        if isinstance(network, GraphNetwork):
            return network.graph
        extra("onnxscript", group="onnx", purpose="computing with ONNX Runtime")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            example = torch.zeros(1, self.inputs, *self.patch)
            program: Any = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
        return bytes(program.model_proto.SerializeToString())

    def _logits(self, member: int, tiles: FloatArray) -> Tensor:
        session = self.sessions[member]
        name = session.get_inputs()[0].name
        parts = [session.run(None, {name: tiles[k : k + 1]})[0] for k in range(len(tiles))]
        return torch.from_numpy(np.concatenate(parts))


def _accepted(kind: Callable[..., Backend], networks: Sequence[nn.Module], options: dict[str, Any]) -> Backend:
    """A converted back end that reproduces torch in fp32 on a tile of noise.

    A network may compute with its input's size in Python, which a trace on a small tile would fix: where that trace
    fails or deviates, the network is traced once more on a whole tile.
    """
    shape = (1, options["inputs"], *options["patch"])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(20))
    with torch.no_grad():
        expected = [network(noise) for network in networks]
    reason = ""
    for small in (True, False):
        try:
            backend = kind(networks, small=small, **options)
            found = list(backend.each(noise.numpy()))
        except MissingExtra:
            raise
        except Exception as error:  # each converter has its own kinds of errors
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            continue
        worst = max(_deviation(a, b) for a, b in zip(found, expected, strict=True))
        allowed = TOLERANCE[options["precision"]]
        if any(isinstance(network, GraphNetwork) for network in networks):
            allowed = max(allowed, _INT8)
        if worst <= allowed:
            return backend
        reason = f"its logits deviate from torch by {worst:.2g} of their spread"
    raise AcceptanceError(f"the network cannot be computed by {getattr(kind, 'name', kind)}: {reason}; choose torch")


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Root mean square difference over the deviation of `expected`; infinite for another shape or no numbers."""
    if found.shape != expected.shape:
        return float("inf")
    spread = max(float(expected.std()), 1e-3 * float(expected.abs().max()), 1e-12)
    ratio = float((found - expected).square().mean().sqrt()) / spread
    return ratio if np.isfinite(ratio) else float("inf")
