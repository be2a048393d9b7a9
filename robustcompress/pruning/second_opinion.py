"""What torch-pruning says of the same channels: another library's answer beside ours."""

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from robustcompress.pruning.copies import private_copy
from robustcompress.pruning.groups import ChannelGroup

AGREES = "agrees"

_Entries: TypeAlias = set[tuple[str, int, int, int]]
"""Layer, axis, position along it, and channel of the group's first layer."""


def second_opinion(
    model: nn.Module, example_inputs: Tensor, groups: Sequence[ChannelGroup]
) -> dict[str, str]:
    """Return for each group whether torch-pruning couples the same channels of the same layers.

    Nothing depends on it: a group is removed because the removal was rehearsed and is proven. Where the two
    differ, or torch-pruning cannot follow a network, that is worth a look.

    Args:
        model: Left as it is.
        example_inputs: float ``[batch, ...]``.
        groups: Of this network.

    Returns:
        By the group's name ``agrees``, or what torch-pruning says instead.
    """
    twin = private_copy(model).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    names = {module: name for name, module in twin.named_modules()}
    graph: Any = DependencyGraph()
    device = next(twin.parameters()).device
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(twin, (example_inputs[:2].detach().to(device),), verbose=False)
    except Exception as error:  # noqa: BLE001  # torch-pruning raises whatever its tracing meets
        reason = f"torch-pruning cannot trace the network ({type(error).__name__})"
        return {group.name: reason for group in groups}
    return {group.name: _opinion(graph, twin, names, group) for group in groups}


def _opinion(graph: Any, twin: nn.Module, names: dict[nn.Module, str], group: ChannelGroup) -> str:
    root = twin.get_submodule(group.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function = graph.get_pruner_of_module(root).prune_out_channels
            everything = list(range(graph.get_out_channels(root)))
            theirs = _theirs(graph.get_pruning_group(root, function, everything), names)
    except Exception as error:  # noqa: BLE001  # as above
        return f"torch-pruning cannot follow it ({type(error).__name__})"
    ours = _ours(group)
    for some, others, whose in ((theirs, ours, "it"), (ours, theirs, "this library")):
        alone = sorted({layer for layer, *_ in some} - {layer for layer, *_ in others})
        if alone:
            return f"{whose} couples {', '.join(map(repr, alone[:3]))} too"
    if theirs != ours:
        layer = min(theirs ^ ours)[0]
        return f"it couples other channels of {layer!r}"
    return AGREES


def _theirs(items: Any, names: dict[nn.Module, str]) -> _Entries:
    found: _Entries = set()
    for item in items:
        dependency, positions = item
        module = dependency.target.module
        if module in names and isinstance(getattr(module, "weight", None), Tensor) and _has_channels(module):
            axis = int(dependency.handler.__name__ == "prune_in_channels")
            found |= {
                (names[module], axis, int(place), int(root))
                for place, root in zip(positions, item.root_idxs, strict=True)
            }
    return found


def _has_channels(module: nn.Module) -> bool:
    """Whether a layer has an entry for each channel: a PReLU of one slope has none."""
    return not isinstance(module, nn.PReLU)


def _ours(group: ChannelGroup) -> _Entries:
    first = group.producers[0]
    found: _Entries = set()
    for place in group.places:
        each = place.positions.shape[1] // first.positions.shape[1]
        for row, roots in zip(place.positions.tolist(), first.positions.tolist(), strict=True):
            for index, position in enumerate(row):
                found.add(
                    (place.layer, place.axis, position, roots[min(index // max(each, 1), len(roots) - 1)])
                )
    return found
