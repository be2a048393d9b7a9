"""The differentiable twin of an ONNX file: made from the file's own graph, and held against its runtime."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.network import read_network
from robustcompress.export.parity import TOLERANCE
from robustcompress.export.quantised import as_half, quantize
from robustcompress.export.session import OnnxSession

_STEP = 0.01
"""A step of an 8-bit output, in units of the largest logit."""
_SAME_CLASS = 0.99
_HALF = 5e-3
"""Largest difference of a logit, over the largest logit, of a file in float16: ten roundings' worth."""


@dataclass(frozen=True, eq=False)
class Twin:
    """A network that computes what a file does, and how well it does.

    Attributes:
        network: In eval mode, on the CPU: float32 images to logits, differentiable.
        largest_difference: Of a logit to the session's, over the largest logit.
        agreeing: Share of the images that get the same class, 0 to 1.
        images: How many were compared.
        rounded: Whether the file rounds inside, as quantised ones do.
    """

    network: nn.Module
    largest_difference: float
    agreeing: float
    images: int
    rounded: bool


def read_twin(source: str | os.PathLike[str] | bytes, session: OnnxSession, images: Tensor) -> Twin:
    """Return the twin of an ONNX file, once it is proven to give the session's logits.

    Logits of a file that does not round may differ by 1e-4 of the largest one, those of a file in float16 by
    5e-3 (3e-4 was seen on a ResNet-18). A file of whole numbers is computed in whole numbers by the runtime,
    and a sum that lies on a rounding border may fall on either side: one step of an 8-bit output is about a
    hundredth of the largest logit. There half of the images must agree within that, and 99% get the same
    class, those aside whose class the session itself gives by a lead of at most two steps. Measured on int8
    files of small_cnn and a narrow ResNet-18 (400 images, weights of 7 bits or unsigned ones): 92 to 100% of
    the images agree exactly, the others within two steps, all in their class.

    Processors without VNNI instructions are an exception: their kernels for unsigned activations with signed
    weights saturate, so that the runtime computes something else than the file says (2 to 20% of the largest
    logit on average were seen). Such a session has no twin.

    Args:
        source: The file, or its bytes.
        session: Of the same file.
        images: float32 ``[batch, ...]`` on the CPU, to compare logits on.

    Raises:
        StorageError: If the file cannot be read.
        ExportError: If it uses an operator that is not understood, which is named, or the logits differ by
            more than that.
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
    differences = (found - expected).abs().amax(1) / scale
    largest, median = float(differences.max()), float(differences.median())
    agreeing = float((found.argmax(1) == expected.argmax(1)).float().mean())
    rounding = {node.target for node in network.graph.nodes} & {quantize, as_half}
    kept = float((~_changed(expected, found, 2 * _STEP * scale)).float().mean())
    if quantize in rounding and not (median <= _STEP and kept >= _SAME_CLASS):
        raise ExportError(
            f"{session.name}: read as a network it differs from ONNX Runtime by {median:.2g} of the largest "
            f"logit on half of {len(images)} images, and {kept:.1%} keep their class: the runtime does "
            "not compute what the file says. Without VNNI instructions signed 8-bit weights saturate: "
            "quantise with reduce_range=True or unsigned weights."
        )
    allowed = _HALF if rounding else TOLERANCE
    if quantize not in rounding and not largest <= allowed:
        raise ExportError(
            f"{session.name}: read as a network it differs from ONNX Runtime by {largest:.3g} of the largest "
            f"logit; at most {allowed:g} is rounding. Attacks on it say nothing about the file."
        )
    return Twin(network, largest, agreeing, len(images), bool(rounding))


def _changed(expected: Tensor, found: Tensor, tie: float) -> Tensor:
    """Return which images get another class than ``expected`` gives by a lead of more than ``tie``."""
    other = expected.argmax(1) != found.argmax(1)
    lead = expected.amax(1) - expected.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
    return other & (lead > tie)
