"""A network that is an ONNX graph, such as an int8 one, behind the interface of any other network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vesalius.core.environment import available_cores
from vesalius.core.errors import MissingExtra
from vesalius.core.extras import extra

PLACEHOLDER = ("vesalius", "Network")
"""Domain and operator that stand for such a network in an exported graph until `deploy.inline` puts its nodes there."""

# Shapes that stay compiled: single cases, a full batch, and the last batch of a list.
_SHAPES = 4


class GraphNetwork(nn.Module):
    """Computes ``(B, C, *S)`` float32 on the CPU, whatever device the tensor is on; it has no parameters.

    Parameters
    ----------
    graph
        A serialised ONNX model with one input ``(B, C, *S)`` and one output, the logits.
    outputs
        Channels of the logits.
    dense
        Whether the logits are ``(B, K, *S)``, else ``(B, K)``.
    number
        Place among the members of an ensemble.
    runtime
        ``"openvino"``, ``"onnxruntime"``, or ``"auto"`` for the first of them that is installed.
    """

    def __init__(self, graph: bytes, *, outputs: int, dense: bool, number: int = 0, runtime: str = "auto") -> None:
        super().__init__()
        self.graph, self.outputs, self.dense = graph, outputs, dense
        self.number, self.runtime = number, runtime
        self._ready: dict[tuple[int, ...], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphNetwork:
        """The same graph; what a runtime compiled cannot be copied and is made again when needed."""
        made = GraphNetwork(
            self.graph, outputs=self.outputs, dense=self.dense, number=self.number, runtime=self.runtime
        )
        return made.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; while a graph around it is exported, a placeholder with their shape.

        Raises
        ------
        MissingExtra
            If neither OpenVINO nor ONNX Runtime is installed.
        """
        if torch.onnx.is_in_onnx_export():
            sides = x.shape[2:] if self.dense else ()
            shape = [x.shape[0], self.outputs, *sides]
            what: Any = {"member": self.number}
            return torch.onnx.ops.symbolic("::".join(PLACEHOLDER), (x,), what, dtype=x.dtype, shape=shape, version=1)
        values = x.detach().to("cpu", torch.float32).contiguous().numpy()
        return torch.from_numpy(self.compute(values)).to(x.device)

    def compute(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of an array."""
        if values.shape not in self._ready:
            if len(self._ready) >= _SHAPES:
                del self._ready[next(iter(self._ready))]
            self._ready[values.shape] = self._compiled(values.shape)
        found: NDArray[np.float32] = self._ready[values.shape](values)
        return found

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        if self.runtime != "onnxruntime":
            try:
                return _openvino(self.graph, shape)
            except MissingExtra:
                if self.runtime == "openvino":
                    raise
        return _onnxruntime(self.graph)


def _openvino(graph: bytes, shape: tuple[int, ...]) -> Any:
    """Compiled for one shape, which is faster than for any; what is not int8 is computed in float32."""
    from vesalius.predict.backends import import_openvino, openvino_hints  # which imports this file

    core = import_openvino().Core()
    model = core.read_model(graph)
    model.reshape(list(shape))
    request = core.compile_model(model, "CPU", openvino_hints("fp32", streams=1)).create_infer_request()

    def call(values: NDArray[np.float32]) -> NDArray[np.float32]:
        request.infer([values], share_inputs=True)
        return np.array(request.get_output_tensor(0).data, dtype=np.float32)

    return call


def _onnxruntime(graph: bytes) -> Any:
    session = onnx_session(graph)
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})[0]


def onnx_session(graph: bytes) -> Any:
    """ONNX Runtime with the cores that we may use, without its remarks."""
    runtime: Any = extra("onnxruntime", group="onnx", purpose="computing with ONNX Runtime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = available_cores()
    settings.log_severity_level = 3
    return runtime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
