"""What each ONNX operator is in PyTorch, for networks that classify images."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import fx, nn

Array: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = Array | fx.Node
"""A constant, or what depends on the images."""


class UnsupportedError(Exception):
    """Why an operator cannot be translated. Never reaches a user: the node's name is added first."""


@dataclass(frozen=True, eq=False)
class Target:
    """The graph that is being written, and the module that holds its constants."""

    graph: fx.Graph
    root: nn.Module

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call; constants among the arguments become buffers."""
        given = [self.constant(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        return self.graph.call_function(function, tuple(given), kwargs)

    def constant(self, array: Array) -> fx.Node:
        """Add a constant as a buffer of the module."""
        name = f"constant{len(list(self.root.buffers()))}"
        # A copy: arrays of a file are read-only. Everything is computed in float32.
        wide = np.array(array, dtype=np.float32 if array.dtype == np.float16 else None)
        self.root.register_buffer(name, torch.from_numpy(wide))
        return self.graph.get_attr(name)


@dataclass(frozen=True, eq=False)
class Call:
    """One node of the file.

    Attributes:
        kind: Its operator.
        inputs: In order; ``None`` where an optional one is left out.
        attributes: As given; defaults are the operator's.
        rank: Dimensions of the first input.
        opset: Of the file.
    """

    kind: str
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    rank: int
    opset: int

    @classmethod
    def of(cls, node: NodeProto, inputs: tuple[Value | None, ...], *, rank: int, opset: int) -> "Call":
        """Read a node's attributes."""
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        return cls(node.op_type, inputs, attributes, rank, opset)

    def moving(self, index: int = 0) -> fx.Node:
        """Return an input that must depend on the images."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, fx.Node):
            raise UnsupportedError(f"its input {index} does not depend on the images")
        return value

    def fixed(self, index: int) -> Array | None:
        """Return an input that must be a constant, or ``None`` if it was left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, fx.Node):
            raise UnsupportedError(f"its input {index} depends on the images")
        return value

    def needed(self, index: int) -> Array:
        """Return an input that must be a constant."""
        value = self.fixed(index)
        if value is None:
            raise UnsupportedError(f"its input {index} is missing")
        return value

    def numbers(self, name: str, default: list[int]) -> list[int]:
        """Return an attribute of integers."""
        return [int(number) for number in self.attributes.get(name, default)]

    def axes(self, index: int) -> list[int] | None:
        """Return axes: an attribute in older opsets, an input in newer ones; ``None`` if there are none."""
        if "axes" in self.attributes:
            return self.numbers("axes", [])
        given = self.fixed(index)
        return None if given is None else [int(axis) for axis in given.reshape(-1)]


Rule: TypeAlias = Callable[[Target, Call], fx.Node]


def _plane(call: Call, kernel: tuple[int, ...]) -> tuple[fx.Node, list[int], list[int], list[int]]:
    """Return input, strides, (top, left, bottom, right) padding and dilations of a window operator."""
    if len(kernel) != 2:
        raise UnsupportedError(f"its windows have {len(kernel)} dimensions, not 2")
    padding = call.attributes.get("auto_pad", b"NOTSET")
    if padding not in (b"NOTSET", b"VALID"):
        raise UnsupportedError(f"its auto_pad is {padding.decode()!r}; pads must be given as numbers")
    pads = call.numbers("pads", [0] * 4) if padding == b"NOTSET" else [0] * 4
    return call.moving(), call.numbers("strides", [1, 1]), pads, call.numbers("dilations", [1, 1])


def _conv(target: Target, call: Call) -> fx.Node:
    weight = call.needed(1)
    images, strides, pads, dilations = _plane(call, weight.shape[2:])
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        images, top, left = target.call(F.pad, images, (left, right, top, bottom)), 0, 0
    bias = call.fixed(2)
    groups = int(call.attributes.get("group", 1))
    rest = (tuple(strides), (top, left), tuple(dilations), groups)
    return target.call(F.conv2d, images, weight, bias, *rest)


