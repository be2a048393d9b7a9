"""Channels that are the same for every image: their constants move into what reads them, exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustcompress.pruning.groups import ChannelGroup, Place
from robustcompress.pruning.readings import Reading, agreeing


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen of a network, in runs on images of one or several sizes.

    Attributes:
        readings: By layer, what each of its calls took in.
        means: By layer, the batch normalisation that takes all of its outputs and nothing else.
    """

    readings: Mapping[str, Sequence[Reading]]
    means: Mapping[str, str]


@dataclass
class Moved:
    """Where constants went.

    Attributes:
        folded: Constants added to what a layer puts out for every image, by the layer's name.
        carried: Constants that another constant channel now brings, by the name of the layer that reads it.
        shifted: Layers whose outputs changed because the batch normalisation after them took the constant.
    """

    folded: dict[str, int] = field(default_factory=dict[str, int])
    carried: dict[str, int] = field(default_factory=dict[str, int])
    shifted: set[str] = field(default_factory=set[str])

    @property
    def any(self) -> bool:
        """Whether a weight or bias changed."""
        return bool(self.folded or self.carried)


@torch.no_grad()
def move_constants(
    model: nn.Module, groups: Sequence[ChannelGroup], observed: Observed, live: Mapping[str, Tensor]
) -> Moved:
    """Make ``model`` ignore its constant channels, in place: it computes the same, and nothing reads them.

    A constant moves into the bias of a layer that reads it, or out of the running mean of the batch
    normalisation after it, if the layer pads nothing. If it pads with zeros, the constant ends at the border
    and no bias can say that; there one constant channel k stays and carries the others:
    ``W[:, k] += sum_i c_i / c_k * W[:, i]``, exact at borders and for every size of images. The same holds
    for a layer that has neither bias nor normalisation, so that no parameter appears that was not there.

    A channel that is not the same constant in all calls of all its readers stays.

    Args:
        model: In float64; its weights, biases and running means change.
        groups: Whose channels may go.
        observed: Of ``model``.
        live: Channels that something reads; the others are left alone.
    """
    moved = Moved()
    for group in groups:
        readers = [_Reader(model, place, observed) for place in group.consumers]
        constant = live[group.name].clone()
        for reader in readers:
            constant &= reader.constant
        if bool(constant.any()):
            _move_group(readers, constant, moved)
    return moved


