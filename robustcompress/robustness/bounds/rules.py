"""Which operation a node of a traced network is.

Rules for functions have the signature of the function in torch, so that arguments fall into place.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.bounds.activations import MaxPool, Rectifier
from robustcompress.robustness.bounds.operations import (
    Average,
    Concatenate,
    Convolution,
    Identity,
    Interval,
    Linear,
    Operation,
    Reshape,
    Scale,
    Sum,
)


@dataclass(frozen=True, eq=False)
class Value:
    """An intermediate result that depends on the images.

    Attributes:
        index: Of the step that made it.
        interval: Where it lies.
    """

    index: int
    interval: Interval

    @property
    def shape(self) -> torch.Size:
        """``[batch, ...]``."""
        return self.interval.centre.shape


class UnsupportedError(Exception):
    """Why an operation has no bounds. Never reaches a user: the node's name is added first."""


Built: TypeAlias = tuple[Operation, tuple[Value, ...]]
Rule: TypeAlias = Callable[..., Built]


def _value(entry: object) -> Value:
    if not isinstance(entry, Value):
        raise UnsupportedError("its first argument does not depend on the images but another one does")
    return entry


def _tensor(entry: object, name: str) -> Tensor:
    if not isinstance(entry, Tensor):
        raise UnsupportedError(f"its {name} depends on the images")
    return entry


