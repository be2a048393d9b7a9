"""Masked channels physically removed, and the proof that the network still computes the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import CompactionError, ModelError
from robustcompress.pruning.copies import double_copy, private_copy, run
from robustcompress.pruning.equality import first_difference, relative_difference
from robustcompress.pruning.groups import Couplings, couplings
from robustcompress.pruning.patterns import Frozen
from robustcompress.pruning.rehearsal import TOLERANCE, rehearse
from robustcompress.pruning.removal import Removal, kept_entries, remove, zeroed

_CHECKED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Compacted:
    """A network without its dead channels.

    Attributes:
        network: Of the same class, with smaller layers; dtype, device, mode and ``requires_grad`` as before.
        removed: Channels removed from each group, by the name of its first layer; 0 where none were dead.
        frozen: Layers whose channels cannot be removed, and why.
        difference: Largest difference of the logits seen in the proof, relative to the largest logit.
        checked: Shapes of the inputs on which masked and compact network agreed.
    """

    network: nn.Module
    removed: dict[str, int]
    frozen: tuple[Frozen, ...]
    difference: float
    checked: tuple[tuple[int, ...], ...]


def compact(
    model: nn.Module,
    example_inputs: Tensor,
    *,
    check_inputs: Tensor | None = None,
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> Compacted:
    """Return a copy of ``model`` without the channels that are dead, proven to compute the same.

    A channel is dead if everything that puts it out is exactly zero: in all layers that share it the filter
    and its bias, and the weight and bias of every batch normalisation. That is what a baked channel mask
    leaves; filters that an unstructured mask happened to empty count too. A filter of zeros whose batch
    normalisation still has a bias puts out a constant: it is not dead here and stays. One channel of a group
    always stays.

    The proof: in float64 the logits of ``model`` and of the result differ by at most 1e-10 of the largest
    logit, on ``check_inputs``, on ``example_inputs`` and on uniform random images, also of other heights and
    widths where the network takes them.

    Args:
        model: With masks baked in; left as it is.
        example_inputs: float ``[batch, ...]``; the network is traced with them.
        check_inputs: Real images for the proof beside ``example_inputs``, float ``[batch, ...]``.
        ignore: Globs of layers whose weights must stay as they are.
        seed: Draws the random images.

    Raises:
        ModelError: If the network has nothing to prune, cannot be copied, traced or run in float64.
        ConfigError: If a glob of ``ignore`` matches no layer.
        CompactionError: If the two networks differ; names the first layer that does.
    """
    found = _removable(model, example_inputs, ignore)
    parameters = dict(model.named_parameters())
    removals: list[Removal] = []
    for group in found.groups:
        dead = zeroed(parameters, group)
        if bool(dead.all()):
            dead[0] = False
        removals.append(Removal(group, dead))
    network = private_copy(model)
    remove(network, removals)
    difference, checked = _prove(model, network, removals, _probes(example_inputs, check_inputs, seed))
    return Compacted(
        network=network,
        removed={removal.group.name: int(removal.channels.sum()) for removal in removals},
        frozen=found.frozen,
        difference=difference,
        checked=checked,
    )


def _removable(model: nn.Module, example_inputs: Tensor, ignore: Sequence[str]) -> Couplings:
    """Return the groups of ``model``, rehearsed if any has a dead channel."""
    found = couplings(model, example_inputs, ignore)
    parameters = dict(model.named_parameters())
    if not any(bool(zeroed(parameters, group).any()) for group in found.groups):
        return found
    return rehearse(model, example_inputs, found)


@dataclass(frozen=True, eq=False)
class _Probe:
    """Images for the proof; ``optional`` ones are skipped if the masked network does not take them."""

    images: Tensor
    optional: bool


def _probes(example_inputs: Tensor, check_inputs: Tensor | None, seed: int) -> list[_Probe]:
    """Return real images, random ones of the same shape, and random ones of other heights and widths."""
    generator = torch.Generator().manual_seed(seed)
    front, sides = (len(example_inputs[:2]), *example_inputs.shape[1:2]), tuple(example_inputs.shape[2:])
    sizes = [sides]
    if sides:
        # Half of it, and an odd one whose height and width differ.
        sizes.append(tuple(max(1, side // 2) for side in sides))
        sizes.append(tuple(side + 3 + axis for axis, side in enumerate(sides)))
    probes = [_Probe(example_inputs, optional=False)]
    if check_inputs is not None:
        probes.append(_Probe(check_inputs, optional=False))
    for index, size in enumerate(sizes):
        images = torch.rand((*front, *size), generator=generator, dtype=torch.float64)
        probes.append(_Probe(images, optional=index > 0))
    return probes


@torch.no_grad()
def _prove(
    model: nn.Module, network: nn.Module, removals: Sequence[Removal], probes: Sequence[_Probe]
) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """Return the largest relative difference of the logits and the shapes that were compared.

    Raises:
        CompactionError: If it is above the tolerance.
    """
    masked, small = double_copy(model), double_copy(network)
    largest = 0.0
    checked: list[tuple[int, ...]] = []
    for probe in probes:
        for images in probe.images.to(torch.float64).split(_CHECKED_AT_ONCE):
            expected = _expected(masked, images, probe.optional)
            if expected is None:
                continue
            try:
                difference = relative_difference(expected, run(small, images))
            except ModelError:
                difference = float("inf")
            if difference > TOLERANCE:
                _refuse(masked, small, images, removals, difference)
            largest = max(largest, difference)
            checked.append(tuple(images.shape))
    return largest, tuple(checked)


def _expected(masked: nn.Module, images: Tensor, optional: bool) -> Tensor | None:
    """Return the masked network's logits; None if it does not take these images and need not."""
    try:
        logits = run(masked, images)
    except ModelError:
        if optional:
            return None
        raise
    if bool(logits.isfinite().all()):
        return logits
    if optional:
        return None
    raise CompactionError(
        "the masked network must give finite logits; it gives NaN or infinity for images of shape "
        f"{list(images.shape)}. Compact a network that works."
    )


def _refuse(
    masked: nn.Module, small: nn.Module, images: Tensor, removals: Sequence[Removal], difference: float
) -> None:
    """Raise CompactionError that names the first layer whose outputs differ."""
    kept = {layer: entries for (layer, axis), entries in kept_entries(masked, removals).items() if axis == 0}
    found = first_difference(masked, small, images, kept, tolerance=TOLERANCE)
    where = (
        "no single layer"
        if found is None
        else f"layer {found.layer or type(masked).__name__!r} {found.reason}"
    )
    raise CompactionError(
        f"masked and compact network must agree to {TOLERANCE:.0e} of the largest logit; they differ by "
        f"{difference:.2g} on images of shape {list(images.shape)}: {where}. Nothing was changed: keep the "
        "masked network, or name the layer in ignore."
    )
