"""A bundle as one ONNX file, with its contract inside."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vesalius.core.errors import AcceptanceError
from vesalius.core.extras import extra
from vesalius.core.files import atomic
from vesalius.deploy.contract import KEY, contract_of
from vesalius.deploy.graphs import examples, graph_of
from vesalius.deploy.inline import with_networks
from vesalius.predict.bundle import Bundle

OPSET = 18


def write_onnx(bundle: Bundle, path: str | Path) -> Path:
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
    purpose = "export to ONNX"
    onnx: Any = extra("onnx", group="onnx", purpose=purpose)
    extra("onnxscript", group="onnx", purpose=purpose)
    contract, graph, given = contract_of(bundle), graph_of(bundle), examples(bundle)
    try:
        with warnings.catch_warnings(), _quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                graph,
                tuple(given.values()),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(given),
                output_names=list(contract["outputs"]),
                dynamic_shapes=_free(bundle),
            )
    except Exception as error:  # the exporter has its own kinds of errors
        raise AcceptanceError(
            f"the network cannot be exported to ONNX: {' '.join(str(error).split())[:300]}"
        ) from error
    model = without_origin(program.model_proto)
    if bundle.graphs:
        model = with_networks(model, bundle.graphs)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(contract)
    onnx.checker.check_model(model)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(model.SerializeToString())
    return path


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