class _Reader:
    """One layer that takes a group's channels in.

    Values are ``[channels, entries, groups of a grouped convolution]``.
    """

    def __init__(self, model: nn.Module, place: Place, observed: Observed) -> None:
        self.name = place.layer
        self._layer = model.get_submodule(place.layer)
        self._weight = self._layer.get_parameter("weight")
        self._positions = place.positions
        self._groups = int(getattr(self._layer, "groups", 1))
        inputs = self._positions[:, :, None] + self._weight.shape[1] * torch.arange(self._groups)
        self._readings = list(observed.readings.get(place.layer, ()))
        self._inside = [reading.inside[inputs] for reading in self._readings]
        same = torch.zeros(inputs.shape, dtype=torch.bool)
        self._values = torch.zeros(inputs.shape, dtype=torch.float64)
        filled = same
        if self._readings:
            same = agreeing(self._readings)[inputs]
            self._values = torch.where(same, self._readings[0].values[inputs], 0.0)
            filled = torch.stack([reading.filled[inputs] for reading in self._readings]).all(0)
        reads = (self._weight != 0).reshape(self._groups, -1, *self._weight.shape[1:])
        reads = reads.movedim(2, 0).flatten(2).any(2).cpu()[self._positions]
        self._counts = (self._values != 0) & reads
        self.constant = (same | ~reads).flatten(1).all(1)
        """bool [channels]: whether all that it reads of a channel is constant."""
        self._bias = self._absorber(model, observed)
        padded = any(reading.padded for reading in self._readings)
        foldable = not padded and self._bias is not None
        self.needs = self._counts.flatten(1).any(1)
        """bool [channels]: whether its constant matters to this layer."""
        self.folds = (filled | ~self._counts).flatten(1).all(1) & foldable
        """bool [channels]: whether the bias can take it."""

    def _absorber(self, model: nn.Module, observed: Observed) -> tuple[Tensor, float] | None:
        """Return what can take a constant for every entry of the output, and with which sign."""
        bias = dict(self._layer.named_parameters(recurse=False)).get("bias")
        if bias is not None and self._readings and all(reading.biased for reading in self._readings):
            return bias, 1.0
        if self.name in observed.means:
            norm = model.get_submodule(observed.means[self.name])
            mean = norm.running_mean
            if isinstance(mean, Tensor) and len(mean) == len(self._weight):
                return mean, -1.0
        return None

    @property
    def shifts(self) -> bool:
        """Whether a constant goes into the normalisation after the layer."""
        return self._bias is not None and self._bias[1] < 0

    def can_carry(self, carrier: int, channels: Tensor) -> Tensor:
        """Return which of ``channels`` (indices) the channel ``carrier`` can bring to this layer."""
        counts = self._counts[channels]
        fits = (self._values[carrier] != 0) | ~counts
        for inside in self._inside:
            fits &= (inside[channels] == inside[carrier]).all(-1) | ~counts
        return fits.flatten(1).all(1)

    def strength(self) -> Tensor:
        """Return how large each channel's constant is where it is smallest; carriers should be large."""
        return self._values.abs().flatten(1).amin(1)

    def _column(self, channel: int, factors: Tensor) -> Tensor:
        """Return a channel's weights times ``factors [entries, groups]``; ``[filters, entries, ...]``."""
        weights = self._weight[:, self._positions[channel]]
        rows = factors.repeat_interleave(len(weights) // self._groups, 1).T.to(weights)
        return weights * rows.reshape(*rows.shape, *[1] * (weights.ndim - 2))

    def fold(self, channels: Tensor) -> None:
        """Add what the channels bring to the bias."""
        assert self._bias is not None
        target, sign = self._bias
        for channel in channels.tolist():
            target += sign * self._column(channel, self._values[channel]).flatten(1).sum(1)

    def carry(self, carrier: int, channels: Tensor) -> None:
        """Let a channel bring what others brought."""
        safe = torch.where(self._values[carrier] != 0, self._values[carrier], 1.0)
        for channel in channels.tolist():
            ratio = self._values[channel] * self._counts[channel] / safe
            self._weight[:, self._positions[carrier]] += self._column(channel, ratio)

    def forget(self, channels: Tensor) -> None:
        """Read the channels no more."""
        self._weight[:, self._positions[channels].reshape(-1)] = 0.0


def _move_group(readers: Sequence[_Reader], constant: Tensor, moved: Moved) -> None:
    """Move the constants of one group's channels; carriers, and channels that none can carry, stay."""
    stay = torch.zeros_like(constant)
    chosen: dict[str, int] = {}
    for reader in readers:
        wanted = (constant & ~stay & reader.needs & ~reader.folds).nonzero().flatten()
        if len(wanted) == 0:
            continue
        carrier = _carrier(reader, wanted, constant, stay)
        chosen[reader.name] = carrier
        stay[wanted[~reader.can_carry(carrier, wanted)]] = True
        stay[carrier] = True
    gone = constant & ~stay
    for reader in readers:
        needed = gone & reader.needs
        folded, carried = ((needed & which).nonzero().flatten() for which in (reader.folds, ~reader.folds))
        if len(folded):
            reader.fold(folded)
            moved.folded[reader.name] = moved.folded.get(reader.name, 0) + len(folded)
            moved.shifted |= {reader.name} if reader.shifts else set()
        if len(carried):
            reader.carry(chosen[reader.name], carried)
            moved.carried[reader.name] = moved.carried.get(reader.name, 0) + len(carried)
    for reader in readers:
        reader.forget(gone.nonzero().flatten())


def _carrier(reader: _Reader, wanted: Tensor, constant: Tensor, stay: Tensor) -> int:
    """Choose the constant channel that carries most; of equals one that stays anyway, then the largest."""

    def merit(channel: int) -> tuple[int, bool, float]:
        return (
            int(reader.can_carry(channel, wanted).sum()),
            bool(stay[channel]),
            float(reader.strength()[channel]),
        )

    candidates: list[int] = constant.nonzero().flatten().tolist()
    return max(candidates, key=merit)
