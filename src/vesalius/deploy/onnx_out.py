"""A bundle as one ONNX file, with its contract inside."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vesalius.core.errors import AcceptanceError
from vesalius.core.extras import extra
from vesalius.core.files import atomic
from vesalius.deploy.contract import KEY, SEAL_KEY, contract_of
from vesalius.deploy.graphs import examples, graph_of
from vesalius.deploy.inline import with_networks
from vesalius.deploy.seal import BLANK, sealed
from vesalius.predict.bundle import Bundle

OPSET = 18
PURPOSE = "export to ONNX"


def write_onnx(bundle: Bundle, path: str | Path) -> Path:
    """Write the model with its contract and its seal (`deploy.seal`); errors: see `onnx_model`."""
    contract = contract_of(bundle)
    model = onnx_model(bundle, contract)
    for key, value in ((KEY, json.dumps(contract)), (SEAL_KEY, BLANK)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(sealed(model.SerializeToString()))
    return path


def onnx_model(bundle: Bundle, contract: Mapping[str, Any]) -> Any:
    """Export through torch's graph capture; the batch, and of a classifier the sides of the image, stay free.

    Raises
    ------
    UsageError
        For what cannot be exported yet.
    MissingExtra
        Without ``vesalius[onnx]``.
    AcceptanceError
        If the network cannot be captured; one line says why.
    """
    given = examples(bundle)
    model = captured(
        graph_of(bundle), tuple(given.values()), inputs=given, outputs=contract["outputs"], free=_free(bundle)
    )
    if bundle.graphs:
        model = with_networks(model, bundle.graphs)
    extra("onnx", group="onnx", purpose=PURPOSE).checker.check_model(model)
    return model


def captured(
    network: nn.Module, given: tuple[Any, ...], *, inputs: Iterable[str], outputs: Iterable[str], free: tuple[Any, ...]
) -> Any:
    """A network as an ONNX model, through torch's graph capture.

    Parameters
    ----------
    given
        One value for each of `inputs`. Axes that stay free are longer than 1 there: 1 would be taken for a constant.
    free
        For each input the axes that may have any length, ``{axis: torch.export.Dim.DYNAMIC}``, or None.

    Raises
    ------
    MissingExtra
        Without ``vesalius[onnx]``.
    AcceptanceError
        If the network cannot be captured; one line says why.
    """
    extra("onnx", group="onnx", purpose=PURPOSE)
    extra("onnxscript", group="onnx", purpose=PURPOSE)
    try:
        with warnings.catch_warnings(), _quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                network,
                given,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=free,
            )
    except Exception as error:  # the exporter has its own kinds of errors
        reason = " ".join(str(error).split())[:300]
        raise AcceptanceError(f"the network cannot be exported to ONNX: {reason}") from error
    return without_origin(program.model_proto)


def captured_network(network: nn.Module, example: torch.Tensor, *, free: bool = True) -> Any:
    """One network by itself, input ``x`` ``(B, C, *S)`` like the example, output ``logits``; `free`: with any B."""
    given = torch.cat([example, example]) if free else example
    axes = ({0: torch.export.Dim.DYNAMIC} if free else None,)
    return captured(network.requires_grad_(False), (given,), inputs=["x"], outputs=["logits"], free=axes)


def without_origin(model: Any) -> Any:
    """Takes out where in the code each node comes from: those lines hold the folders of this machine."""
    for part in (model.graph, *model.functions):
        for node in (part, *part.node):
            del node.metadata_props[:]
            node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's lines about libraries that are not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _free(bundle: Bundle) -> tuple[Any, ...]:
    """Which axes may have any length, in the order of the inputs."""
    batch = torch.export.Dim.DYNAMIC
    if bundle.task == "classify":
        sides = range(2, 2 + int(bundle.preprocess["dims"]))
        return ({0: batch, **dict.fromkeys(sides, torch.export.Dim.DYNAMIC)},)
    return ({0: batch}, None, None)
