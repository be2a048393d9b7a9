"""Groups of coupled channels: output channels of several layers that can only be removed together."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.labels import Slot
from robustcompress.pruning.patterns import Frozen, split_prunable
from robustcompress.pruning.tracing import Trace


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group's channels sit in one layer.

    Attributes:
        layer: Name of the layer.
        axis: Of its weight: 0 where the layer makes or normalises the channels, 1 where it takes them.
        parameters: Names of the layer's parameters that have this axis.
        positions: int64 ``[channels, entries]`` along the axis. Several entries a channel: the pixels that
            a flatten makes, or the same channel of every group of a grouped convolution.
    """

    layer: str
    axis: int
    parameters: tuple[str, ...]
    positions: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that several layers share.

    Attributes:
        name: Of the first producer, in the network's order.
        channels: How many there are.
        producers: Convolutions and linear layers that put the channels out, depthwise ones included.
        norms: Batch normalisations of the channels.
        consumers: Convolutions and linear layers that take the channels in.
    """

    name: str
    channels: int
    producers: tuple[Place, ...]
    norms: tuple[Place, ...]
    consumers: tuple[Place, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """Everything that gets smaller with the group."""
        return (*self.producers, *self.norms, *self.consumers)


@dataclass(frozen=True)
class Couplings:
    """All groups of a network whose channels may go, and the layers whose channels may not.

    Every prunable layer is a producer of exactly one group or is named once in ``frozen``.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]


def couplings(model: nn.Module, example_inputs: Tensor, ignore: Sequence[str] = ()) -> Couplings:
    """Find the groups of coupled channels of ``model``.

    A group is frozen as a whole if one of its layers is ignored or shares a parameter, if its channels are
    the network's outputs, or if they pass anything that mixes them or makes something else of zeros. In
    grouped convolutions the same channels of every group are coupled, so that groups stay equal; depthwise
    ones lose whole groups. A layer that runs several times is coupled with all its neighbours.

    Args:
        model: Left as it is.
        example_inputs: float ``[batch, ...]``; the network is traced with them.
        ignore: Globs of layers whose weights must stay as they are, as producers and as consumers.

    Raises:
        ModelError: If the network has nothing to prune or does not run.
        ConfigError: If a glob of ``ignore`` matches no layer.
    """
    layers, frozen = split_prunable(model, ignore)
    if not layers and not frozen:
        raise ModelError(
            "the network has no Conv1d, Conv2d, Conv3d or Linear layer, so no channels to prune."
        )
    reasons = {item.name: item.reason for item in frozen}
    trace = Trace(model, example_inputs)
    for layer, why in reasons.items():
        if layer not in trace.shared:
            trace.ties.freeze_layer(layer, f"its channels are tied to {layer!r}, which is left alone: {why}")
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    groups: list[ChannelGroup] = []
    called = trace.ties.layers(0)
    for name in layers:
        if name not in called and name not in reasons:
            reasons[name] = trace.misused.get(name, "the network does not call it as a layer")
    for units in _components(trace, set(reasons) | set(layers)):
        made = sorted({slot.layer for unit in units for slot in unit.made}, key=order.__getitem__)
        reason = next((unit.reason for unit in units if unit.reason), None) or _mismatch(model, units, made)
        if reason is None:
            groups.append(_group(model, units, made, order))
        else:
            reasons.update({layer: reasons.get(layer, reason) for layer in made})
    groups.sort(key=lambda group: order[group.name])
    ordered = {name: reasons[name] for name in order if name in reasons}
    return Couplings(tuple(groups), tuple(Frozen(name, reason) for name, reason in ordered.items()))


@dataclass(frozen=True)
class _Unit:
    """Slots that can only go together; ``made`` are those of filters, ``reason`` says why they must stay."""

    slots: tuple[Slot, ...]
    made: tuple[Slot, ...]
    reason: str | None

    @property
    def signature(self) -> Counter[tuple[str, int]]:
        """How many entries of which layers along which axis."""
        return Counter((slot.layer, slot.axis) for slot in self.slots)


def _components(trace: Trace, prunable: Set[str]) -> list[list[_Unit]]:
    """Return the units of layers that have units in common, one list for each set of layers."""
    found: list[_Unit] = []
    for slots, reason in trace.ties.units():
        made = tuple(slot for slot in slots if slot.axis == 0 and slot.layer in prunable)
        if made:
            found.append(_Unit(tuple(slots), made, reason))
    component: dict[str, list[_Unit]] = {}
    for unit in found:
        merged = [unit]
        lists = {
            id(component[slot.layer]): component[slot.layer] for slot in unit.made if slot.layer in component
        }
        for units in lists.values():
            merged = units + merged
        for layer in {slot.layer for member in merged for slot in member.made}:
            component[layer] = merged
    return list({id(units): units for units in component.values()}.values())


def _mismatch(model: nn.Module, units: Sequence[_Unit], made: Sequence[str]) -> str | None:
    """Return why units that are free to go make no group: they must have equal shares of the same layers."""
    first = units[0].signature
    for unit in units:
        for key in first | unit.signature:
            if first[key] != unit.signature[key]:
                return f"only a part of the channels of {key[0]!r} is coupled with others"
    if not any(axis == 1 for _, axis in first):
        return "no layer takes its channels in"
    if len(units) == 1:
        return "its channels can only go all at once"
    for layer in made:
        assert len(units) * first[layer, 0] == model.get_submodule(layer).get_parameter("weight").shape[0]
    return None


def _group(
    model: nn.Module, units: Sequence[_Unit], made: Sequence[str], order: Mapping[str, int]
) -> ChannelGroup:
    """Return the group of units that all have equal shares of the same layers."""
    root = made[0]
    units = sorted(units, key=lambda unit: min(slot for slot in unit.made if slot.layer == root))
    places: list[Place] = []
    for layer, axis in sorted(units[0].signature, key=lambda key: (order[key[0]], key[1])):
        positions = [
            [slot.position for slot in unit.slots if (slot.layer, slot.axis) == (layer, axis)]
            for unit in units
        ]
        own = dict(model.get_submodule(layer).named_parameters(recurse=False))
        names = [name for name in ("weight", "bias") if name in own and (axis == 0 or name == "weight")]
        parameters = tuple(f"{layer}.{name}" if layer else name for name in names)
        places.append(Place(layer, axis, parameters, torch.tensor(positions, dtype=torch.int64)))
    return ChannelGroup(
        name=root,
        channels=len(units),
        producers=tuple(place for place in places if place.axis == 0 and place.layer in made),
        norms=tuple(place for place in places if place.axis == 0 and place.layer not in made),
        consumers=tuple(place for place in places if place.axis == 1),
    )
