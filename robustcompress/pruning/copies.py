"""Private copies of a network: whatever is tried on them, the user's own network stays as it is."""

import copy

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError, first_line


def private_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model``.

    Raises:
        ModelError: If the network cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} must be copyable with copy.deepcopy; {first_line(error)} "
            "Keep tensors that belong to a graph, locks and open files out of its attributes."
        ) from error


def double_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model`` in float64 and eval mode, on the same device.

    Raises:
        ModelError: If the network cannot be copied.
    """
    return private_copy(model).to(torch.float64).eval()


def run(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the logits of ``model`` for ``inputs``, which are moved to its device.

    Raises:
        ModelError: If the network fails or returns anything but one tensor.
    """
    parameter = next(model.parameters(), None)
    inputs = inputs.detach() if parameter is None else inputs.detach().to(parameter.device)
    try:
        logits = model(inputs)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} must run on {inputs.dtype} images of shape {list(inputs.shape)}; "
            f"{first_line(error)} Pass example_inputs as the network takes them."
        ) from error
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{type(model).__name__} must return one tensor of logits; got {type(logits).__name__}. "
            "Wrap it in a module that returns the logits alone."
        )
    return logits
