"""What rounding operators of ONNX are in PyTorch: they round as files do; gradients go straight through."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from robustcompress.export.operators import Array, Call, Rule, Target, UnsupportedError

_STORED = (np.uint8, np.int8, np.uint16, np.int16)


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, lowest: float, highest: float) -> Tensor:
    """Return ``values / scale`` rounded half to even, shifted and saturated: whole numbers, as floats.

    The gradient passes straight through the rounding, and not where the value saturates.

    Args:
        values: float.
        scale: float, broadcast against ``values``.
        zero_point: Whole numbers as floats, like ``scale``.
        lowest: Smallest number that the type holds.
        highest: Largest.

    Source:
        ONNX, QuantizeLinear; Bengio et al. 2013, https://arxiv.org/abs/1308.3432, for the gradient.
    """
    inside = torch.minimum(torch.maximum(values / scale, lowest - zero_point), highest - zero_point)
    return inside + (inside.round() - inside).detach() + zero_point


def dequantize(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``(values - zero_point) * scale``."""
    return (values - zero_point) * scale


def as_half(values: Tensor) -> Tensor:
    """Return ``values`` rounded to float16, in their own type; the gradient passes straight through."""
    return values + (values.half().to(values.dtype) - values).detach()


def _call(target: Target, function: Callable[..., Tensor], *args: Any) -> fx.Node:
    """Add a call that whoever traces the network again meets whole, under its own name."""
    node = target.call(function, *args)
    node.meta["is_wrapped"] = True
    return node


def _scale_and_zero(call: Call, stored: int = TensorProto.UNDEFINED) -> tuple[Array, Array, np.dtype]:
    """Return scale and zero point as float32, shaped to broadcast, and the type of the whole numbers.

    That is the zero point's; without one ``stored``, uint8 if undefined.
    """
    scale, zero_point = call.needed(1), call.fixed(2)
    if call.attributes.get("block_size", 0):
        raise UnsupportedError("it quantises block by block")
    dtype = helper.tensor_dtype_to_np_dtype(stored or TensorProto.UINT8)
    if zero_point is not None:
        dtype = zero_point.dtype
    if dtype.type not in _STORED:
        raise UnsupportedError(f"its whole numbers are of type {dtype}")
    zeros = np.zeros(scale.shape) if zero_point is None else zero_point
    shape: tuple[int, ...] = ()
    if scale.size > 1:
        axis = int(call.attributes.get("axis", 1)) % call.rank
        shape = (-1, *[1] * (call.rank - axis - 1))
    parts = (np.asarray(part, dtype=np.float32).reshape(shape) for part in (scale, zeros))
    return next(parts), next(parts), dtype


def _quantize_linear(target: Target, call: Call) -> fx.Node:
    scale, zero_point, dtype = _scale_and_zero(call, int(call.attributes.get("output_dtype", 0)))
    ends = np.iinfo(dtype)
    return _call(target, quantize, call.moving(), scale, zero_point, float(ends.min), float(ends.max))


def _dequantize_linear(target: Target, call: Call) -> fx.Node:
    scale, zero_point, _ = _scale_and_zero(call)
    return _call(target, dequantize, call.moving(), scale, zero_point)


def _cast(target: Target, call: Call) -> fx.Node:
    kind = call.attributes.get("to")
    if kind == TensorProto.FLOAT16:
        return _call(target, as_half, call.moving())
    if kind != TensorProto.FLOAT:
        raise UnsupportedError("it makes another type than float32 or float16 of the images")
    return call.moving()


ROUNDING: Mapping[str, Rule] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize_linear,
    "QuantizeLinear": _quantize_linear,
}
"""Operators that round, by their ONNX name."""
