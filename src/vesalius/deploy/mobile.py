"""A bundle as one file for mobile devices: LiteRT (``.tflite``) or ExecuTorch (``.pte``).

These runtimes want shapes that are known beforehand. The image of a classifier is therefore cut and resized outside of
the graph, as the contract describes it and `deploy.mobile_runner` does it; everything after is in the graph: window,
rounding to the stored type, normalisation, every network and view, temperature, probabilities. A segmentation takes
one tile at a time, as its other exported files do (`deploy.run_masks`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.core.errors import AcceptanceError, UsageError
from vesalius.core.extras import extra
from vesalius.core.files import atomic, write_text
from vesalius.deploy import mobile_runner
from vesalius.deploy.artefact import contract_beside
from vesalius.deploy.contract import contract_of
from vesalius.deploy.graphs import ClassifyGraph, TileGraph, examples
from vesalius.deploy.planes import in_planes
from vesalius.predict.bundle import Bundle
from vesalius.transforms.preprocess import Preprocess

GROUP = "mobile"
CLOSE = 1e-3
"""Largest difference of a probability from torch that a file may show before it is written."""
_WORDS = ("made_by", "inputs", "outputs")
"""What a contract says for people; the rest is what a program does around the graph."""


class Sized(Preprocess):
    """`Preprocess.forward` of images that have the size of the network already."""

    def _sized(self, x: Tensor) -> Tensor:
        return x


class Mirrored(nn.Module):
    """A network that sees its image mirrored along some axes, one after the other: LiteRT mirrors neighbours only.

    With `back` its answer is mirrored too.
    """

    def __init__(self, network: nn.Module, axes: tuple[int, ...], *, back: bool = False) -> None:
        super().__init__()
        self.network, self.axes, self.back = network, axes, back

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for axis in self.axes:
            x = x.flip(axis)
        logits: Tensor = self.network(x)
        for axis in self.axes if self.back else ():
            logits = logits.flip(axis)
        return logits


def _views_inside(graph: ClassifyGraph | TileGraph, *, volumes: bool, back: bool) -> None:
    """Let every view be a network of its own, and compute volumes plane by plane."""
    flat = [in_planes(network) if volumes else network for network in graph.networks]
    graph.networks = nn.ModuleList(Mirrored(network, view, back=back) for view in graph.views for network in flat)
    graph.views = [()]


class MobileGraph(nn.Module):
    """Values of the file at the size of the network, float32 ``(1, C, *size)``, to probabilities ``(1, K)``."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.whole = ClassifyGraph(bundle)
        self.whole.preprocess = Sized.from_spec({**bundle.preprocess, "spacing_mm": None})
        _views_inside(self.whole, volumes=bundle.preprocess["dims"] == 3, back=False)

    def forward(self, image: Tensor) -> Tensor:
        """Calibrated probabilities."""
        probabilities: Tensor = self.whole(image)[0]
        return probabilities


