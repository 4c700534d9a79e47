"""What a bundle costs: learned values, size, operations, time and memory of one pass, measured on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vesalius.core.errors import ResourceError
from vesalius.deploy.onnx_out import captured_network
from vesalius.deploy.prune import example_input, operations
from vesalius.models.segmenters import fold_batchnorm
from vesalius.predict.bundle import Bundle, learned_values

_BATCH = 32


def weigh(bundle: Bundle, folder: Path, *, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """Costs of a bundle that lies in `folder`.

    Parameters
    ----------
    like
        Costs of the float32 bundle that this one was quantised from: its learned values and operations are the same.

    Returns
    -------
    costs
        ``parameters``, ``bytes`` of the weights, ``operations`` (multiplications of one input), ``latency_ms`` and
        ``memory_bytes`` of one input (an image, or one tile), of classification ``batch_ms`` per image in batches of
        32, and the ``runtime`` (OpenVINO, or ONNX Runtime where that is not installed; float32 or int8).
        All networks and mirrored views count.
    """
    example = example_input(bundle)
    passes = len(bundle.views) or 1
    shape = list(example.shape)
    with TemporaryDirectory() as place:
        graphs = _graphs(bundle, example, Path(place))
        one = [_alone(graph, shape) for graph in graphs]
        many = [_alone(graph, [_BATCH, *shape[1:]]) for graph in graphs] if bundle.task == "classify" else []
    costs: dict[str, Any] = {
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".onnx")),
        "latency_ms": passes * sum(found["ms"] for found in one),
        "memory_bytes": max(found["memory_bytes"] for found in one),
        "runtime": one[0]["runtime"],
        "batch_ms": passes * sum(found["ms"] for found in many) / _BATCH if many else None,
    }
    if like is not None:
        return costs | {name: like[name] for name in ("parameters", "operations")}
    return costs | {
        "parameters": learned_values(bundle.members),
        "operations": passes * sum(operations(network, example) for network in bundle.networks()),
    }


def _graphs(bundle: Bundle, example: torch.Tensor, place: Path) -> list[Path]:
    """One ONNX file per network."""
    graphs = bundle.graphs or [
        captured_network(fold_batchnorm(network).eval(), example, free=bundle.task == "classify").SerializeToString()
        for network in bundle.networks()
    ]
    found = []
    for number, graph in enumerate(graphs):
        found.append(place / f"member-{number}.onnx")
        found[-1].write_bytes(graph)
    return found


def _alone(graph: Path, shape: list[int]) -> dict[str, Any]:
    out = graph.with_suffix(".json")
    command = [sys.executable, "-m", "vesalius.deploy.weigh_alone", str(graph), str(out), *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ResourceError(f"the network could not be measured in a process of its own: {reason}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found
