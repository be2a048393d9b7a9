"""Dead channels physically removed, and the proof that the network still computes the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.constants import Moved, Observed, move_constants
from robustcompress.pruning.copies import double_copy, private_copy
from robustcompress.pruning.dependence import Dependence
from robustcompress.pruning.groups import ChannelGroup, couplings
from robustcompress.pruning.liveness import live_channels
from robustcompress.pruning.patterns import Frozen
from robustcompress.pruning.patterns.channel import granularity
from robustcompress.pruning.proof import Probe, Proof, probes, prove
from robustcompress.pruning.readings import Reading
from robustcompress.pruning.rehearsal import TOLERANCE, rehearse
from robustcompress.pruning.removal import Removal, kept_entries, remove, zero

STORED = 1024
"""Largest difference of logits, in units of the network's precision, that rounding constants may explain."""


@dataclass(frozen=True, eq=False)
class Compacted:
    """A network without its dead channels.

    Attributes:
        network: Of the same class, with smaller layers; dtype, device, mode and ``requires_grad`` as before.
        removed: Channels removed from each group, by the name of its first layer; 0 where none were dead.
        folded: Constants of removed channels that went into the bias of a layer, or into the running mean of
            the batch normalisation after it, by the layer's name.
        carried: Constants of removed channels that one that stayed now brings to a layer, by its name.
        frozen: Layers whose channels cannot be removed, and why.
        difference: Largest difference of the logits seen in the proof, relative to the largest logit.
        rounding: The same for ``network`` itself, whose moved constants are rounded to its precision.
        checked: Shapes of the inputs on which masked and compact network agreed.
    """

    network: nn.Module
    removed: dict[str, int]
    folded: dict[str, int]
    carried: dict[str, int]
    frozen: tuple[Frozen, ...]
    difference: float
    rounding: float
    checked: tuple[tuple[int, ...], ...]


def compact(
    model: nn.Module,
    example_inputs: Tensor,
    *,
    check_inputs: Tensor | None = None,
    ignore: Sequence[str] = (),
    round_to: int = 1,
    seed: int = 0,
) -> Compacted:
    """Return a copy of ``model`` without the channels that are dead, proven to compute the same.

    A channel is dead in two ways, whatever left it so: a baked channel mask, filters that an unstructured
    mask emptied, somebody else's pruning.

    - Nothing reads it: no layer that takes it in has a weight on it that is not zero, except in filters that
      are dead themselves.
    - It is the same for every image, because the filters that make it are zero, or read only such channels.
      Its constant moves into the bias of each layer that reads it, or into the running mean of the batch
      normalisation after that. Where a layer pads with zeros no bias is exact: of a group's constant
      channels one stays then and carries the others' constants.

    A channel that is neither for one of the layers that share it stays. One channel of a group always stays.

    The proof: in float64 the logits of ``model`` and of the result differ by at most 1e-10 of the largest
    logit, on ``check_inputs``, on ``example_inputs`` and on uniform random images, also of other heights and
    widths where the network takes them. Constants that moved are then rounded to the network's own
    precision; what that changes is reported too.

    Args:
        model: With masks baked in; left as it is.
        example_inputs: float ``[batch, ...]``; the network is traced with them.
        check_inputs: Real images for the proof beside ``example_inputs``, float ``[batch, ...]``.
        ignore: Globs of layers whose weights must stay as they are.
        round_to: Widths that are left are multiples of it, as the channel pattern rounds them: so many dead
            channels stay, as zeros. 63 channels can take longer than 64.
        seed: Draws the random images.

    Raises:
        ModelError: If the network has nothing to prune, cannot be copied, traced or run in float64.
        ConfigError: If a glob of ``ignore`` matches no layer.
        CompactionError: If the two networks differ; names the first layer that does.
    """
    found = couplings(model, example_inputs, ignore)
    images = probes(example_inputs, check_inputs, seed)
    masked = double_copy(model)
    observed = _observe(masked, images)
    settled = _settle(masked, found.groups, observed, round_to)
    if any(bool(removal.channels.any()) for removal in settled.removals):
        rehearsed = rehearse(model, example_inputs, found)
        if len(rehearsed.groups) < len(found.groups):
            settled = _settle(masked, rehearsed.groups, observed, round_to)
        found = rehearsed
    exact = settled.network
    remove(exact, settled.removals)
    proof = _prove(masked, exact, images, settled, TOLERANCE)
    network = private_copy(model)
    remove(network, settled.removals)
    _store(network, exact)
    stored = proof
    if settled.moved.any:
        stored = _prove(masked, network, images, settled, max(TOLERANCE, STORED * _precision(network)))
    return Compacted(
        network=network,
        removed={removal.group.name: int(removal.channels.sum()) for removal in settled.removals},
        folded=settled.moved.folded,
        carried=settled.moved.carried,
        frozen=found.frozen,
        difference=proof.difference,
        rounding=stored.difference,
        checked=proof.checked,
    )