def _symmetric(pads: list[int]) -> tuple[int, int]:
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        raise UnsupportedError(f"its pads {pads} differ between two sides")
    return top, left


def _max_pool(target: Target, call: Call) -> fx.Node:
    kernel = tuple(call.numbers("kernel_shape", []))
    images, strides, pads, dilations = _plane(call, kernel)
    ceil = bool(call.attributes.get("ceil_mode", 0))
    rest = (tuple(strides), _symmetric(pads), tuple(dilations), ceil)
    return target.call(F.max_pool2d, images, kernel, *rest)


def _average_pool(target: Target, call: Call) -> fx.Node:
    kernel = tuple(call.numbers("kernel_shape", []))
    images, strides, pads, dilations = _plane(call, kernel)
    if dilations != [1, 1]:
        raise UnsupportedError(f"its dilations are {dilations}")
    ceil, counted = (bool(call.attributes.get(name, 0)) for name in ("ceil_mode", "count_include_pad"))
    return target.call(F.avg_pool2d, images, kernel, tuple(strides), _symmetric(pads), ceil, counted)


def _global_average_pool(target: Target, call: Call) -> fx.Node:
    if call.rank != 4:
        raise UnsupportedError(f"its input has {call.rank} dimensions, not 4")
    return target.call(torch.mean, call.moving(), (2, 3), True)


def _reduce_mean(target: Target, call: Call) -> fx.Node:
    axes, keep = call.axes(1), bool(call.attributes.get("keepdims", 1))
    if not axes:
        raise UnsupportedError("it averages over everything, the batch included")
    return target.call(torch.mean, call.moving(), tuple(axes), keep)


def _gemm(target: Target, call: Call) -> fx.Node:
    if call.attributes.get("transA", 0):
        raise UnsupportedError("it transposes the images' side (transA)")
    matrix = call.needed(1) * np.float32(call.attributes.get("alpha", 1.0))
    weight = matrix if call.attributes.get("transB", 0) else matrix.T
    bias = call.fixed(2)
    if bias is not None:
        if bias.ndim > 1 and bias.shape[:-1] != (1,) * (bias.ndim - 1):
            raise UnsupportedError(f"its bias has shape {list(bias.shape)}")
        flat = bias.reshape(-1) * np.float32(call.attributes.get("beta", 1.0))
        bias = np.broadcast_to(flat, weight.shape[:1])
    return target.call(F.linear, call.moving(), weight, bias)


def _matmul(target: Target, call: Call) -> fx.Node:
    matrix = call.needed(1)
    if matrix.ndim != 2:
        raise UnsupportedError(f"its second factor has {matrix.ndim} dimensions, not 2")
    return target.call(F.linear, call.moving(), matrix.T)


def _batch_norm(target: Target, call: Call) -> fx.Node:
    if call.attributes.get("training_mode", 0):
        raise UnsupportedError("it is in training mode")
    weight, bias, mean, variance = (call.needed(index).astype(np.float64) for index in range(1, 5))
    scale = weight / np.sqrt(variance + float(call.attributes.get("epsilon", 1e-5)))
    shape = (-1, *[1] * (call.rank - 2))
    factors = (part.astype(np.float32).reshape(shape) for part in (scale, bias - mean * scale))
    return target.call(operator.add, target.call(operator.mul, call.moving(), next(factors)), next(factors))


def _binary(function: Callable[..., Any]) -> Rule:
    def rule(target: Target, call: Call) -> fx.Node:
        left, right = call.inputs
        return target.call(function, left, right)

    return rule


def _unary(function: Callable[..., Any]) -> Rule:
    return lambda target, call: target.call(function, call.moving())


def _identity(target: Target, call: Call) -> fx.Node:
    return call.moving()


def _leaky_relu(target: Target, call: Call) -> fx.Node:
    return target.call(F.leaky_relu, call.moving(), float(call.attributes.get("alpha", 0.01)))


