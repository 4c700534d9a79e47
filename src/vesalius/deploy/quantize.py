"""Int8 after training: weights and activations in eight bits, except where that disturbs the answer.

Ranges of activations are those of calibration inputs, weights have one scale per output channel, and biases are
corrected for the mean error (NNCF; Nagel et al., "Data-free quantization through weight equalization and bias
correction", ICCV 2019). Then the layers are tried one by one: how far do the logits move if only this layer is int8?
The most sensitive stay in float32, until the whole network deviates by no more than is allowed.
"""

from __future__ import annotations

import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vesalius.core.errors import AcceptanceError, MissingExtra, UsageError
from vesalius.core.extras import extra
from vesalius.core.progress import Progress, Silent
from vesalius.deploy.onnx_out import captured_network
from vesalius.deploy.qdq import Layer, joined, quantised_layers, with_float
from vesalius.models.segmenters import fold_batchnorm
from vesalius.predict.backends import import_openvino, without_telemetry
from vesalius.predict.bundle import Bundle
from vesalius.predict.graph_network import GraphNetwork

Arrays = Sequence[NDArray[np.float32]]

MOST_FLOAT = 0.15
"""Largest part of the multiplications that stays in float32: beyond it a network is hardly faster than before."""

# Layers with a smaller part of the multiplications are not quantised: it would gain nothing.
_NOTHING = 1e-3
# More layers than this are tried in groups of neighbours.
_TRIALS = 32
# Values of all inputs together by which layers are tried, and how many inputs at least and at most.
_VALUES, _FEWEST, _MOST = 2_000_000, 2, 64
# Batches in which images are computed.
_BATCH = 32
# ONNX Runtime may be this much further from the float network than OpenVINO, of the allowed deviation.
_APART = 3.0


@dataclass(frozen=True)
class Quantized:
    """What `quantize` made.

    Parameters
    ----------
    bundle
        The int8 bundle.
    kept
        Layers that compute in float32, the most sensitive first; of ensembles ``MEMBER.LAYER``.
    sensitivity
        Deviation of the logits if this layer (or group, named ``FIRST...LAST``) alone is int8; empty where the whole
        network deviates by no more than is allowed.
    deviation
        Root mean square difference of the logits over their spread: of all layers in int8, and with `kept` in float.
    """

    bundle: Bundle
    kept: tuple[str, ...] = ()
    sensitivity: dict[str, float] = field(default_factory=dict)
    deviation: tuple[float, float] = (0.0, 0.0)


def quantize(
    bundle: Bundle,
    calibration: Arrays,
    validation: Arrays | None = None,
    tolerance: float = 0.05,
    progress: Progress | None = None,
) -> Quantized:
    """An int8 bundle of a float32 bundle.

    Parameters
    ----------
    calibration
        Network inputs ``(B, C, *S)`` after preprocessing, of training cases.
    validation
        The same of other cases, by which layers are chosen; without them the calibration inputs serve.
    tolerance
        Largest deviation of the logits, of their spread. More of it is left if `MOST_FLOAT` of the multiplications
        would not be enough; `progress` gets a warning then.

    Raises
    ------
    UsageError
        If the bundle is not in float32, or inputs are missing or of another shape.
    MissingExtra
        Without ``vesalius[quantize]``.
    AcceptanceError
        If the network cannot be captured or quantised, or the libraries disagree about the result.
    """
    progress = progress or Silent()
    if bundle.arithmetic != "float32":
        raise UsageError(f"this bundle is {bundle.arithmetic} already; quantise the float32 bundle it was made from")
    known = _checked(bundle, calibration, "calibration")
    judged = _checked(bundle, validation, "validation") if validation is not None and len(validation) else known
    _libraries()
    made = [
        _Member(network, bundle, known, judged, tolerance, progress).quantise(number)
        for number, network in enumerate(bundle.networks())
    ]
    several = len(made) > 1
    small = replace(
        bundle,
        members=[],
        graphs=[one.graph for one in made],
        arithmetic="int8",
        inference=_inference(bundle),
        facts=dict(bundle.facts),
        checksum="",
    )
    return Quantized(
        small,
        tuple(f"{number}.{name}" if several else name for number, one in enumerate(made) for name in one.kept),
        {
            f"{number}.{name}" if several else name: value
            for number, one in enumerate(made)
            for name, value in one.sensitivity.items()
        },
        (_together([one.deviation[0] for one in made]), _together([one.deviation[1] for one in made])),
    )


def _inference(bundle: Bundle) -> dict[str, Any]:
    """Tiles are computed by what computes int8 fastest here; the layers between in float32."""
    found = copy.deepcopy(bundle.inference)
    return found | {"backend": "auto", "precision": "fp32"} if found else found