def _both(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


# --- Arithmetic ---


def _sum(left: object, right: object, sign: int) -> Built:
    if isinstance(left, Value) and isinstance(right, Value):
        if left.shape != right.shape:
            raise UnsupportedError(f"its inputs have shapes {list(left.shape)} and {list(right.shape)}")
        return Sum((1, sign)), (left, right)
    if isinstance(left, Value):
        return _scale(left, 1.0, right if sign == 1 else -right)  # type: ignore[operator]  # a number or tensor
    return _scale(_value(right), float(sign), left)


def _scale(value: Value, scale: object, shift: object) -> Built:
    made: list[Tensor] = []
    centre = value.interval.centre
    for entry in (scale, shift):
        tensor = torch.as_tensor(entry, dtype=centre.dtype, device=centre.device)
        try:
            expanded = torch.broadcast_shapes(tensor.shape, value.shape)
        except RuntimeError as error:
            raise UnsupportedError(str(error)) from error
        if expanded != value.shape:
            raise UnsupportedError(f"it broadcasts {list(value.shape)} to {list(expanded)}")
        made.append(tensor)
    return Scale(made[0], made[1]), (value,)


def _add(input: object, other: object, *, alpha: int = 1) -> Built:
    if alpha != 1:
        raise UnsupportedError(f"alpha is {alpha}")
    return _sum(input, other, 1)


def _sub(input: object, other: object, *, alpha: int = 1) -> Built:
    if alpha != 1:
        raise UnsupportedError(f"alpha is {alpha}")
    return _sum(input, other, -1)


def _mul(input: object, other: object) -> Built:
    if isinstance(input, Value) and isinstance(other, Value):
        raise UnsupportedError("both factors depend on the images")
    return _scale(input, other, 0.0) if isinstance(input, Value) else _scale(_value(other), input, 0.0)


def _div(input: object, other: object) -> Built:
    if isinstance(other, Value):
        raise UnsupportedError("the divisor depends on the images")
    return _scale(_value(input), 1 / other, 0.0)  # type: ignore[operator]  # a number or tensor


def _neg(input: object) -> Built:
    return _scale(_value(input), -1.0, 0.0)


# --- Shapes ---


def _reshaped(value: Value, compute: Callable[[Tensor], Tensor]) -> Built:
    """Return the reshape that ``compute`` does, learnt from a tensor without memory."""
    after = compute(torch.empty(value.shape, device="meta")).shape
    if not after or after[0] != value.shape[0] or len(value.shape) < 2:
        raise UnsupportedError(f"it makes {list(after)} of {list(value.shape)}: the batch must stay first")
    return Reshape(tuple(after[1:])), (value,)


def _flatten(input: object, start_dim: int = 0, end_dim: int = -1) -> Built:
    value = _value(input)
    if start_dim % len(value.shape) == 0 and end_dim % len(value.shape) != 0:
        raise UnsupportedError("it flattens the batch")
    return _reshaped(value, lambda entries: entries.flatten(start_dim, end_dim))


def _reshape(input: object, *shape: Any) -> Built:
    return _reshaped(_value(input), lambda entries: entries.reshape(*shape))


def _cat(tensors: Sequence[object], dim: int = 0) -> Built:
    values = tuple(_value(entry) for entry in tensors)
    if dim % len(values[0].shape) == 0:
        raise UnsupportedError("it joins batches")
    return Concatenate(dim % len(values[0].shape)), values


def _identity(input: object) -> Built:
    return Identity(), (_value(input),)


def _dropout(input: object, p: float = 0.5, training: bool = True, inplace: bool = False) -> Built:
    if training:
        raise UnsupportedError("it drops entries in eval mode too")
    return _identity(input)


# --- Layers ---


def _linear(input: object, weight: object, bias: object = None) -> Built:
    value = _value(input)
    if len(value.shape) != 2:
        raise UnsupportedError(f"its input is {list(value.shape)}, not [batch, features]")
    return Linear(_tensor(weight, "weight"), None if bias is None else _tensor(bias, "bias")), (value,)


def _matmul(input: object, other: object) -> Built:
    weight = _tensor(other, "second factor")
    if weight.ndim != 2:
        raise UnsupportedError(f"its second factor has {weight.ndim} dimensions, not 2")
    return _linear(input, weight.T)


def _conv2d(
    input: object,
    weight: object,
    bias: object = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Built:
    value, kernels = _value(input), _tensor(weight, "weight")
    if len(value.shape) != 4:
        raise UnsupportedError(f"its input is {list(value.shape)}, not [batch, channels, height, width]")
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [step * (size - 1) for step, size in zip(_both(dilation), kernels.shape[2:], strict=True)]
        if any(side % 2 for side in reach):
            raise UnsupportedError("its padding 'same' differs between the two sides")
        padding = [side // 2 for side in reach]
    assert not isinstance(padding, str)
    made = Convolution(
        kernels,
        None if bias is None else _tensor(bias, "bias"),
        stride=_both(stride),
        padding=_both(padding),
        dilation=_both(dilation),
        groups=groups,
    )
    return made, (value,)


def _relu(input: object, inplace: bool = False) -> Built:
    return Rectifier(), (_value(input),)


def _leaky_relu(input: object, negative_slope: float = 0.01, inplace: bool = False) -> Built:
    if not 0 <= negative_slope <= 1:
        raise UnsupportedError(f"its negative slope is {negative_slope}, not in [0, 1]")
    return Rectifier(negative_slope), (_value(input),)


def _max_pool2d(
    input: object,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Built:
    if return_indices:
        raise UnsupportedError("it returns indices")
    sizes = (_both(kernel_size), _both(stride) if stride else _both(kernel_size), _both(padding))
    return MaxPool(*sizes, _both(dilation), ceil_mode), (_spatial(input),)


def _spatial(entry: object) -> Value:
    value = _value(entry)
    if len(value.shape) != 4:
        raise UnsupportedError(f"its input is {list(value.shape)}, not [batch, channels, height, width]")
    return value


def _avg_pool2d(
    input: object,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Built:
    if divisor_override is not None and divisor_override < 0:
        raise UnsupportedError("its divisor is negative")
    kernel, edge = _both(kernel_size), _both(padding)
    rest = (_both(stride) if stride else kernel, edge, ceil_mode, count_include_pad, divisor_override)

    def spread(coefficients: Tensor, shape: torch.Size) -> Tensor:
        # Of what was averaged only the shape counts.
        like = coefficients.new_empty(shape)
        found: Tensor = torch.ops.aten.avg_pool2d_backward(coefficients, like, kernel, *rest)
        return found

    return Average(lambda entries: F.avg_pool2d(entries, kernel, *rest), spread), (_spatial(input),)


def _adaptive_avg_pool2d(input: object, output_size: Any) -> Built:
    if output_size not in (1, (1, 1), [1, 1]):
        raise UnsupportedError(f"its output size is {output_size}, not 1")
    _spatial(input)
    return _mean(input, (2, 3), keepdim=True)


def _mean(input: object, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Built:
    value = _value(input)
    chosen = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    dims = sorted(each % len(value.shape) for each in chosen)
    if not dims or dims[0] == 0:
        raise UnsupportedError("it averages over the batch")
    count = 1
    for each in dims:
        count *= value.shape[each]

    def spread(coefficients: Tensor, shape: torch.Size) -> Tensor:
        if not keepdim:
            for each in dims:
                coefficients = coefficients.unsqueeze(each)
        return (coefficients / count).expand(shape)

    return Average(lambda entries: entries.mean(dims, keepdim), spread), (value,)


_FUNCTIONS: dict[object, Rule] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.sub: _sub,
    operator.isub: _sub,
    torch.sub: _sub,
    operator.mul: _mul,
    torch.mul: _mul,
    operator.truediv: _div,
    torch.div: _div,
    operator.neg: _neg,
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    torch.flatten: _flatten,
    torch.reshape: _reshape,
    torch.cat: _cat,
    torch.mean: _mean,
    torch.relu: _relu,
    F.relu: _relu,
    F.leaky_relu: _leaky_relu,
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.conv2d: _conv2d,
    F.max_pool2d: _max_pool2d,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.dropout: _dropout,
}
_METHODS: dict[str, Rule] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "add_": _add,
    "neg": _neg,
    "matmul": _matmul,
    "flatten": _flatten,
    "reshape": _reshape,
    "view": _reshape,
    "contiguous": _identity,
    "mean": _mean,
    "relu": _relu,
    "relu_": _relu,
}
_IN_PLACE = (operator.iadd, operator.isub)
_VIEWS = (torch.flatten, torch.reshape, F.dropout)
_VIEW_METHODS = ("flatten", "reshape", "view", "contiguous")
_VIEW_MODULES = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def of_function(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Built:
    """Return the operation that a function or, if ``target`` is a string, a method does.

    Raises:
        UnsupportedError: If it has no bounds.
    """
    rule = _METHODS.get(target) if isinstance(target, str) else _FUNCTIONS.get(target)
    if rule is None:
        raise UnsupportedError("no bounds are known for it")
    try:
        return rule(*args, **kwargs)
    except TypeError as error:
        raise UnsupportedError(f"its arguments are not understood ({error})") from error


def of_module(module: nn.Module, tensor: Callable[[str], Tensor | None], input: object) -> Built:
    """Return the operation that a layer does in eval mode.

    Args:
        module: The layer; exact types only: a subclass or a parametrization may compute something else.
        tensor: The layer's parameter or buffer of a name, as it is to be taken.
        input: What the layer is called with.

    Raises:
        UnsupportedError: If it has no bounds.
    """
    kind = type(module)
    if kind in _VIEW_MODULES and not isinstance(module, nn.Flatten):
        return _identity(input)
    match module:
        case nn.Flatten() if kind is nn.Flatten:
            return _flatten(input, module.start_dim, module.end_dim)
        case nn.Linear() if kind is nn.Linear:
            return _linear(input, tensor("weight"), tensor("bias"))
        case nn.Conv2d() if kind is nn.Conv2d:
            if module.padding_mode != "zeros":
                raise UnsupportedError(f"its padding mode is {module.padding_mode!r}, not 'zeros'")
            weights = (tensor("weight"), tensor("bias"))
            return _conv2d(input, *weights, module.stride, module.padding, module.dilation, module.groups)
        case nn.BatchNorm1d() | nn.BatchNorm2d() if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            value = _value(input)
            shape = (1, -1, *[1] * (len(value.shape) - 2))
            scale_C, shift_C = batch_norm_factors(module, tensor)
            return Scale(scale_C.reshape(shape), shift_C.reshape(shape)), (value,)
        case nn.ReLU() if kind is nn.ReLU:
            return _relu(input)
        case nn.LeakyReLU() if kind is nn.LeakyReLU:
            return _leaky_relu(input, module.negative_slope)
        case nn.MaxPool2d() if kind is nn.MaxPool2d:
            pool = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            return _max_pool2d(input, *pool, module.return_indices)
        case nn.AvgPool2d() if kind is nn.AvgPool2d:
            window = (module.kernel_size, module.stride, module.padding, module.ceil_mode)
            return _avg_pool2d(input, *window, module.count_include_pad, module.divisor_override)
        case nn.AdaptiveAvgPool2d() if kind is nn.AdaptiveAvgPool2d:
            return _adaptive_avg_pool2d(input, module.output_size)
        case _:
            raise UnsupportedError("no bounds are known for it")


def batch_norm_factors(
    module: nn.BatchNorm1d | nn.BatchNorm2d, tensor: Callable[[str], Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel in eval mode.

    Raises:
        UnsupportedError: If the layer keeps no running statistics.
    """
    mean, variance = tensor("running_mean"), tensor("running_var")
    if mean is None or variance is None:
        raise UnsupportedError("it keeps no running statistics, so that one image's output depends on others")
    # Copies: training moves the statistics in place, while autograd still needs them as they were.
    scale = torch.rsqrt(variance.clone() + module.eps)
    weight, bias = tensor("weight"), tensor("bias")
    if weight is not None:
        scale = scale * weight
    shift = -mean.clone() * scale
    if bias is not None:
        shift = shift + bias
    return scale, shift


def writes_over_input(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether a node changes its input."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op == "call_function" and (node.target in _IN_PLACE or bool(node.kwargs.get("inplace")))


def is_view(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether a node's output may share memory with its input."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) in _VIEW_MODULES
    if node.op == "call_method":
        return node.target in _VIEW_METHODS
    return node.op == "call_function" and node.target in _VIEWS


def unsupported(node: fx.Node, modules: Mapping[str, nn.Module], reason: str) -> ModelError:
    """Return the error that names a node without bounds."""
    if node.op == "call_module":
        what = f"layer {str(node.target)!r} ({type(modules[str(node.target)]).__name__})"
    else:
        what = f"operation {node.name!r} ({getattr(node.target, '__name__', node.target)})"
    return ModelError(
        f"bounds cannot pass {what}: {reason}. They are known for Conv2d, Linear, batch normalisation, "
        "ReLU, LeakyReLU, average and max pooling, flatten, add, concatenate and means over space."
    )
