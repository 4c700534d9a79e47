"""Structured pruning: whole channels are taken out, so that what is left is a smaller dense network.

Which channels belong together (a shortcut adds them, a skip concatenates them) is found by following the graph
(Fang et al., "DepGraph: Towards any structural pruning", CVPR 2023; the library Torch-Pruning). Channels go by the
size of all weights that carry them, in every layer the same part of them: latency falls with the widths of the layers,
and ranking all layers together would take channels where there are many, not where time is spent.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.core.errors import UsageError
from vesalius.core.extras import extra
from vesalius.models.blocks import NORM, InstanceNorm
from vesalius.models.widths import narrowed, shapes_of, widths_of
from vesalius.predict.bundle import Bundle

# Widths that processors compute without a remainder; narrow networks take a smaller step.
_STEP, _NARROW = 8, 32
_TRIES = 8


@dataclass(frozen=True)
class Pruned:
    """A network with fewer channels.

    Parameters
    ----------
    weights
        Its state dict.
    widths
        For ``model.widths`` of a plan.
    operations
        Multiplications of one input before and after.
    """

    weights: dict[str, Tensor]
    widths: dict[str, list[int]]
    operations: tuple[float, float]


def prune(bundle: Bundle, *, keep: float) -> Pruned:
    """The first network of a bundle with about the part `keep` of its operations.

    Raises
    ------
    UsageError
        If `keep` is not between 0 and 1, or the network cannot be made that small.
    MissingExtra
        Without ``vesalius[prune]``.
    """
    if not 0 < keep < 1:
        raise UsageError(f"--keep {keep:g}: pruning keeps a part of the operations between 0 and 1, for example 0.5")
    network = bundle.networks()[0]
    example = example_input(bundle)
    whole = operations(network, example)
    low, high, best = 0.0, 0.97, None
    for _ in range(_TRIES):
        ratio = (low + high) / 2
        tried = _without(network, example, ratio)
        part = operations(tried, example) / whole
        if part <= keep:
            best, high = tried, ratio
        else:
            low = ratio
    if best is None:
        raise UsageError(f"--keep {keep:g}: this network cannot be made that small by pruning; choose a larger part")
    weights = {name: value.detach().clone() for name, value in best.state_dict().items()}
    return Pruned(weights, widths_of(best, network), (whole, operations(best, example)))


def example_input(bundle: Bundle) -> Tensor:
    """Noise of the size of one input, ``(1, C, *S)``: an image, or one tile."""
    sides = bundle.inference["tile"]["patch"] if bundle.task == "segment" else bundle.preprocess["size"]
    shape = (1, int(bundle.preprocess["channels"]), *(int(side) for side in sides))
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def operations(network: nn.Module, example: Tensor) -> float:
    """Multiplications with an addition that one forward pass of `example` takes."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    return counter.get_total_flops() / 2


def _without(network: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    """A copy of the network without the part `ratio` of the channels of every layer."""
    library: Any = extra("torch_pruning", group="prune", purpose="structured pruning")
    small, plain = copy.deepcopy(network), _traceable(network)
    two = example.expand(2, *example.shape[1:])
    width = min(shape[0] for shape in shapes_of(plain).values() if len(shape) > 2)
    pruner = library.pruner.BasePruner(
        plain,
        two,
        importance=library.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=_last_layers(plain, two),
        round_to=_STEP if width >= _NARROW else max(1, _STEP // 4),
        forward_fn=_all_outputs,
        root_module_types=[nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner.step()
    narrowed(small, widths_of(plain, small))
    kept = plain.state_dict()
    small.load_state_dict({name: kept[name] for name in small.state_dict()})
    return small.eval()


def _all_outputs(network: nn.Module, x: Tensor) -> Any:
    """What the network says while it is trained: also the outputs of deep supervision."""
    return network.train()(x)


def _traceable(network: nn.Module) -> nn.Module:
    """A copy whose instance norms are batch norms: their channels depend on each other in the same way."""
    made = copy.deepcopy(network)
    dims = 3 if any(isinstance(part, nn.Conv3d) for part in made.modules()) else 2
    for name, part in list(made.named_modules()):
        if isinstance(part, InstanceNorm):
            norm = NORM[dims](part.features)
            norm.weight, norm.bias = part.weight, part.bias
            above, _, last = name.rpartition(".")
            setattr(made.get_submodule(above), last, norm)
    for part in made.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
            part.momentum = 0.0  # looking at the graph in training mode must not move the statistics
    return made


def _last_layers(network: nn.Module, example: Tensor) -> list[nn.Module]:
    """Layers whose output is an output of the network: their channels are the classes."""
    made: dict[int, nn.Module] = {}

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        made[output.data_ptr()] = layer

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [part.register_forward_hook(note) for part in network.modules() if isinstance(part, kinds)]
    with torch.no_grad():
        outputs = _all_outputs(network, example)
    for hook in hooks:
        hook.remove()
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = [made[output.data_ptr()] for output in outputs if output.data_ptr() in made]
    if found:
        return found
    # The answer is enlarged after its layer: any layer with as many channels as there are classes may be it.
    classes = outputs[0].shape[1]
    return [part for part in network.modules() if isinstance(part, kinds) and part.weight.shape[0] == classes]
