"""Whole channels: what is left is a smaller dense network, faster everywhere."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning import removal
from robustcompress.pruning.groups import ChannelGroup, couplings
from robustcompress.pruning.patterns import Pattern, Plan, Site
from robustcompress.pruning.rehearsal import rehearse


class ChannelSite(Site):
    """The channels of one group of coupled layers, each a unit.

    Args:
        group: The group.
        weight: Of the group's first layer.
        granularity: Kept channels are a multiple of it.
        least: So many are kept at least, or all.
    """

    def __init__(self, group: ChannelGroup, weight: Tensor, granularity: int = 1, least: int = 1) -> None:
        self.group = group
        self.name = group.name
        self.shape = (group.channels,)
        self.fan_in = weight[0].numel()
        self.parameters = tuple(name for place in group.places for name in place.parameters)
        self.granularity = granularity
        self.minimum_kept = min(max(granularity, least), group.channels)
        self._weight_shape = tuple(weight.shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self._weight_shape

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that lose outputs; those after them, which lose inputs, are not meant."""
        return tuple(place.layer for place in self.group.producers)

    def saliency(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the L2 norm of each channel's filters, over all layers that produce it; ``[channels]``."""
        squares = [
            parameters[place.parameters[0]][place.positions].flatten(1).square().sum(1)
            for place in self.group.producers
        ]
        return torch.stack(squares).sum(0).sqrt()

    def apply(self, tensors: MutableMapping[str, Tensor], gate: Tensor) -> None:
        removal.gate(tensors, self.group, gate)

    def bake(self, parameters: Mapping[str, Tensor], mask: Tensor) -> None:
        removal.zero(parameters, removal.Removal(self.group, ~mask))


class Channel(Pattern):
    """Remove whole output channels, together in all layers that share them.

    Sparsity is the fraction of channels removed from each group of coupled layers (in a residual network,
    the whole stream of a stage is one group), at least one channel kept. A network that loses half of the
    channels of every group loses about three quarters of its weights.

    Widths are rounded: runtimes compute channels in blocks, and 63 of them can take longer than 64.

    While scores learn, a mask gates what the next layers do with a channel. Baked in, it covers the
    channel's filters, their biases and the weight and bias of its batch normalisations, so that no constant
    is left and the channel can be removed physically.

    Source:
        Channel scores are HYDRA's (Sehwag et al. 2020, https://arxiv.org/abs/2002.10509, section 3), one for
        each channel: dL/ds is the sum of dL/dW_eff * W over all weights that take the channel in, times
        sign(s). Coupled groups: Fang et al. 2023, https://arxiv.org/abs/2301.12900.
        Differs: HYDRA removes single weights only.

    Attributes:
        round_to: Kept channels of a group are a multiple of it; of half of it, a quarter, ... for groups
            that have fewer than four times as many channels, so that each can lose a quarter. 1 rounds
            nothing.
        least: Kept channels of a group are at least so many; groups that have fewer keep all. Below what a
            runtime computes at once (32 for ONNX Runtime on AVX2) channels cost robustness to remove and
            save no time.
    """

    removes_structure: ClassVar[bool] = True
    round_to: int = Field(default=16, ge=1)
    least: int = Field(default=1, ge=1)

    @property
    def round_widths_to(self) -> int:
        """The same for dead channels that go later."""
        return self.round_to

    def plan(self, model: nn.Module, example_inputs: Tensor, ignore: Sequence[str]) -> Plan:
        found = rehearse(model, example_inputs, couplings(model, example_inputs, ignore))
        if not found.groups:
            reasons = "; ".join(f"{item.name}: {item.reason}" for item in found.frozen)
            raise ModelError(
                f"no channel of the network can be removed exactly ({reasons}). Use the pattern "
                "'unstructured', or ignore fewer layers."
            )
        sites = [
            ChannelSite(
                group,
                model.get_submodule(group.name).get_parameter("weight"),
                granularity(group.channels, self.round_to),
                self.least,
            )
            for group in found.groups
        ]
        return Plan(tuple(sites), found.frozen)


def granularity(channels: int, round_to: int) -> int:
    """Return of what the kept ones of so many channels are a multiple."""
    while round_to > 1 and channels < 4 * round_to:
        round_to //= 2
    return round_to
