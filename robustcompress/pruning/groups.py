"""Groups of coupled channels: output channels of several layers that can only be removed together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.patterns import PRUNABLE, Frozen, split_prunable
from robustcompress.pruning.tracing import ObstacleError, Stop, Trace

# Operations that give zero for zero and leave every channel in its place. Anything else freezes the group;
# what this list gets wrong for a network (a mean over channels, a sum with a constant) the rehearsal finds.
_ACTIVATIONS = (
    "Relu", "LeakyRelu", "PreluKernel", "Hardtanh", "Elu", "Celu", "Gelu", "Silu", "Mish", "Hardswish",
)  # fmt: skip
_ARITHMETIC = ("Tanh", "Add", "Sub", "Mul", "Div", "Neg", "Mean", "Sum", "Amax")
_POOLING = tuple(f"{kind}Pool{size}D" for kind in ("Avg", "AdaptiveAvg", "AdaptiveMax") for size in (2, 3))
_MAX_POOLING = ("MaxPool2DWithIndices", "MaxPool3DWithIndices")
_SHAPES = ("Clone", "T", "Squeeze", "Unsqueeze", "View", "UnsafeView", "Cat")
_TRANSPARENT = frozenset((*_ACTIVATIONS, *_ARITHMETIC, *_POOLING, *_MAX_POOLING, *_SHAPES))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a group's channels sit in one layer.

    Attributes:
        layer: Name of the layer.
        axis: Of its weight: 0 where the layer makes or normalises the channels, 1 where it takes them.
        parameters: Names of the layer's parameters that have this axis.
        positions: int64 ``[channels, entries]`` along the axis; a flatten makes several entries a channel.
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

    A group is frozen as a whole if one of its layers is ignored, shares a weight or runs twice, if its
    channels are the network's outputs, or if they pass anything that is not known to keep zeros in place.

    Args:
        model: Left as it is.
        example_inputs: float ``[batch, ...]``; the network is traced with them.
        ignore: Globs of layers whose weights must stay as they are, as producers and as consumers.

    Raises:
        ModelError: If the network has nothing to prune, does not run or cannot be traced.
        ConfigError: If a glob of ``ignore`` matches no layer.
    """
    layers, frozen = split_prunable(model, ignore)
    if not layers and not frozen:
        raise ModelError(
            "the network has no Conv1d, Conv2d, Conv3d or Linear layer, so no channels to prune."
        )
    reasons = {item.name: item.reason for item in frozen}
    finder = _Finder(model, Trace(model, example_inputs), dict(reasons))
    groups: list[ChannelGroup] = []
    produced: set[str] = set()
    for name in layers:
        if name in produced or name in reasons:
            continue
        stops: list[Stop] = []
        try:
            stops = finder.trace.reaches(name)
            groups.append(finder.group(stops))
            produced.update(place.layer for place in groups[-1].producers)
        except ObstacleError as obstacle:
            for layer in (name, *(stop.name for stop in stops if _produces(stop))):
                if layer not in produced:
                    reasons.setdefault(layer, str(obstacle))
    ordered = {name: reasons[name] for name, _ in model.named_modules() if name in reasons}
    return Couplings(tuple(groups), tuple(Frozen(name, reason) for name, reason in ordered.items()))


