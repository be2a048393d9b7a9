"""Compute in PyTorch what a network's operations say: the C file is held against it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcompress.export.c.network import (
    Add,
    Affine,
    Clamp,
    Concatenation,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Mean,
    Network,
    Operation,
)


@torch.no_grad()
def reference_logits(network: Network, images: Tensor) -> Tensor:
    """Return float32 logits ``[batch, classes]``.

    Args:
        network: Its operations, fused or not, weights rounded or not.
        images: float32 ``[batch, ...]`` of the shape that the network takes.
    """
    values = {network.input: images}
    for operation in network.operations:
        given = [values[name] for name in operation.inputs]
        made = _computed(operation, given)
        values[operation.output] = made.reshape(len(images), *network.shapes[operation.output])
    return values[network.output]


def _computed(operation: Operation, given: Sequence[Tensor]) -> Tensor:
    first = given[0]
    match operation:
        case Convolution():
            top, left, bottom, right = operation.pads
            padded = F.pad(first, (left, right, top, bottom))
            weight, bias = torch.tensor(operation.weight), torch.tensor(operation.bias)
            made = F.conv2d(padded, weight, bias, operation.stride, 0, operation.dilation, operation.groups)
            return (made + given[1] if len(given) > 1 else made).clamp(operation.low, operation.high)
        case Linear():
            weight, bias = torch.tensor(operation.weight), torch.tensor(operation.bias)
            return F.linear(first, weight, bias).clamp(operation.low, operation.high)
        case MaxPool():
            top, left, bottom, right = operation.pads
            padded = F.pad(first, (left, right, top, bottom), value=-torch.inf)
            return F.max_pool2d(padded, operation.window, operation.stride)
        case Mean():
            return first.mean((2, 3))
        case Flatten():
            return first.flatten(1)
        case Affine():
            shape = (-1, *[1] * (first.ndim - 2))
            scale, shift = (torch.tensor(part) for part in (operation.scale, operation.shift))
            return first * scale.reshape(shape) + shift.reshape(shape)
        case Add():
            return first + given[1]
        case Clamp():
            return first.clamp(operation.low, operation.high)
        case Concatenation():
            return torch.cat(list(given), 1)
        case _:
            raise AssertionError(f"no rule for {type(operation).__name__}")
