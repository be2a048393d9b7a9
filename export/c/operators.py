"""What each ONNX operator is among the operations of a C file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from robustcompress.export.c.network import (
    UNBOUNDED,
    Add,
    Affine,
    Clamp,
    Concatenation,
    Convolution,
    Flatten,
    Floats,
    Linear,
    MaxPool,
    Mean,
    Operation,
    Pair,
    Shape,
)

Array: TypeAlias = npt.NDArray[Any]
Made: TypeAlias = tuple[Operation, Shape] | str
"""An operation and the shape of what it makes; or the name of the value, if nothing is to be done."""


class UnsupportedError(Exception):
    """Why an operator cannot be written. Never reaches a user: the node's name is added first."""


@dataclass(frozen=True, eq=False)
class Call:
    """One node of the graph.

    Attributes:
        kind: Its operator.
        inputs: Constants, names of values, and ``None`` where an optional one is left out.
        names: Of all inputs in the graph.
        shapes: Of the values among them.
        attributes: As given.
        output: Name of what it makes.
        opset: Of the graph.
    """

    kind: str
    inputs: tuple[Array | str | None, ...]
    names: tuple[str, ...]
    shapes: tuple[Shape | None, ...]
    attributes: Mapping[str, Any]
    output: str
    opset: int

    def moving(self, index: int = 0) -> tuple[str, Shape]:
        """Return name and shape of an input that must depend on the images."""
        name = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(name, str):
            raise UnsupportedError(f"its input {index} does not depend on the images")
        shape = self.shapes[index]
        assert shape is not None
        return name, shape

    @property
    def label(self) -> str:
        """What the layer is called whose weight is the second input."""
        return self.names[1].removesuffix(".weight") or self.output

    def planes(self) -> tuple[str, Shape]:
        """Return name and ``(channels, height, width)`` of the first input."""
        name, shape = self.moving()
        if len(shape) != 3:
            raise UnsupportedError(f"its input is {[1, *shape]}, not [batch, channels, height, width]")
        return name, shape

    def fixed(self, index: int) -> Array | None:
        """Return an input that must be a constant, or ``None`` if it was left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, str):
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


Rule: TypeAlias = Callable[[Call], Made]


@dataclass(frozen=True)
class _Windows:
    """Where windows lie."""

    stride: Pair
    pads: tuple[int, int, int, int]
    dilation: Pair
    sizes: Pair


def _pair(numbers: list[int]) -> Pair:
    first, second = numbers
    return first, second


def _windows(call: Call, shape: Shape, kernel: list[int]) -> _Windows:
    if len(kernel) != 2:
        raise UnsupportedError(f"its windows have {len(kernel)} dimensions, not 2")
    stride, dilation = (_pair(call.numbers(name, [1, 1])) for name in ("strides", "dilations"))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    auto = call.attributes.get("auto_pad", b"NOTSET")
    pads = call.numbers("pads", [0] * 4) if auto == b"NOTSET" else [0] * 4
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        for axis in (0, 1):
            size = shape[1 + axis]
            total = max(0, (-(-size // stride[axis]) - 1) * stride[axis] + reach[axis] - size)
            less, more = total // 2, total - total // 2
            pads[axis], pads[2 + axis] = (less, more) if auto == b"SAME_UPPER" else (more, less)
    if min(pads) < 0:
        raise UnsupportedError(f"its pads {pads} cut into the image")
    spare = [shape[1 + axis] + pads[axis] + pads[2 + axis] - reach[axis] for axis in (0, 1)]
    if min(spare) < 0:
        raise UnsupportedError(f"its window {reach} is larger than the image {list(shape[1:])}")
    if call.attributes.get("ceil_mode", 0) and any(
        room % step for room, step in zip(spare, stride, strict=True)
    ):
        raise UnsupportedError("its last windows reach over the edge (ceil_mode)")
    top, left, bottom, right = pads
    sizes = (spare[0] // stride[0] + 1, spare[1] // stride[1] + 1)
    return _Windows(stride, (top, left, bottom, right), dilation, sizes)


def _conv(call: Call) -> Made:
    name, shape = call.planes()
    weight = _floats(call.needed(1))
    if weight.ndim != 4:
        raise UnsupportedError(f"its weight has {weight.ndim} dimensions, not 4")
    windows = _windows(call, shape, list(weight.shape[2:]))
    groups, bias = int(call.attributes.get("group", 1)), call.fixed(2)
    if weight.shape[1] * groups != shape[0] or weight.shape[0] % groups:
        raise UnsupportedError(f"its weight {list(weight.shape)} does not fit {shape[0]} channels")
    convolution = Convolution(
        inputs=(name,),
        output=call.output,
        weight=weight,
        bias=np.zeros(len(weight), np.float32) if bias is None else _floats(bias).reshape(len(weight)),
        stride=windows.stride,
        pads=windows.pads,
        dilation=windows.dilation,
        groups=groups,
        label=call.label,
    )
    return convolution, (len(weight), *windows.sizes)


def _max_pool(call: Call) -> Made:
    name, shape = call.planes()
    kernel = call.numbers("kernel_shape", [])
    windows = _windows(call, shape, kernel)
    window = _pair(kernel)
    if windows.dilation != (1, 1):
        raise UnsupportedError(f"its dilations are {list(windows.dilation)}")
    if any(pad >= window[index % 2] for index, pad in enumerate(windows.pads)):
        raise UnsupportedError(f"its pads {list(windows.pads)} hold whole windows")
    pool = MaxPool(
        inputs=(name,), output=call.output, window=window, stride=windows.stride, pads=windows.pads
    )
    return pool, (shape[0], *windows.sizes)


def _average_pool(call: Call) -> Made:
    name, shape = call.planes()
    kernel = call.numbers("kernel_shape", [])
    windows = _windows(call, shape, kernel)
    if any(windows.pads) and not call.attributes.get("count_include_pad", 0):
        raise UnsupportedError("it leaves padding out of its means (count_include_pad=0)")
    weight = np.full((shape[0], 1, *kernel), 1 / (kernel[0] * kernel[1]), np.float32)
    convolution = Convolution(
        inputs=(name,),
        output=call.output,
        weight=weight,
        bias=np.zeros(shape[0], np.float32),
        stride=windows.stride,
        pads=windows.pads,
        dilation=windows.dilation,
        groups=shape[0],
    )
    return convolution, (shape[0], *windows.sizes)


def _global_average_pool(call: Call) -> Made:
    name, shape = call.planes()
    return Mean(inputs=(name,), output=call.output), (shape[0], 1, 1)


def _reduce_mean(call: Call) -> Made:
    name, shape = call.planes()
    given = call.numbers("axes", []) if "axes" in call.attributes else call.fixed(1)
    axes = sorted(int(axis) % 4 for axis in np.asarray([] if given is None else given).reshape(-1))
    if axes != [2, 3]:
        raise UnsupportedError(f"it averages over axes {axes}, not over height and width")
    keep = bool(call.attributes.get("keepdims", 1))
    return Mean(inputs=(name,), output=call.output), (shape[0], 1, 1) if keep else (shape[0],)


def _gemm(call: Call) -> Made:
    name, shape = call.moving()
    if call.attributes.get("transA", 0):
        raise UnsupportedError("it transposes the images' side (transA)")
    matrix = _floats(call.needed(1)) * np.float32(call.attributes.get("alpha", 1.0))
    weight = matrix if call.attributes.get("transB", 0) else matrix.T
    bias: Floats = np.zeros(len(weight), np.float32)
    wanted = call.fixed(2)
    if wanted is not None:
        given = _floats(wanted)
        if given.size not in (1, len(weight)) or given.shape[-1:] != (given.size,) * bool(given.ndim):
            raise UnsupportedError(f"its bias has shape {list(given.shape)}")
        bias += given.reshape(-1) * np.float32(call.attributes.get("beta", 1.0))
    return _linear(call, name, shape, weight, bias)


def _matmul(call: Call) -> Made:
    name, shape = call.moving()
    matrix = _floats(call.needed(1))
    if matrix.ndim != 2:
        raise UnsupportedError(f"its second factor has {matrix.ndim} dimensions, not 2")
    return _linear(call, name, shape, matrix.T, np.zeros(matrix.shape[1], np.float32))


def _linear(call: Call, name: str, shape: Shape, weight: Floats, bias: Floats) -> Made:
    if shape != (weight.shape[1],):
        raise UnsupportedError(f"its input is {[1, *shape]}, not [batch, {weight.shape[1]}]")
    weight = np.ascontiguousarray(weight)
    linear = Linear(inputs=(name,), output=call.output, weight=weight, bias=bias, label=call.label)
    return linear, (len(weight),)


def _batch_norm(call: Call) -> Made:
    if call.attributes.get("training_mode", 0):
        raise UnsupportedError("it is in training mode")
    name, shape = call.moving()
    weight, bias, mean, variance = (call.needed(index).astype(np.float64) for index in range(1, 5))
    scale = weight / np.sqrt(variance + float(call.attributes.get("epsilon", 1e-5)))
    return _affine(call, name, shape, scale, bias - mean * scale)


def _affine(call: Call, name: str, shape: Shape, scale: Array, shift: Array) -> Made:
    scale, shift = (_floats(np.broadcast_to(part.reshape(-1), shape[:1])) for part in (scale, shift))
    return Affine(inputs=(name,), output=call.output, scale=scale, shift=shift), shape


def _per_channel(constant: Array, shape: Shape) -> Array:
    """Return a constant that is the same all over each channel as float64 ``[channels]`` or ``[1]``."""
    sizes = [1] * (len(shape) + 1 - constant.ndim) + list(constant.shape)
    channels = shape[0]
    if (
        len(sizes) != len(shape) + 1
        or sizes[0] != 1
        or sizes[1] not in (1, channels)
        or max(sizes[2:] or [1]) > 1
    ):
        raise UnsupportedError(
            f"its constant {list(constant.shape)} is not one number for each channel of {[1, *shape]}"
        )
    return constant.astype(np.float64).reshape(-1)


def _add(call: Call) -> Made:
    if all(isinstance(value, str) for value in call.inputs):
        return _sum(call)
    place = 0 if isinstance(call.inputs[0], str) else 1
    name, shape = call.moving(place)
    shift = _per_channel(call.needed(1 - place), shape)
    return _affine(call, name, shape, np.ones(1), shift)


def _sum(call: Call) -> Made:
    (left, shape), (right, other) = call.moving(0), call.moving(1)
    if shape != other:
        raise UnsupportedError(f"it adds {[1, *shape]} and {[1, *other]}, which differ")
    return Add(inputs=(left, right), output=call.output), shape


def _sub(call: Call) -> Made:
    if isinstance(call.inputs[0], str):
        name, shape = call.moving(0)
        return _affine(call, name, shape, np.ones(1), -_per_channel(call.needed(1), shape))
    name, shape = call.moving(1)
    return _affine(call, name, shape, -np.ones(1), _per_channel(call.needed(0), shape))


def _mul(call: Call) -> Made:
    place = 0 if isinstance(call.inputs[0], str) else 1
    name, shape = call.moving(place)
    return _affine(call, name, shape, _per_channel(call.needed(1 - place), shape), np.zeros(1))


def _div(call: Call) -> Made:
    name, shape = call.moving(0)
    return _affine(call, name, shape, 1 / _per_channel(call.needed(1), shape), np.zeros(1))


def _relu(call: Call) -> Made:
    name, shape = call.moving()
    return Clamp(inputs=(name,), output=call.output, low=0.0), shape


def _clip(call: Call) -> Made:
    name, shape = call.moving()
    ends = [call.attributes.get("min", -UNBOUNDED), call.attributes.get("max", UNBOUNDED)]
    for place in (0, 1):
        given = call.fixed(place + 1)
        if given is not None:
            ends[place] = given.item()
    low, high = (float(end) for end in ends)
    return Clamp(inputs=(name,), output=call.output, low=low, high=high), shape


def _identity(call: Call) -> Made:
    return call.moving()[0]


def _to_shape(call: Call, name: str, shape: Shape, wanted: Shape) -> Made:
    """Return what it takes to see ``shape`` as ``wanted``, for one image."""
    if wanted == shape:
        return name
    if len(shape) == 3 and wanted == (shape[0] * shape[1] * shape[2],):
        return Flatten(inputs=(name,), output=call.output), wanted
    raise UnsupportedError(f"it makes {[1, *wanted]} of {[1, *shape]}; only flattening is understood")


def _flatten(call: Call) -> Made:
    name, shape = call.moving()
    axis = int(call.attributes.get("axis", 1))
    if axis % (len(shape) + 1) != 1:
        raise UnsupportedError(f"it flattens from axis {axis}, not from 1")
    return _to_shape(call, name, shape, (int(np.prod(shape)),))


def _reshape(call: Call) -> Made:
    name, shape = call.moving()
    sizes, full = [int(size) for size in call.needed(1).reshape(-1)], (1, *shape)
    if not call.attributes.get("allowzero", 0):
        sizes = [full[place] if size == 0 else size for place, size in enumerate(sizes)]
    total, known = int(np.prod(full)), int(np.prod([size for size in sizes if size != -1]))
    if sizes and sizes[0] == -1 and known == total // full[0]:
        sizes[0] = 1
    sizes = [total // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != total or not sizes or sizes[0] != 1:
        raise UnsupportedError(f"it makes {sizes} of {list(full)}: images must stay the first dimension")
    return _to_shape(call, name, shape, tuple(sizes[1:]))


def _squeeze(call: Call) -> Made:
    name, shape = call.moving()
    given = call.numbers("axes", []) if "axes" in call.attributes else call.needed(1).reshape(-1)
    axes = {int(axis) % (len(shape) + 1) for axis in given}
    wanted = tuple(size for axis, size in enumerate(shape, 1) if axis not in axes)
    if 0 in axes:
        raise UnsupportedError("it removes the batch")
    return _to_shape(call, name, shape, wanted)


def _concat(call: Call) -> Made:
    found = [call.moving(index) for index in range(len(call.inputs))]
    shapes = [shape for _, shape in found]
    axis = int(call.attributes["axis"]) % (len(shapes[0]) + 1)
    if axis != 1 or any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise UnsupportedError(f"it joins along axis {axis}; only channels are understood")
    if len(found) == 1:
        return found[0][0]
    channels = sum(shape[0] for shape in shapes)
    joined = Concatenation(inputs=tuple(name for name, _ in found), output=call.output)
    return joined, (channels, *shapes[0][1:])


def _floats(array: Array) -> Floats:
    found = np.ascontiguousarray(array, dtype=np.float32)
    if not bool(np.isfinite(found).all()):
        raise UnsupportedError("a constant of it is not finite")
    return found


RULES: Mapping[str, Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Sub": _sub,
}
"""Operators that are understood, by their ONNX name. Those of constants alone need no rule."""