def _clip(target: Target, call: Call) -> fx.Node:
    ends = [call.attributes.get(name) for name in ("min", "max")]
    for place in (0, 1):
        given = call.fixed(place + 1)
        if given is not None:
            ends[place] = float(given)
    return target.call(torch.clamp, call.moving(), *ends)


def _softmax(target: Target, call: Call) -> fx.Node:
    axis = int(call.attributes.get("axis", -1 if call.opset >= 13 else 1))
    if call.opset < 13 and call.rank != 2:
        raise UnsupportedError("it flattens its input (opset 12 and older)")
    return target.call(F.softmax, call.moving(), axis)


def _flatten(target: Target, call: Call) -> fx.Node:
    axis = int(call.attributes.get("axis", 1))
    if axis % call.rank != 1:
        raise UnsupportedError(f"it flattens from axis {axis}, not from 1")
    return target.call(torch.flatten, call.moving(), 1)


def _reshape(target: Target, call: Call) -> fx.Node:
    images, shape = call.moving(), [int(size) for size in call.needed(1).reshape(-1)]
    if not call.attributes.get("allowzero", 0):
        sizes: list[Any] = list(shape)
        for place, size in enumerate(shape):
            if size == 0:
                sizes[place] = target.graph.call_method("size", (images, place))
        return target.call(torch.reshape, images, tuple(sizes))
    return target.call(torch.reshape, images, tuple(shape))


def _squeeze(target: Target, call: Call) -> fx.Node:
    axes = call.axes(1)
    if axes is None:
        raise UnsupportedError("its axes are not given")
    return target.call(torch.squeeze, call.moving(), tuple(axes))


def _unsqueeze(target: Target, call: Call) -> fx.Node:
    axes = call.axes(1) or []
    rank, moved = call.rank + len(axes), call.moving()
    for axis in sorted(axis % rank for axis in axes):
        moved = target.call(torch.unsqueeze, moved, axis)
    return moved


def _transpose(target: Target, call: Call) -> fx.Node:
    order = call.numbers("perm", list(reversed(range(call.rank))))
    return target.call(torch.permute, call.moving(), tuple(order))


def _concat(target: Target, call: Call) -> fx.Node:
    parts = [target.constant(part) if isinstance(part, np.ndarray) else part for part in call.inputs]
    return target.call(torch.cat, parts, int(call.attributes["axis"]))


def _pad(target: Target, call: Call) -> fx.Node:
    mode, value = call.attributes.get("mode", b"constant"), call.fixed(2)
    if mode != b"constant" or call.fixed(3) is not None:
        raise UnsupportedError(f"its mode is {mode.decode()!r}, or it names axes")
    amounts = [int(amount) for amount in call.needed(1)]
    pairs = list(zip(amounts[: call.rank], amounts[call.rank :], strict=True))
    flat = tuple(amount for pair in reversed(pairs) for amount in pair)
    return target.call(F.pad, call.moving(), flat, "constant", 0.0 if value is None else float(value))


OPERATORS: Mapping[str, Rule] = {
    "Add": _binary(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _binary(operator.truediv),
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _binary(operator.mul),
    "Neg": _unary(operator.neg),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _unary(F.relu),
    "Reshape": _reshape,
    "Sigmoid": _unary(torch.sigmoid),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _binary(operator.sub),
    "Tanh": _unary(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operators that are understood, by their ONNX name; those of constants alone need no rule."""


def translate(target: Target, call: Call, rules: Mapping[str, Rule]) -> fx.Node:
    """Add what a node does, by the rule for its operator.

    Raises:
        UnsupportedError: If its operator, or the way it is used, is not understood.
    """
    rule = rules.get(call.kind)
    if rule is None:
        raise UnsupportedError("this operator is not understood")
    try:
        return rule(target, call)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UnsupportedError(f"its arguments are not understood ({error})") from error


def is_moving(value: Value | None) -> bool:
    """Return whether a value depends on the images."""
    return isinstance(value, fx.Node)