def _together(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _checked(bundle: Bundle, inputs: Arrays, what: str) -> list[NDArray[np.float32]]:
    """Inputs one by one, ``(1, C, *S)``."""
    sides = bundle.inference["tile"]["patch"] if bundle.task == "segment" else bundle.preprocess["size"]
    wanted = (int(bundle.preprocess["channels"]), *(int(side) for side in sides))
    found = []
    for one in inputs:
        value = np.ascontiguousarray(one, dtype=np.float32)
        if value.shape[1:] != wanted or not np.isfinite(value).all():
            shown = ", ".join(map(str, wanted))
            state = f"shape {value.shape}" if value.shape[1:] != wanted else "values that are not finite"
            raise UsageError(f"{what} inputs must be finite, of shape (B, {shown}), one has {state}")
        found += [value[k : k + 1] for k in range(len(value))]
    if not found:
        raise UsageError(f"int8 needs {what} inputs; give at least one")
    return found


# ---------------------------------------------------------------------------------------------------------- one network


@dataclass(frozen=True)
class _Made:
    graph: bytes
    kept: tuple[str, ...]
    sensitivity: dict[str, float]
    deviation: tuple[float, float]


class _Member:
    """One network of the bundle on its way to int8."""

    def __init__(
        self,
        network: nn.Module,
        bundle: Bundle,
        calibration: list[NDArray[np.float32]],
        validation: list[NDArray[np.float32]],
        tolerance: float,
        progress: Progress,
    ) -> None:
        self.dense, self.outputs = bundle.task == "segment", 0
        self.calibration, self.validation = calibration, validation
        self.tolerance, self.progress = tolerance, progress
        self.network = fold_batchnorm(network).eval().requires_grad_(False)
        self.plain = captured_network(self.network, torch.from_numpy(calibration[0]))

    def quantise(self, number: int) -> _Made:
        """Quantise, measure, keep in float what must be kept."""
        self.progress.say(f"quantising network {number + 1}")
        self.model = _quantised(self.plain, self.calibration)
        with torch.no_grad():
            expected = [self.network(torch.from_numpy(x)).numpy() for x in self._batches(self.validation)]
        self.outputs = expected[0].shape[1]
        self.expected, self.inputs = expected, self._batches(self.validation)
        layers = self._worthwhile()
        before = self._deviation(())
        sensitivity: dict[str, float] = {}
        kept: list[Layer] = []
        after = before
        if not before <= self.tolerance:
            order, sensitivity = self._sensitivity(layers)
            kept, after = self._chosen(_worth_keeping(order, sensitivity), before)
        graph = self._graph(kept)
        self._confirmed(graph, after)
        return _Made(graph, tuple(layer.name for layer in kept), sensitivity, (before, after))

    def _worthwhile(self) -> list[Layer]:
        """The layers that are int8 in `model`, after the others were put back to float32 there."""
        layers = quantised_layers(self.model, self.plain, _shapes(self.plain, self.calibration[0]))
        whole = sum(layer.operations for layer in layers)
        idle = [layer for layer in layers if layer.operations < _NOTHING * whole]
        if len(layers) == len(idle):
            raise AcceptanceError("no layer of this network can be quantised; int8 would gain nothing")
        self.model = with_float(self.model, self.plain, [layer.node for layer in idle])
        return [layer for layer in layers if layer not in idle]

    def _graph(self, kept: Sequence[Layer]) -> bytes:
        model = with_float(self.model, self.plain, [layer.node for layer in kept])
        return bytes(joined(model).SerializeToString())

    def _batches(self, inputs: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Images in batches; tiles alone, as they are predicted."""
        size = 1 if self.dense else _BATCH
        return [np.concatenate(inputs[k : k + size]) for k in range(0, len(inputs), size)]

    def _deviation(self, kept: Sequence[Layer], count: int | None = None, runtime: str = "auto") -> float:
        """Of the network with the layers `kept` in float32, on the first `count` batches of validation."""
        network = GraphNetwork(self._graph(kept), outputs=self.outputs, dense=self.dense, runtime=runtime)
        return self._apart(network, count)

    def _apart(self, network: GraphNetwork, count: int | None = None) -> float:
        expected = self.expected[:count]
        errors = [
            float(np.square(network.compute(x) - y, dtype=np.float64).mean())
            for x, y in zip(self.inputs[:count], expected, strict=True)
        ]
        weights = [y.size for y in expected]
        spread = float(np.concatenate([y.ravel() for y in expected]).std(dtype=np.float64))
        return float(np.sqrt(np.average(errors, weights=weights))) / max(spread, 1e-12)

    def _sensitivity(self, layers: list[Layer]) -> tuple[list[list[Layer]], dict[str, float]]:
        """Groups of layers, the most sensitive first, and the deviation that each alone causes."""
        step = -(-len(layers) // _TRIALS)
        groups = [layers[k : k + step] for k in range(0, len(layers), step)]
        one = int(self.inputs[0].size)
        count = max(1, min(len(self.inputs), max(_FEWEST, min(_MOST, _VALUES // one))))
        self.progress.start("sensitivity", len(groups), "layers" if step == 1 else "groups of layers")
        found: dict[str, float] = {}
        alone = []
        for group in groups:
            others = [layer for layer in layers if layer not in group]
            alone.append(self._deviation(others, count))
            found[_label(group)] = alone[-1]
            self.progress.advance(note=_label(group))
        self.progress.stop()
        order = sorted(range(len(groups)), key=lambda place: -alone[place])
        return [groups[place] for place in order], found

    def _chosen(self, kept: list[list[Layer]], before: float) -> tuple[list[Layer], float]:
        """The first of the layers `kept` that bring the deviation down to the tolerance, and what it is then."""
        tried = {0: before}

        def deviation(count: int) -> float:
            if count not in tried:
                tried[count] = self._deviation([layer for group in kept[:count] for layer in group])
            return tried[count]

        low, high = 0, len(kept)
        if not deviation(high) <= self.tolerance:
            self.progress.warn(
                f"the int8 logits deviate by {deviation(high):.2g} of their spread, {self.tolerance:g} is wanted: "
                f"no more than {MOST_FLOAT:.0%} of the multiplications stay in float32; look at the accuracy"
            )
            # Layers that do not help stay int8.
            high = min(tried, key=lambda count: tried[count])
            return [layer for group in kept[:high] for layer in group], tried[high]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if deviation(middle) <= self.tolerance else (middle, high)
        return [layer for group in kept[:high] for layer in group], deviation(high)

    def _confirmed(self, graph: bytes, deviation: float) -> None:
        """ONNX Runtime agrees with the library that the layers were chosen with.

        Raises
        ------
        AcceptanceError
            If the deviation by it is much larger: one of the two computes the graph wrongly.
        """
        network = GraphNetwork(graph, outputs=self.outputs, dense=self.dense, runtime="onnxruntime")
        other = self._apart(network, 2)
        if not other <= _APART * max(deviation, self.tolerance):
            raise AcceptanceError(
                f"the int8 network deviates by {other:.2g} of its spread in ONNX Runtime, but by {deviation:.2g} in "
                "OpenVINO; it is not used: keep the float32 bundle"
            )


def _worth_keeping(order: list[list[Layer]], sensitivity: dict[str, float]) -> list[list[Layer]]:
    """Those of `order` that disturb more than their part of the work, together at most `MOST_FLOAT` of it.

    A layer that does most of the harm is kept whatever it costs: the network would be useless.
    """
    work = sum(layer.operations for group in order for layer in group) or 1.0
    harm = sum(value**2 for value in sensitivity.values())
    kept: list[list[Layer]] = []
    spent = 0.0
    for group in order:
        part = sum(layer.operations for layer in group) / work
        blame = sensitivity[_label(group)] ** 2 / max(harm, 1e-30)
        if blame > max(part, 0.5) or (spent + part <= MOST_FLOAT and blame > part):
            kept.append(group)
            spent += part
    return kept


def _label(group: Sequence[Layer]) -> str:
    return group[0].name if len(group) == 1 else f"{group[0].name}...{group[-1].name}"


# ----------------------------------------------------------------------------------------------------------- libraries


def _quantised(plain: Any, calibration: list[NDArray[np.float32]]) -> Any:
    """The model with pairs of QuantizeLinear and DequantizeLinear before its layers, and weights in int8."""
    library = _libraries()
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # The whole range over all inputs. The mean of their ranges, which is usual, cuts off what is high in a few cases,
    # and those are often the ones with a finding: it deviated three times as far on a classifier of chest films.
    ranges = library.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
    )
    name = plain.graph.input[0].name
    model = type(plain)()
    model.CopyFrom(plain)
    attention = any(node.op_type in ("LayerNormalization", "Softmax") for node in plain.graph.node)
    try:
        with _silent(library):
            return library.quantize(
                model,
                library.Dataset(calibration, lambda value: {name: value}),
                # Symmetric ranges: a U-Net takes half of the time of asymmetric ones, and deviates hardly more.
                preset=library.QuantizationPreset.PERFORMANCE,
                subset_size=len(calibration),
                model_type=library.ModelType.TRANSFORMER if attention else None,
                advanced_parameters=ranges,
            )
    except Exception as error:  # the library has its own kinds of errors
        raise AcceptanceError(f"the network cannot be quantised: {' '.join(str(error).split())[:300]}") from error


def _libraries() -> Any:
    """NNCF without its telemetry and its lines on the screen; what it quantises with must be there as well.

    Raises
    ------
    MissingExtra
        One line with the command to type.
    """
    purpose = "quantising to int8"
    for name in ("onnx", "onnxscript", "onnxruntime"):
        extra(name, group="quantize", purpose=purpose)
    with suppress(MissingExtra):  # ONNX Runtime computes without it
        import_openvino()
    if "nncf" in sys.modules:
        return sys.modules["nncf"]
    kind = logging.getLoggerClass()
    try:
        with without_telemetry():
            return extra("nncf", group="quantize", purpose=purpose)
    finally:
        logging.setLoggerClass(kind)  # which nncf changes for the whole program


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Without log lines and progress bars, which would go to standard output."""
    level = library.nncf_logger.level
    library.set_log_level(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.set_log_level(level)


def _shapes(model: Any, example: NDArray[np.float32]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of one input, as far as they follow from the graph."""
    import onnx

    fixed = type(model)()
    fixed.CopyFrom(model)
    for place, side in enumerate(example.shape):
        fixed.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    return {
        value.name: tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
