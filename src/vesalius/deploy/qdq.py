"""Surgery on ONNX graphs that hold pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that take the time, and that int8 is for."""

# Their outputs lie within the range of their input, so that the scale of the input fits them too.
_CARRIERS = ("MaxPool", "Resize", "Transpose", "Reshape", "Flatten", "Slice", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class Layer:
    """A quantised layer.

    Parameters
    ----------
    node
        Name of its node, the same in the float graph.
    name
        Name of its module where the weights tell it, else that of the node.
    operations
        Multiplications of one input; 0 where the shapes do not tell.
    """

    node: str
    name: str
    operations: float = 0.0


def quantised_layers(model: Any, plain: Any, shapes: dict[str, tuple[int, ...]]) -> list[Layer]:
    """Layers of `model` that compute on 8-bit values, in the order of the graph.

    Parameters
    ----------
    plain
        The float graph that `model` was made from.
    shapes
        Of the tensors of `plain`, by name.
    """
    made = producers(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in plain.graph.initializer}
    original = {node.name: node for node in plain.graph.node}
    found: list[Layer] = []
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.name not in original:
            continue
        if not any(_is(made.get(name), "DequantizeLinear") for name in node.input[:2]):
            continue
        first = original[node.name]
        label = next((re.sub(r"\.weight$", "", name) for name in first.input[1:2] if name in weights), node.name)
        if any(layer.name == label for layer in found):
            label = f"{label} ({node.name})"
        found.append(Layer(node.name, label, _operations(first, weights, shapes)))
    return found


def _operations(node: Any, weights: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]) -> float:
    """Multiplications with an addition; of a transposed convolution every input value meets the whole kernel."""
    name = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
    places, kernel = shapes.get(name, ()), weights.get(node.input[1], ())
    if not places or not kernel:
        return 0.0
    if node.op_type in ("Conv", "ConvTranspose"):
        return float(np.prod(places[2:]) * np.prod(kernel))
    return float(np.prod(places[1:-1]) * np.prod(kernel))


def with_float(model: Any, plain: Any, keep: Iterable[str]) -> Any:
    """A copy of `model` in which the layers of the nodes `keep` compute in float32, as they do in `plain`.

    Values that no int8 layer takes, also not through sums and poolings, are not quantised any more.
    """
    float_nodes = set(keep)
    found, original = copied(model), {node.name: node for node in plain.graph.node}
    takers: dict[str, list[Any]] = {}
    for node in found.graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    known: dict[str, bool] = {}

    def needed(node: Any) -> bool:
        """Whether an int8 layer takes what the node makes, or is the node."""
        key = node.output[0]
        if key not in known:
            if node.op_type in WEIGHTED:
                known[key] = node.name not in float_nodes
            else:
                known[key] = any(needed(other) for name in node.output for other in takers.get(name, []))
        return known[key]

    changed = [node for node in found.graph.node if node.name in original and not needed(node)]
    stored = {tensor.name: tensor for tensor in found.graph.initializer}
    wanted: dict[str, Any] = {}
    renamed = {}
    for tensor in plain.graph.initializer:
        # Corrected biases keep their names: the float layer takes its own one.
        same = tensor.name in stored and stored[tensor.name].SerializeToString() == tensor.SerializeToString()
        renamed[tensor.name] = tensor.name if same or tensor.name not in stored else f"{tensor.name}.float32"
        wanted[tensor.name] = tensor
    for node in changed:
        names = [renamed.get(name, name) for name in original[node.name].input]
        for name, new in zip(original[node.name].input, names, strict=True):
            if name in wanted and new not in stored:
                tensor = found.graph.initializer.add()
                tensor.CopyFrom(wanted[name])
                tensor.name = new
                stored[new] = tensor
        del node.input[:]
        node.input.extend(names)
    return trimmed(found)


def joined(model: Any) -> Any:
    """A copy of `model` whose concatenations join 8-bit values where all of them have one scale.

    Which is exact. OpenVINO 2026.4 computes a convolution wrongly whose input is a concatenation of values that were
    dequantised one by one, but rightly what this writes instead.
    """
    found = copied(model)
    made, stored = producers(found), {tensor.name: tensor for tensor in found.graph.initializer}
    nodes: list[Any] = []
    for node in found.graph.node:
        sources: list[Any] = [_source(name, made) for name in node.input] if node.op_type == "Concat" else []
        if None in sources or len({_grid(one, stored) for one in sources}) != 1:
            nodes.append(node)
            continue
        scale, zero = sources[0].input[1], sources[0].input[2]
        eights = []
        for place, name in enumerate(node.input):
            if _is(made.get(name), "DequantizeLinear"):
                eights.append(made[name].input[0])
                continue
            # Already on the grid of that scale, or between its ends.
            nodes.append(_node("QuantizeLinear", f"{node.name}_q{place}", [name, scale, zero], f"{name}_q_{node.name}"))
            eights.append(nodes[-1].output[0])
        output = node.output[0]
        join = copied(node)
        del join.input[:]
        join.input.extend(eights)
        join.output[0] = f"{output}_q"
        back = _node("DequantizeLinear", f"{node.name}_dq", [f"{output}_q", scale, zero], output)
        made[output] = back
        nodes += [join, back]
    kept = [copied(node) for node in nodes]
    del found.graph.node[:]
    found.graph.node.extend(kept)
    return trimmed(found)


def _grid(node: Any, stored: dict[str, Any]) -> tuple[Any, ...]:
    """Type and values of scale and zero point."""
    values = [_values(stored[name]) if name in stored else np.array(name) for name in node.input[1:3]]
    return tuple((value.dtype.str, value.tobytes()) for value in values)


def _source(name: str, made: dict[str, Any]) -> Any:
    """The DequantizeLinear whose scale a tensor still has; None if there is none."""
    node = made.get(name)
    while node is not None and node.op_type in _CARRIERS:
        node = made.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear" or len(node.input) != 3:
        return None
    return node


def trimmed(model: Any) -> Any:
    """`model` without nodes and initialisers that its outputs do not need."""
    alive = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if alive & set(node.output):
            kept.append(copied(node))
            alive |= set(node.input)
    stored = [copied(tensor) for tensor in model.graph.initializer if tensor.name in alive]
    for field, items in ((model.graph.node, kept[::-1]), (model.graph.initializer, stored)):
        del field[:]
        field.extend(items)
    # Shapes of tensors that are no more; every runtime finds them itself.
    del model.graph.value_info[:]
    return model


def producers(model: Any) -> dict[str, Any]:
    """The node that makes a tensor, by name of the tensor."""
    return {name: node for node in model.graph.node for name in node.output}


def _is(node: Any, kind: str) -> bool:
    return node is not None and node.op_type == kind


def copied(message: Any) -> Any:
    """A copy of a message of ONNX."""
    found = type(message)()
    found.CopyFrom(message)
    return found


def _node(kind: str, name: str, inputs: list[str], output: str) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, [output], name=name)


def _values(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)
