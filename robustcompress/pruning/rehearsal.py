"""Remove channels from a copy with random weights first: what fails there is frozen before any training."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ModelError
from robustcompress.pruning.copies import double_copy, private_copy, run
from robustcompress.pruning.equality import relative_difference
from robustcompress.pruning.groups import ChannelGroup, Couplings
from robustcompress.pruning.patterns import PRUNABLE, Frozen
from robustcompress.pruning.removal import Removal, gate, remove, zero

TOLERANCE = 1e-10
"""Largest difference of logits, relative to the largest logit, that float64 rounding may explain."""


def rehearse(model: nn.Module, example_inputs: Tensor, found: Couplings) -> Couplings:
    """Return the groups from which channels can be removed exactly, and freeze the others.

    On a float64 copy with random weights, biases and batch statistics a random half of each group's
    channels is gated, zeroed and physically removed. The three must agree; random weights make sure that
    nothing agrees only because a fresh network has biases of zero, or a pruned one few weights left.

    Args:
        model: Left as it is.
        example_inputs: float ``[batch, ...]``; the first two images are used, and random ones.
        found: Groups of ``model``.

    Raises:
        ModelError: If the network cannot be copied or does not run in float64.
    """
    generator = torch.Generator().manual_seed(0)
    twin = double_copy(model)
    _randomise(twin, generator)
    example = example_inputs[:2].detach().to("cpu", torch.float64)
    inputs = [example, torch.rand(example.shape, generator=generator, dtype=torch.float64)]
    halves = [_half(group, generator) for group in found.groups]
    if _obstacle(twin, halves, inputs) is None:
        return found
    alone = {half.group.name: _obstacle(twin, [half], inputs) for half in halves}
    exact = [half for half in halves if alone[half.group.name] is None]
    together = _obstacle(twin, exact, inputs)
    reasons = {name: reason or together for name, reason in alone.items()}
    frozen = list(found.frozen)
    for group in found.groups:
        if (reason := reasons[group.name]) is not None:
            frozen += [Frozen(place.layer, reason) for place in group.producers]
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return Couplings(
        groups=tuple(group for group in found.groups if reasons[group.name] is None),
        frozen=tuple(sorted(frozen, key=lambda item: order[item.name])),
    )


@torch.no_grad()
def _obstacle(twin: nn.Module, halves: Sequence[Removal], inputs: Sequence[Tensor]) -> str | None:
    """Return why the channels cannot be removed exactly, or None if they can."""
    tensors: dict[str, Tensor] = dict(twin.named_parameters())
    for half in halves:
        gate(tensors, half.group, (~half.channels).to(tensors[half.group.consumers[0].parameters[0]]))
    zeros = private_copy(twin)
    for half in halves:
        zero(dict(zeros.named_parameters()), half)
    small = private_copy(zeros)
    remove(small, halves)
    for images in inputs:
        expected = run(zeros, images)
        gated = functional_call(twin, tensors, (images.to(expected.device),))
        if relative_difference(expected, gated) > TOLERANCE:
            return "channels set to zero reach the next layers as something else, or reach other layers too"
        try:
            actual = run(small, images)
        except ModelError as error:
            return f"the network does not run with fewer channels: {error.__cause__}"
        if relative_difference(expected, actual) > TOLERANCE:
            return "the network computes something else once the channels are gone"
    return None


def _half(group: ChannelGroup, generator: torch.Generator) -> Removal:
    """Choose a random half of the channels, one to all but one of them."""
    removed = torch.zeros(group.channels, dtype=torch.bool)
    removed[torch.randperm(group.channels, generator=generator)[: group.channels // 2]] = True
    return Removal(group, removed)


@torch.no_grad()
def _randomise(twin: nn.Module, generator: torch.Generator) -> None:
    """Draw weights, biases and batch statistics; activations keep their scale, about half are positive."""

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * deviation)

    def positive(tensor: Tensor) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)

    for module in twin.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, PRUNABLE):
            if "weight" in own:
                normal(own["weight"], math.sqrt(2 / own["weight"][0].numel()))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            if "weight" in own:
                positive(own["weight"])
            if module.running_mean is not None and module.running_var is not None:
                normal(module.running_mean, 0.5)
                positive(module.running_var)
        else:
            continue
        if "bias" in own:
            normal(own["bias"], 0.5)