class _Finder:
    """Turns stops into groups, refusing what cannot be removed exactly."""

    def __init__(self, model: nn.Module, trace: Trace, left_alone: Mapping[str, str]) -> None:
        self.trace = trace
        self._left_alone = left_alone
        self._order = {name: index for index, (name, _) in enumerate(model.named_modules())}
        owners: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        self._shared = {name: names for names in owners.values() if len(names) > 1 for name in names}

    def group(self, stops: Sequence[Stop]) -> ChannelGroup:
        """Return the group that the root's ``stops`` make.

        Raises:
            ObstacleError: If it cannot lose channels exactly.
        """
        channels = len(stops[0].positions)
        producers: list[Place] = []
        norms: list[Place] = []
        consumers: list[Place] = []
        for stop in stops:
            self._refuse(stop)
            if stop.module is None or isinstance(stop.module, nn.PReLU):
                continue
            place = self._place(stop, channels)
            if stop.consumes:
                consumers.append(place)
            elif isinstance(stop.module, PRUNABLE):
                if place.positions.numel() != stop.module.weight.shape[0]:
                    raise ObstacleError(
                        f"only a part of the channels of {stop.name!r} is coupled with others"
                    )
                producers.append(place)
            else:
                norms.append(place)
        if not consumers:
            raise ObstacleError("no layer takes its channels in")
        producers.sort(key=lambda place: self._order[place.layer])
        return ChannelGroup(producers[0].layer, channels, tuple(producers), tuple(norms), tuple(consumers))

    def _refuse(self, stop: Stop) -> None:
        """Raise ObstacleError if the channels cannot be removed exactly from this stop."""
        module, name = stop.module, stop.name
        if stop.ends:
            raise ObstacleError("its channels are the network's outputs")
        if module is None:
            if name not in _TRANSPARENT:
                raise ObstacleError(f"its channels pass through {name}, which may mix, move or shift them")
            return
        kind = type(module).__name__
        if name in self._left_alone:
            raise ObstacleError(
                f"its channels are tied to {name!r}, which is left alone: {self._left_alone[name]}"
            )
        if self.trace.calls[name] > 1:
            raise ObstacleError(
                f"its channels are tied to {name!r}, which runs {self.trace.calls[name]} times"
            )
        if isinstance(module, nn.PReLU):
            if module.num_parameters > 1:
                raise ObstacleError(f"its channels pass through PReLU {name!r}, which has a slope for each")
        elif isinstance(module, PRUNABLE):
            if isinstance(module, nn.Linear) or module.groups == 1:
                return
            if not module.groups == module.in_channels == module.out_channels:
                raise ObstacleError(
                    f"its channels are tied to {name!r}, a grouped convolution ({module.groups} groups)"
                )
        elif not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            raise ObstacleError(
                f"its channels pass through {kind} {name!r}, from which none can be removed exactly"
            )
        elif not module.affine:
            raise ObstacleError(
                f"its channels pass through {kind} {name!r} with affine=False: a removed channel would leave "
                "a constant that no mask can cover"
            )

    def _place(self, stop: Stop, channels: int) -> Place:
        """Return where the channels are in one layer, after checking torch-pruning's indices."""
        module = stop.module
        assert module is not None
        axis = 1 if stop.consumes else 0
        own = dict(module.named_parameters(recurse=False))
        names = [name for name in ("weight", "bias") if name in own and (axis == 0 or name == "weight")]
        parameters = tuple(f"{stop.name}.{name}" if stop.name else name for name in names)
        for parameter in parameters:
            if parameter in self._shared:
                raise ObstacleError(
                    f"its channels are tied to the shared parameter {self._shared[parameter]}"
                )
        size = own["weight"].shape[axis]
        entries: list[list[int]] = [[] for _ in range(channels)]
        for position, root in zip(stop.positions, stop.roots, strict=True):
            if not (0 <= position < size and 0 <= root < channels):
                raise ObstacleError(f"torch-pruning gave index {position} of {size} for {stop.name!r}")
            entries[root].append(position)
        flat = [position for row in entries for position in row]
        if len(set(flat)) != len(flat) or len({len(row) for row in entries}) != 1:
            raise ObstacleError(f"its channels do not have equal shares of {stop.name!r}")
        return Place(stop.name, axis, parameters, torch.tensor(entries, dtype=torch.int64))


def _produces(stop: Stop) -> bool:
    """Whether the group's channels are the outputs of this stop's own weights."""
    return isinstance(stop.module, PRUNABLE) and not stop.consumes
