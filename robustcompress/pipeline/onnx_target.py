"""Anybody's ONNX file as a target: its session, and the network that attacks follow."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import Twin, read_twin
from robustcompress.robustness.target import Target


def onnx_target(path: Path, images: Tensor) -> tuple[Target, Twin | None]:
    """Return a file's session with the differentiable twin that is read from the file, and what proves it.

    A file whose graph is not understood, or does not compute what the runtime does, gets none, and the target
    says why. A file that fixes its batch size takes any number of images: they are filled up.

    Args:
        path: An ``.onnx`` file.
        images: float32 ``[batch, ...]`` on the CPU, to compare session and twin on.

    Raises:
        StorageError: If the file is missing or cannot be read.
        DataError: If the images are not of its shape.
        ExportError: If ONNX Runtime cannot load or run it.
    """
    session = OnnxSession(path)
    size = session.input_shape[0]
    if size is None:
        session(images[:1])  # whatever does not fit is an error, and no reason to attack without gradients
        try:
            twin = read_twin(path, session, images)
        except ExportError as error:
            return Target(session, None, str(error).rstrip(".")), None
        return Target(session, twin.network), twin
    predict = in_batches_of(size, session)
    predict(images[:1])
    groups = _filled(images, size).split(size)
    try:
        twins = [read_twin(path, session, group) for group in groups]
    except ExportError as error:
        return Target(predict, None, str(error).rstrip(".")), None
    twin = Twin(
        InBatchesOf(size, twins[0].network).eval(),
        max(item.largest_difference for item in twins),
        fmean(item.agreeing for item in twins),
        sum(item.images for item in twins),
        twins[0].rounded,
    )
    return Target(predict, twin.network), twin


def in_batches_of(size: int, predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that gives ``predict`` exactly ``size`` images at once, the last ones filled up."""
    return lambda images: torch.cat([predict(part) for part in _filled(images, size).split(size)])[
        : len(images)
    ]


class InBatchesOf(nn.Module):
    """A network that is given exactly ``size`` images at once, the last ones filled up."""

    def __init__(self, size: int, network: nn.Module) -> None:
        super().__init__()
        self.size = size
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of images ``[batch, ...]``."""
        return in_batches_of(self.size, self.network)(images)


def _filled(images: Tensor, size: int) -> Tensor:
    missing = -len(images) % size
    if not missing:
        return images
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
