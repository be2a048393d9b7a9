"""The differentiable twin of an ONNX file: made from the file's own graph, and held against its runtime."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.network import read_network
from robustcompress.export.parity import TOLERANCE
from robustcompress.export.session import OnnxSession


@dataclass(frozen=True, eq=False)
class Twin:
    """A network that computes what a file does, and how well it does.

    Attributes:
        network: In eval mode, on the CPU: float32 images to logits, differentiable.
        largest_difference: Of a logit to the session's, over the largest logit.
        agreeing: Share of the images that get the same class, 0 to 1.
        images: How many were compared.
    """

    network: nn.Module
    largest_difference: float
    agreeing: float
    images: int


def read_twin(source: str | os.PathLike[str] | bytes, session: OnnxSession, images: Tensor) -> Twin:
    """Return the twin of an ONNX file, once it is proven to give the session's logits.

    Args:
        source: The file, or its bytes.
        session: Of the same file.
        images: float32 ``[batch, ...]`` on the CPU, to compare logits on.

    Raises:
        StorageError: If the file cannot be read.
        ExportError: If it uses an operator that is not understood, which is named, or the logits differ by
            more than rounding.
    """
    network = read_network(source)
    expected = session(images)
    with torch.no_grad():
        try:
            found: Tensor = network(images.float())
        except RuntimeError as error:  # shapes that the file fixes, such as its batch size
            raise ExportError(f"{session.name}: its graph does not run as a network: {error}") from error
    if found.shape != expected.shape:
        raise ExportError(
            f"{session.name}: its graph gives logits {list(found.shape)} as a network; the "
            f"session gives {list(expected.shape)}."
        )
    scale = float(expected.abs().max()) or 1.0
    difference = float((found - expected).abs().max()) / scale
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{session.name}: read as a network it differs from ONNX Runtime by {difference:.3g} of the "
            f"largest logit; at most {TOLERANCE:g} is rounding. Attacks on it say nothing about the file."
        )
    agreeing = float((found.argmax(1) == expected.argmax(1)).float().mean())
    return Twin(network, difference, agreeing, len(images))
