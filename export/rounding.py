"""A network whose weights are what fewer bits can hold."""

import copy
from dataclasses import dataclass

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


@torch.no_grad()
def round_values(network: nn.Module, kind: ValueType) -> Rounded:
    """Return a copy of ``network`` whose weights and biases are stored in fewer bits.

    Weights of convolutions and linear layers are stored as ``kind``; every other parameter, and the buffers
    of floating point (statistics that could not be folded), in float16.

    Args:
        network: On the CPU, float32. It is not changed.
        kind: Of the weights; ``float32`` rounds nothing.

    Raises:
        ExportError: If a value is too large for float16 or not finite; names the parameter.
    """
    rounded = copy.deepcopy(network)
    coded: dict[str, Coded] = {}
    if kind == "float32":
        return Rounded(rounded, coded)
    weights = {
        id(module.weight)
        for module in rounded.modules()
        if isinstance(module, _LAYERS) and module.weight.ndim
    }
    for name, tensor in _values_of(rounded).items():
        if tensor.dtype != torch.float32 or tensor.numel() == 0:
            continue
        own: ValueType = kind if id(tensor) in weights else "float16"
        try:
            coded[name] = code(tensor.detach().numpy(), own)
        except ExportError as error:
            raise ExportError(f"{name}: {error}") from error
        tensor.copy_(torch.from_numpy(coded[name].values).reshape(tensor.shape))
    return Rounded(rounded, coded)


def _values_of(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
