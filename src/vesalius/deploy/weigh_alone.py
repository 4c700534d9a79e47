"""Time and memory of one graph in a process of its own: ``python -m vesalius.deploy.weigh_alone GRAPH OUT SHAPE...``.

A fresh process holds nothing else, so that its memory is that of the runtime with this network. Batch norm is folded
and layers are fused by the runtime itself.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vesalius.core.environment import available_cores, forget_peak_memory, peak_memory, resident_memory
from vesalius.core.errors import MissingExtra
from vesalius.core.extras import extra
from vesalius.core.files import write_json
from vesalius.predict.backends import import_openvino

# Enough runs for a median, within a few seconds.
_FEWEST, _MOST, _SECONDS = 7, 200, 4.0


def main(arguments: list[str]) -> None:
    """Write ``runtime``, ``ms`` (median of one pass) and ``memory_bytes`` of the graph to a file as JSON."""
    graph, out, *shape = arguments
    x = np.random.default_rng(0).normal(size=[int(side) for side in shape]).astype(np.float32)
    name, load = _runtime()
    before = resident_memory()
    call = load(graph, x)
    call()
    forget_peak_memory()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() - begin < _SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    found = {
        "runtime": name,
        "ms": float(np.median(times)) * 1e3,
        "passes": len(times),
        "memory_bytes": max(peak_memory() - before, 0),
    }
    write_json(Path(out), found)


def _runtime() -> tuple[str, Any]:
    try:
        return "openvino", _openvino(import_openvino())
    except MissingExtra:
        return "onnxruntime", _onnxruntime(extra("onnxruntime", group="onnx", purpose="measuring a network"))


def _openvino(library: Any) -> Any:
    def load(graph: str, x: Any) -> Any:
        core = library.Core()
        model = core.read_model(graph)
        model.reshape(list(x.shape))
        # What is not int8 is computed in float32, as by a bundle.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        return lambda: request.infer([x], share_inputs=True)

    return load


def _onnxruntime(library: Any) -> Any:
    def load(graph: str, x: Any) -> Any:
        settings = library.SessionOptions()
        settings.intra_op_num_threads = available_cores()
        settings.log_severity_level = 3
        session = library.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: x})

    return load


if __name__ == "__main__":
    main(sys.argv[1:])
