"""Single weights, anywhere: HYDRA's own granularity."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustcompress.pruning.patterns import Pattern, Plan, Site, plan_layers


class WeightSite(Site):
    """The weights of one convolution or linear layer, each a unit; its bias is never masked."""

    def __init__(self, name: str, weight: Tensor) -> None:
        self.name = name
        self.shape = tuple(weight.shape)
        self.fan_in = weight[0].numel()
        self.parameters = (f"{name}.weight" if name else "weight",)

    def saliency(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters[self.parameters[0]]

    def apply(self, tensors: MutableMapping[str, Tensor], gate: Tensor) -> None:
        name = self.parameters[0]
        tensors[name] = tensors[name] * gate

    @torch.no_grad()
    def bake(self, parameters: Mapping[str, Tensor], mask: Tensor) -> None:
        parameters[self.parameters[0]].masked_fill_(~mask, 0.0)


class Unstructured(Pattern):
    """Remove single weights of every Conv1d/2d/3d and Linear, first and last layers included.

    Source:
        Sehwag et al. 2020 (HYDRA), https://arxiv.org/abs/2002.10509, section 3.
    """

    units_are_weights: ClassVar[bool] = True

    def plan(self, model: nn.Module, example_inputs: Tensor, ignore: Sequence[str]) -> Plan:
        return plan_layers(model, ignore, lambda name, layer: WeightSite(name, layer.get_parameter("weight")))