@dataclass(frozen=True, eq=False)
class _Settled:
    """A network in which nothing reads a dead channel.

    Attributes:
        network: In float64, of the old shapes.
        removals: What can go.
        moved: Where constants went.
        emptied: Layers of which nothing is live, but of which one channel stays.
    """

    network: nn.Module
    removals: list[Removal]
    moved: Moved
    emptied: set[str]


def _observe(masked: nn.Module, images: Sequence[Probe]) -> Observed:
    """Follow constants through the network, for every size of images that it takes."""
    readings: dict[str, list[Reading]] = {}
    means: dict[str, str] | None = None
    sizes: dict[tuple[int, ...], Probe] = {}
    for probe in images:
        sizes.setdefault(tuple(probe.images.shape[2:]), probe)
    for probe in sizes.values():
        try:
            seen = Dependence(masked, probe.images[:2].to(torch.float64))
        except ModelError:
            if probe.optional:
                continue
            raise
        for layer, calls in seen.readings.items():
            readings.setdefault(layer, []).extend(calls)
        means = seen.means if means is None else dict(means.items() & seen.means.items())
    return Observed(readings, means or {})


def _settle(masked: nn.Module, groups: Sequence[ChannelGroup], observed: Observed, round_to: int) -> _Settled:
    """Find the dead channels, and free a copy of the network of their constants."""
    network = private_copy(masked)
    parameters = dict(network.named_parameters())
    live = live_channels(network, groups)
    for group in groups:  # what nothing reads need not be carried
        zero(parameters, Removal(group, ~live[group.name]))
    moved = move_constants(network, groups, observed, live)
    live = live_channels(network, groups)
    removals: list[Removal] = []
    emptied: set[str] = set()
    for group in groups:
        dead = ~live[group.name]
        zero(parameters, Removal(group, dead))
        if bool(dead.all()):
            emptied |= {place.layer for place in (*group.producers, *group.norms)}
            dead[0] = False
        left, multiple = int((~dead).sum()), granularity(group.channels, round_to)
        stay = min(-left % multiple, int(dead.sum()))
        dead[dead.nonzero().flatten()[:stay]] = False
        removals.append(Removal(group, dead))
    return _Settled(network, removals, moved, emptied)


@torch.no_grad()
def _store(network: nn.Module, exact: nn.Module) -> None:
    """Give ``network`` the values of ``exact``, in its own precision."""
    values = exact.state_dict()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(values[name])


def _precision(network: nn.Module) -> float:
    """Return the relative precision of the network's coarsest tensor."""
    tensors = network.state_dict().values()
    return max(torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point())


def _prove(
    masked: nn.Module, small: nn.Module, images: Sequence[Probe], settled: _Settled, tolerance: float
) -> Proof:
    """Compare the logits; a layer whose own outputs may differ is not to blame."""
    entries = kept_entries(masked, settled.removals)
    kept = {layer: rows for (layer, axis), rows in entries.items() if axis == 0}
    skipped = settled.moved.shifted | settled.emptied
    return prove(masked, small, images, tolerance=tolerance, kept=kept, shifted=skipped)