class MobileTiles(TileGraph):
    """`TileGraph` of one tile, in operators that the runtimes know."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        _views_inside(self, volumes=bundle.preprocess["dims"] == 3, back=True)


def mobile_contract(bundle: Bundle, runtime: str) -> dict[str, Any]:
    """The contract of a file for mobile devices, plain data (docs/export.md).

    Raises
    ------
    UsageError
        For bundles that are not exported to these runtimes.
    """
    if bundle.graphs:
        raise UsageError(f"export --to {runtime}: this model is quantised; export the run that it was made from")
    contract = contract_of(bundle)
    if bundle.task == "segment":
        one = {part: {name: text.replace("(B,", "(1,") for name, text in contract[part].items()} for part in _WORDS[1:]}
        return contract | {"runtime": runtime, **one}
    spec = Preprocess.from_spec(bundle.preprocess).spec
    size = ", ".join(map(str, spec["size"]))
    labels = bundle.labels
    decision: dict[str, Any] = {"kind": "largest"}
    if labels.multilabel:
        decision = {"kind": "each", "threshold": 0.5}
    elif bundle.threshold is not None and labels.binary:
        decision = {"kind": "positive", "threshold": bundle.threshold, "positive": int(labels.positive)}
    return contract | {
        "runtime": runtime,
        "resize": {key: spec[key] for key in ("crop", "threshold", "fit", "size")},
        "decision": decision,
        "inputs": {"image": f"float32 (1, {spec['channels']}, {size}), values of the file, resized as `resize` says"},
        "outputs": {"probabilities": "float32 (1, classes), calibrated"},
    }


def check_contract(path: Path, contract: dict[str, Any], bundle: Bundle) -> None:
    """Refuse a contract that prepares images or decides in another way than the bundle (AcceptanceError).

    Probabilities alone do not show a changed threshold or name of a class.
    """
    own = json.loads(json.dumps(mobile_contract(bundle, str(contract.get("runtime")))))
    differ = [key for key in own if key not in _WORDS and contract.get(key) != own[key]]
    if differ:
        raise AcceptanceError(f"{path}: its contract differs from the bundle in {', '.join(differ)}; export it again")


def write_litert(bundle: Bundle, path: str | Path) -> Path:
    """Convert through litert-torch, in float32; `path` ends with ``.tflite``.

    Raises
    ------
    UsageError
        For bundles that are not exported to this runtime.
    MissingExtra
        Without ``vesalius[mobile]``.
    AcceptanceError
        If the network cannot be converted; one line says why.
    """
    contract = mobile_contract(bundle, "litert")
    with _quiet():
        library: Any = extra("litert_torch", group=GROUP, purpose="export to LiteRT")
        library.config.show_progress = False

    def convert(graph: nn.Module, inputs: dict[str, Tensor]) -> bytes:
        found: bytes = library.convert(graph, sample_kwargs=inputs).model_content()
        return found

    return _written(bundle, Path(path), contract, {"": convert})


def write_executorch(bundle: Bundle, path: str | Path) -> Path:
    """Convert through torch's graph capture, computed by XNNPACK or, where that fails, by the portable operators.

    `path` ends with ``.pte``; errors are those of `write_litert`.
    """
    contract = mobile_contract(bundle, "executorch")
    with _quiet():
        exir: Any = extra("executorch.exir", group=GROUP, purpose="export to ExecuTorch")
        xnnpack: Any = extra(
            "executorch.backends.xnnpack.partition.xnnpack_partitioner", group=GROUP, purpose="export to ExecuTorch"
        )

    def convert(graph: nn.Module, inputs: dict[str, Tensor], partitioners: list[Any]) -> bytes:
        captured = torch.export.export(graph, tuple(inputs.values()))
        lowered = exir.to_edge_transform_and_lower(captured, partitioner=partitioners)
        return bytes(lowered.to_executorch().buffer)

    ways: dict[str, Callable[[nn.Module, dict[str, Tensor]], bytes]] = {
        "xnnpack": lambda graph, inputs: convert(graph, inputs, [xnnpack.XnnpackPartitioner()]),
        "portable": lambda graph, inputs: convert(graph, inputs, []),
    }
    return _written(bundle, Path(path), contract, ways)


def _written(bundle: Bundle, path: Path, contract: dict[str, Any], ways: dict[str, Any]) -> Path:
    """The first way of converting whose file loads and gives what torch gives on one image."""
    reasons = []
    for delegate, convert in ways.items():
        told: dict[str, Any] = contract | ({"delegate": delegate} if delegate else {})
        try:
            with _quiet(), torch.no_grad():
                made = MobileGraph if bundle.task == "classify" else MobileTiles
                graph, inputs = made(bundle).eval().requires_grad_(False), example(bundle)
                wanted = graph(*inputs.values())
                model = convert(graph, inputs)
                told["sha256"] = hashlib.sha256(model).hexdigest()
                data = with_contract(model, told)
                apart = _apart(data, path.suffix, inputs, wanted, logits=bundle.task == "segment")
        except Exception as error:  # each converter has its own kinds of errors
            reasons.append(" ".join(str(error).split())[:300] or type(error).__name__)
            continue
        if apart <= CLOSE:
            with atomic(path) as file:
                file.write(data)
            write_text(contract_beside(path), json.dumps(told))
            return path
        reasons.append(f"its probabilities differ from torch by {apart:.2g}")
    raise AcceptanceError(f"the network cannot be converted to {contract['runtime']}: {'; '.join(reasons)}")


def example(bundle: Bundle) -> dict[str, Tensor]:
    """One image of the size of the network, ``(1, C, *size)``, or one tile and how its values are scaled."""
    if bundle.task == "segment":
        given = examples(bundle)
        return {**given, "tiles": given["tiles"][:1]}
    shape = (1, int(bundle.preprocess["channels"]), *(int(side) for side in bundle.preprocess["size"]))
    return {"image": torch.linspace(0, 255, int(torch.Size(shape).numel())).reshape(shape)}


def with_contract(data: bytes, contract: dict[str, Any]) -> bytes:
    """A model with its contract in a zip archive behind it, where LiteRT keeps the files that belong to a model.

    The runtimes read from the front and do not see it. The archive has no date, so that the same model has the same
    bytes.
    """
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(zipfile.ZipInfo(mobile_runner.INSIDE), json.dumps(contract))
    return out.getvalue()


def _apart(data: bytes, suffix: str, inputs: dict[str, Tensor], wanted: Tensor, *, logits: bool) -> float:
    """Largest difference of the probabilities of a file from those of torch; NaN counts as infinite."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"model{suffix}"
        file.write_bytes(data)
        given = {name: value.numpy() for name, value in inputs.items()}
        found = torch.from_numpy(mobile_runner.opened(file)(given)[0].copy())
    apart = float((found.sigmoid() - wanted.sigmoid() if logits else found - wanted).abs().max())
    return float("inf") if math.isnan(apart) else apart


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters print, also from compiled code; the result of the command is on standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with open(os.devnull, "w", encoding="utf-8") as nothing:
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
            with warnings.catch_warnings(), redirect_stdout(nothing), redirect_stderr(nothing):
                warnings.simplefilter("ignore")
                yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        logging.disable(before)
