"""Networks that are ONNX graphs, put into the graph that was exported around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vesalius.core.errors import AcceptanceError
from vesalius.deploy.qdq import copied
from vesalius.predict.graph_network import PLACEHOLDER


def with_networks(model: Any, graphs: Sequence[bytes]) -> Any:
    """`model` with the nodes of the int8 graphs in place of their placeholders (`GraphNetwork.forward`).

    Nodes are renamed for every call, weights are shared by the calls of a network.

    Raises
    ------
    AcceptanceError
        If a network is called in no place, or was made for other operators than the graph around it.
    """
    import onnx

    networks = [onnx.load_from_string(graph) for graph in graphs]
    version = _version(model)
    nodes: list[Any] = []
    called: set[int] = set()
    for call, node in enumerate(model.graph.node):
        if (node.domain, node.op_type) != PLACEHOLDER:
            nodes.append(node)
            continue
        member = next(int(entry.i) for entry in node.attribute if entry.name == "member")
        if _version(networks[member]) != version:
            raise AcceptanceError(
                f"network {member} is an ONNX graph of operator set {_version(networks[member])}, this version writes "
                f"{version}; quantise the run again"
            )
        nodes += _called(networks[member].graph, node, member, call)
        called.add(member)
    if len(called) != len(networks):
        raise AcceptanceError("a network of the bundle is not in the exported graph; quantise the run again")
    kept = [copied(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for member, network in enumerate(networks):
        for tensor in network.graph.initializer:
            one = model.graph.initializer.add()
            one.CopyFrom(tensor)
            one.name = _stored(member, tensor.name)
    # Shapes of tensors inside the placeholders are not known here.
    del model.graph.value_info[:]
    for place, entry in reversed(list(enumerate(model.opset_import))):
        if entry.domain == PLACEHOLDER[0]:
            del model.opset_import[place]
    return model


def _called(graph: Any, node: Any, member: int, call: int) -> list[Any]:
    """The nodes of a network between the input and the output of one placeholder."""
    names = {tensor.name: _stored(member, tensor.name) for tensor in graph.initializer}
    names |= {graph.input[0].name: node.input[0], graph.output[0].name: node.output[0], "": ""}
    found = []
    for inner in graph.node:
        one = copied(inner)
        one.name = f"m{member}.{call}.{inner.name}"
        for field in (one.input, one.output):
            renamed = [names.setdefault(name, f"m{member}.{call}.{name}") for name in field]
            del field[:]
            field.extend(renamed)
        found.append(one)
    return found


def _stored(member: int, name: str) -> str:
    return f"m{member}.{name}"


def _version(model: Any) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
