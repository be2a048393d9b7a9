"""What can be judged: anything that maps images to logits."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

from robustcompress.data import check_logits
from robustcompress.errors import ModelError


class Predictor(Protocol):
    """Images float ``[batch, ...]`` in [0, 1] to logits ``[batch, classes]``.

    A PyTorch module, a session of a runtime and a function are predictors alike. Gradient attacks need one
    whose logits depend on the images through differentiable operations.
    """

    def __call__(self, images: Tensor, /) -> Tensor:
        """Return the logits of ``images``."""
        ...


@contextmanager
def as_predictor(network: nn.Module, device: torch.device | str) -> Generator[nn.Module, None, None]:
    """Serve ``network`` for judging: in eval mode, its parameters without gradients, on ``device``.

    The module itself is used, and gets back the mode of every submodule and ``requires_grad`` of every
    parameter, whatever happens inside. A network that lies on another device is copied there instead.
    """
    device = torch.device(device)
    if not all(_is_on(tensor, device) for tensor in chain(network.parameters(), network.buffers())):
        network = copy.deepcopy(network).to(device)
    modes = [(module, module.training) for module in network.modules()]
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        network.eval()
        for parameter in learned:
            parameter.requires_grad_(False)
        yield network
    finally:
        for module, training in modes:
            module.training = training
        for parameter in learned:
            parameter.requires_grad_(True)


def predicted_classes(predictor: Predictor, images: Tensor, labels: Tensor, *, where: str) -> Tensor:
    """Return the class of the largest logit per image, the first one of a tie; int64 ``[batch]``.

    Arguments and errors are those of :func:`finite_logits`.
    """
    return finite_logits(predictor, images, labels, where=where).argmax(1).to(labels.device)


def finite_logits(predictor: Predictor, images: Tensor, labels: Tensor, *, where: str) -> Tensor:
    """Return the logits of ``images``, checked; ``[batch, classes]``.

    Args:
        predictor: Who is judged; no graph is kept.
        images: float ``[batch, ...]``.
        labels: int64 ``[batch]``, to check that each is one of the classes.
        where: Names subject and batch in errors.

    Raises:
        DataError: If the output is not ``[batch, classes]`` or a label is out of range.
        ModelError: If a logit is not a finite number.
    """
    with torch.no_grad():
        logits = check_logits(predictor(images), labels, where=where)
    if not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite()).any(1).sum())
        raise ModelError(
            f"{where}: expected finite logits; {bad} of {len(logits)} images gave NaN or infinity. Train "
            "with a smaller learning rate, or look for a division or a logarithm of zero in the network."
        )
    return logits


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    here = tensor.device
    return here.type == device.type and device.index in (None, here.index)
