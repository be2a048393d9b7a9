"""Prove on images that an exported file computes what its network computes."""

import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.session import OnnxSession

TOLERANCE = 1e-4
"""Largest difference of a logit, over the largest logit, that float32 arithmetic is allowed."""


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits ``[batch, classes]`` of ``network`` on ``images``.

    Raises:
        ExportError: If it cannot be called or returns something else or no finite numbers.
    """
    try:
        with torch.no_grad():
            logits: object = network(images)
    except Exception as error:  # whatever the user's own code raises
        raise ExportError(
            f"the network cannot be called with images {list(images.shape)}, float32 on the CPU: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ExportError(f"the network must return logits [{len(images)}, classes]; got {got}.")
    if not bool(logits.isfinite().all()):
        worst = int((~logits.isfinite()).any(1).nonzero()[0])
        raise ExportError(
            f"the network's own logits of image {worst} are not finite: nothing to compare with."
        )
    return logits.float()


def largest_difference(expected: Tensor, found: Tensor, *, where: str) -> float:
    """Return the largest difference of two logits over the largest logit expected.

    Args:
        expected: float32 ``[batch, classes]``, finite.
        found: The same of the exported file.
        where: Names file and batch size in errors.

    Raises:
        ExportError: If it exceeds :data:`TOLERANCE`, or a class changes whose logit leads by more than
            that; names the worst image.
    """
    if expected.shape != found.shape:
        raise ExportError(f"{where}: expected logits {list(expected.shape)}; got {list(found.shape)}.")
    scale = float(expected.abs().max()) or 1.0
    differences = (expected - found).abs().amax(1) / scale
    differences = torch.where(differences.isnan(), torch.inf, differences)
    worst = int(differences.argmax())
    difference = float(differences[worst])
    if difference > TOLERANCE:
        raise ExportError(
            f"{where}: the file is not the network: image {worst} differs by {difference:.3g} of the largest "
            f"logit; at most {TOLERANCE:g} is rounding. Nothing was written. Export in another style or "
            "opset, or report the network that did this."
        )
    if expected.shape[1] > 1:
        first, second = expected.topk(2, dim=1).values.unbind(1)
        changed = (expected.argmax(1) != found.argmax(1)) & (first - second >= TOLERANCE * scale)
        if bool(changed.any()):
            image = int(changed.nonzero()[0])
            raise ExportError(
                f"{where}: the file is not the network: image {image} changes from class "
                f"{int(expected[image].argmax())} to {int(found[image].argmax())}. Nothing was written."
            )
    return difference


def prove_equal(expected: Tensor, model: bytes, images: Tensor, *, name: str) -> float:
    """Return the largest difference between a network's logits and an ONNX file's, over the largest logit.

    The file runs on each image alone and on all of them at once.

    Args:
        expected: Logits of the network, float32 ``[batch, classes]``.
        model: The file's bytes.
        images: float32 ``[batch, ...]`` on the CPU.
        name: Of the file, for errors.

    Raises:
        ExportError: If file and network differ by more than rounding.
    """
    differences: list[float] = []
    for size in (len(images), 1):
        found = OnnxSession(model, batch_size=size, name=name)(images)
        differences.append(largest_difference(expected, found, where=f"{name}, batch size {size}"))
    return max(differences)
