"""A network whose weights are what fewer bits can hold."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.values import Coded, ValueType, code

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, eq=False)
class Rounded:
    """A network in fewer bits.

    Attributes:
        network: A copy with the values that come back from the bits, in float32.
        coded: The bits of each parameter that has fewer, by name.
    """

    network: nn.Module
    coded: dict[str, Coded]


def layer_kinds(network: nn.Module, values: Mapping[str, ValueType]) -> dict[str, ValueType]:
    """Return how the values of each convolution and linear layer are stored, by the layer's name.

    Args:
        network: Any module.
        values: By glob of layer names. Where several fit, the longest counts; where none does, float32.

    Raises:
        ExportError: If a glob fits no layer.
    """
    names = list(_layers(network))
    for glob in values:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ExportError(f"values names {glob!r}, which fits no layer. Layers: {', '.join(names)}.")
    found: dict[str, ValueType] = {}
    for name in names:
        fitting = [glob for glob in values if fnmatchcase(name, glob)]
        found[name] = values[max(fitting, key=len)] if fitting else "float32"
    return found


@torch.no_grad()
def round_values(network: nn.Module, kind: ValueType | Mapping[str, ValueType]) -> Rounded:
    """Return a copy of ``network`` whose weights and biases are stored in fewer bits.

    Weights of convolutions and linear layers are stored as ``kind``; every other parameter, and the buffers
    of floating point (statistics that could not be folded), in float16. Where layers differ, a layer's bias
    is stored in float16 unless its weight is in float32, and what belongs to no such layer is not rounded.

    Args:
        network: On the CPU, float32. It is not changed.
        kind: Of the weights; ``float32`` rounds nothing. Or by glob of layer names, as in
            :func:`layer_kinds`.

    Raises:
        ExportError: If a value is too large for float16 or not finite; names the parameter. If a glob fits no
            layer.
    """
    rounded = copy.deepcopy(network)
    coded: dict[str, Coded] = {}
    kinds = _stored_as(rounded, kind)
    for name, tensor in _values_of(rounded).items():
        own = kinds.get(id(tensor), "float32")
        if own == "float32" or tensor.dtype != torch.float32 or tensor.numel() == 0:
            continue
        try:
            coded[name] = code(tensor.detach().numpy(), own)
        except ExportError as error:
            raise ExportError(f"{name}: {error}") from error
        tensor.copy_(torch.from_numpy(coded[name].values).reshape(tensor.shape))
    return Rounded(rounded, coded)


def _stored_as(network: nn.Module, kind: ValueType | Mapping[str, ValueType]) -> dict[int, ValueType]:
    """Return how tensors are stored, by their identity; what is missing, in float32."""
    found: dict[int, ValueType] = {}
    if isinstance(kind, str):
        if kind == "float32":
            return found
        found = {id(tensor): "float16" for tensor in _values_of(network).values()}
        own: dict[str, ValueType] = dict.fromkeys(_layers(network), kind)
    else:
        own = layer_kinds(network, kind)
    for name, layer in _layers(network).items():
        for part, tensor in layer.named_parameters(recurse=False):
            small: ValueType = "float32" if own[name] == "float32" else "float16"
            found[id(tensor)] = own[name] if part == "weight" else small
    return found


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _LAYERS) and module.weight.ndim
    }


def _values_of(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
