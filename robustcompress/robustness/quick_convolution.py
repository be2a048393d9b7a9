"""A strided convolution whose gradient by its input is computed as a convolution, where that is faster.

Shapes: B batch, C channels in, O channels out, S stride, K kernel size over stride, rounded up.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_CHANNELS = 16
"""Up to which this was faster: 5 times for one channel in, 4 for three, 1.4 for 16, and 0.5 for 64."""


class QuickConv2d(nn.Module):
    """Computes what a convolution computes; its gradient by the input is another convolution.

    The gradient by the input of a convolution of stride S is S * S convolutions of stride 1 with every S-th
    row and column of the kernel, whose results are interleaved: one convolution with C * S * S channels out
    and a shuffle. Where channels are few, as those of images are, libraries have no fast way for the gradient
    as such on a CPU; this took a fifth of the time for the first layer of a small network.

    The weights are those of the convolution now: it is for networks that do not learn, on images whose
    gradients are asked for many times. Weights get no gradient.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        """Take over a layer.

        Args:
            layer: With zero padding given in numbers, one group, no dilation, and equal strides.
        """
        super().__init__()
        self._stride = int(layer.stride[0])
        self._padding = (int(layer.padding[0]), int(layer.padding[1]))
        self.register_buffer("weight", layer.weight.detach(), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)
        self.register_buffer("pulling", _phases(layer.weight.detach(), self._stride), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[batch, channels out, height, width]``."""
        result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            images, self.weight, self.bias, self.pulling, self._stride, self._padding
        )
        return result

    @staticmethod
    def can_be(layer: nn.Conv2d) -> bool:
        """Return whether this knows how to compute ``layer``, and is faster on a CPU."""
        return (
            type(layer) is nn.Conv2d
            and int(layer.stride[0]) > 1
            and layer.in_channels <= _FEW_CHANNELS
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and tuple(layer.dilation) == (1, 1)
            and layer.stride[0] == layer.stride[1]
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pulling: Tensor,
        stride: int,
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(pulling)
        ctx.rest = stride, padding, images.shape[2:]
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (pulling,) = grad_outputs, ctx.saved_tensors
        stride, (top, left), (height, width) = ctx.rest
        found = F.conv2d(gradient, pulling, padding=(pulling.shape[2] - 1, pulling.shape[3] - 1))
        if stride > 1:
            found = F.pixel_shuffle(found, stride)
        # Rows that no window reaches have no gradient.
        below, right = top + height - found.shape[2], left + width - found.shape[3]
        if below > 0 or right > 0:
            found = F.pad(found, (0, max(right, 0), 0, max(below, 0)))
        return found[:, :, top : top + height, left : left + width], None, None, None, None, None


def _phases(weight_OCHW: Tensor, stride: int) -> Tensor:
    """Return the kernel of the gradient: ``[C * S * S, O, K, K]``, every S-th row and column turned round."""
    out, channels, height, width = weight_OCHW.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = F.pad(weight_OCHW, (0, columns * stride - width, 0, rows * stride - height))
    split = padded.view(out, channels, rows, stride, columns, stride).flip(2, 4)
    return split.permute(1, 3, 5, 0, 2, 4).reshape(-1, out, rows, columns).contiguous()


def with_quick_gradients(network: nn.Module) -> int:
    """Replace convolutions of ``network`` whose gradients this computes faster on a CPU; return how many.

    What is replaced computes the same up to the order of sums. What decides are the layers' sizes, not
    timings: the same network is always treated alike.

    Args:
        network: In eval mode, its parameters without gradients; changed in place.
    """
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and QuickConv2d.can_be(child)
    ]
    for parent, name, child in places:
        setattr(parent, name, QuickConv2d(child))
    return len(places)
