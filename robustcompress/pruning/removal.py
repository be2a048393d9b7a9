"""Three ways to be rid of a group's channels, equal in what the network computes: gated, zeroed, gone."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import CompactionError
from robustcompress.pruning.groups import ChannelGroup
from robustcompress.pruning.tracing import is_depthwise


@dataclass(frozen=True, eq=False)
class Removal:
    """Channels of one group that go.

    Attributes:
        group: The group.
        channels: bool ``[channels]``, True where removed.
    """

    group: ChannelGroup
    channels: Tensor


def gate(tensors: MutableMapping[str, Tensor], group: ChannelGroup, gates: Tensor) -> None:
    """Multiply what every consumer does with channel i by ``gates[i]``.

    With a gate of zero the consumers ignore the channel, whatever it holds. The channel itself is computed
    as before: a gate before the activation would put it at exactly 0, where the derivative of ReLU is 0, and
    a removed channel could never come back.

    Args:
        tensors: Parameters by name; gated ones are replaced.
        group: Whose channels.
        gates: float ``[channels]``; gradients flow to it.
    """
    for place in group.consumers:
        positions = place.positions.to(gates.device)
        for name in place.parameters:
            weight = tensors[name]
            factor = gates.new_ones(weight.shape[place.axis])
            factor = factor.index_copy(0, positions.reshape(-1), gates.repeat_interleave(positions.shape[1]))
            tensors[name] = weight * factor.reshape(-1, *[1] * (weight.ndim - place.axis - 1))


@torch.no_grad()
def zero(parameters: Mapping[str, Tensor], removal: Removal) -> None:
    """Set the channels' filters, their biases and the weights and biases of their norms to +0.0 in place."""
    for place in (*removal.group.producers, *removal.group.norms):
        positions = place.positions[removal.channels.to(place.positions.device)].reshape(-1)
        for name in place.parameters:
            parameters[name].index_fill_(0, positions.to(parameters[name].device), 0.0)


@torch.no_grad()
def zeroed(parameters: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    """Return which channels are zero in everything that ``zero`` sets; bool ``[channels]``."""
    dead = torch.ones(group.channels, dtype=torch.bool)
    for place in (*group.producers, *group.norms):
        for name in place.parameters:
            rows = (parameters[name] == 0).reshape(len(parameters[name]), -1).all(1).cpu()
            dead &= rows[place.positions].all(1)
    return dead


def kept_entries(model: nn.Module, removals: Sequence[Removal]) -> dict[tuple[str, int], Tensor]:
    """Return, for each layer of the groups and each axis of its weight, the int64 indices that stay.

    Raises:
        CompactionError: If the indices do not fit the layers, or a layer would lose everything.
    """
    masks: dict[tuple[str, int], Tensor] = {}
    for removal in removals:
        group, channels = removal.group, removal.channels.cpu()
        if channels.dtype != torch.bool or tuple(channels.shape) != (group.channels,):
            raise CompactionError(
                f"what to remove from {group.name!r} must be bool [{group.channels}]; "
                f"got {channels.dtype} {list(channels.shape)}."
            )
        for place in group.places:
            size = model.get_submodule(place.layer).get_parameter("weight").shape[place.axis]
            if int(place.positions.min()) < 0 or int(place.positions.max()) >= size:
                raise CompactionError(
                    f"the channels of {group.name!r} must lie within the {size} of {place.layer!r}; its "
                    "shape has changed since the groups were found. Find them again."
                )
            mask = masks.setdefault((place.layer, place.axis), torch.ones(size, dtype=torch.bool))
            mask[place.positions[channels].reshape(-1)] = False
    for (layer, _), mask in masks.items():
        if not bool(mask.any()):
            raise CompactionError(f"{layer!r} must keep at least one channel; all {len(mask)} were to go.")
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


@torch.no_grad()
def remove(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Make every layer of the groups smaller, in place. Checks everything before it changes anything.

    Raises:
        CompactionError: If the indices do not fit the layers, or a layer would lose everything.
    """
    entries = kept_entries(model, removals)
    # Asked of all before any changes: a grouped convolution may become one of a single channel a group.
    depthwise = {name: is_depthwise(model.get_submodule(name)) for name, _ in entries}
    for (name, axis), kept in entries.items():
        _shrink(model.get_submodule(name), axis, kept, depthwise=depthwise[name])


def _shrink(layer: nn.Module, axis: int, kept: Tensor, *, depthwise: bool) -> None:
    """Keep only the ``kept`` channels of one layer."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if name == "weight" or (name == "bias" and axis == 0):
            smaller = parameter.detach().index_select(axis, kept.to(parameter.device))
            setattr(layer, name, nn.Parameter(smaller, requires_grad=parameter.requires_grad))
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = layer.weight.shape[1], layer.weight.shape[0]
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if depthwise:  # whole groups went, each with its input
            layer.groups = layer.groups * layer.weight.shape[0] // layer.out_channels
        layer.out_channels = layer.weight.shape[0]
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        layer.num_features = len(kept)
        for name in ("running_mean", "running_var"):
            statistics = getattr(layer, name)
            if statistics is not None:
                setattr(layer, name, statistics.index_select(0, kept.to(statistics.device)))
    else:
        raise CompactionError(f"{type(layer).__name__} cannot lose channels; groups must not hold one.")
