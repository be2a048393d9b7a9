"""Blocks of weights that a runtime reads, multiplies and skips as one."""

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from robustcompress.pruning.patterns import Pattern, Plan, Site, plan_layers


class BlockSite(Site):
    """The blocks of one layer's weight, each a unit.

    Args:
        name: Of the layer.
        weight: ``[outputs, inputs, *kernel]``, outputs a multiple of ``height``, inputs of ``width``.
        height: Outputs of a block.
        width: Inputs of a block.
    """

    def __init__(self, name: str, weight: Tensor, height: int, width: int) -> None:
        outputs, inputs, *kernel = weight.shape
        self.name = name
        self.shape = (outputs // height, inputs // width, *kernel)
        self.fan_in = weight[0].numel()
        self.parameters = (f"{name}.weight" if name else "weight",)
        self._height, self._width = height, width
        self._weight_shape = tuple(weight.shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self._weight_shape

    def saliency(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the L2 norm of each block, ``[outputs / height, inputs / width, *kernel]``."""
        weight = parameters[self.parameters[0]]
        tiles = weight.reshape(self.shape[0], self._height, self.shape[1], self._width, *self.shape[2:])
        return tiles.square().sum((1, 3)).sqrt()

    def apply(self, tensors: MutableMapping[str, Tensor], gate: Tensor) -> None:
        name = self.parameters[0]
        tensors[name] = tensors[name] * self._spread(gate)

    @torch.no_grad()
    def bake(self, parameters: Mapping[str, Tensor], mask: Tensor) -> None:
        parameters[self.parameters[0]].masked_fill_(~self._spread(mask), 0.0)

    def _spread(self, units: Tensor) -> Tensor:
        """Return each unit's entry at every weight of its block."""
        return units.repeat_interleave(self._height, 0).repeat_interleave(self._width, 1)


class Block(Pattern):
    """Remove blocks of ``height`` outputs by ``width`` inputs, each kernel position by itself.

    That is a tile of the matrix that runtimes multiply with: they lay a convolution's weight out as outputs
    by (kernel position, input), inputs innermost, and skip tiles of it; a block over all kernel positions
    would be many tiles that are far apart, and coarser than any of them needs. The usual block, 4 outputs by
    1 input, is what XNNPACK's sparse kernels take for 1x1 convolutions; a block-sparse tensor (BSR) takes
    any. Such tensors hold whole blocks only, so layers whose outputs or inputs (of each group of a grouped
    convolution) do not divide stay dense.

    The saliency of a block is its L2 norm.

    Source:
        Narang et al. 2017, https://arxiv.org/abs/1711.02782 (block sparsity by the blocks' magnitude).
        Differs: the norm in place of the largest weight; convolutions too.

    Attributes:
        height: Output channels of a block.
        width: Input channels of a block.
    """

    height: int = Field(default=4, ge=1)
    width: int = Field(default=1, ge=1)

    def plan(self, model: nn.Module, example_inputs: Tensor, ignore: Sequence[str]) -> Plan:
        return plan_layers(model, ignore, self._site)

    def _site(self, name: str, layer: nn.Module) -> Site | str:
        weight = layer.get_parameter("weight")
        groups: int = getattr(layer, "groups", 1)
        of_each = " of each group" if groups > 1 else ""
        outputs, inputs = weight.shape[0] // groups, weight.shape[1]
        if outputs % self.height:
            return f"its {outputs} output channels{of_each} are no multiple of {self.height}"
        if inputs % self.width:
            return f"its {inputs} input channels{of_each} are no multiple of {self.width}"
        return BlockSite(name, weight, self.height, self.width)
