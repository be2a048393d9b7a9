"""Labelled images, in memory or in files: what data sets give and what training, attacks and exports take."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from robustcompress.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with a class each, kept as bytes.

    Attributes:
        images: uint8 ``[count, channels, height, width]``.
        labels: int64 ``[count]``, 0 to ``len(classes) - 1``.
        classes: Names of the classes.
        name: Where the images come from, for reports.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{self.name}: images must be uint8 [count, channels, height, width]; "
                f"got {self.images.dtype} {list(self.images.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"{self.name}: labels must be int64 [{len(self.images)}]; "
                f"got {self.labels.dtype} {list(self.labels.shape)}."
            )
        if len(self.labels) == 0:
            raise DataError(f"{self.name}: holds no images.")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"{self.name}: labels must be 0 to {len(self.classes) - 1}; found {low} to {high}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def select(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """Return the images at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same set with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (float32 images in [0, 1], labels) in order."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield as_pixels(self.images[start:stop]), self.labels[start:stop]

    def fingerprint(self) -> str:
        """Return the SHA-256 of shapes, pixels and labels, in hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images of one size with a class each, in files that are decoded when an image is asked for.

    Attributes:
        folder: What ``paths`` are relative to.
        paths: Bytes ``[count]``: one array, where a list of a million paths would be copied into every
            process that counts its references.
        labels: int64 ``[count]``, 0 to ``len(classes) - 1``.
        classes: Names of the classes.
        name: Where the images come from, for reports.
        shape: Channels, height and width of every image.
        decode: Returns the pixels of a file, uint8 ``[channels, height, width]``. Can be pickled.
    """

    folder: Path
    paths: NDArray[np.bytes_]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    shape: tuple[int, int, int]
    decode: Callable[[Path], NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return where image ``index`` lies."""
        return self.folder / os.fsdecode(bytes(self.paths[index]))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return pixels, uint8 ``[channels, height, width]``, and class of one image.

        Raises:
            DataError: If the file is damaged or its image has another size than ``shape``.
        """
        pixels = self.decode(self.path(index))
        if pixels.shape != self.shape:
            raise DataError(
                f"{self.path(index)} is {pixels.shape[1]}x{pixels.shape[2]} but {self.path(0)} is "
                f"{self.shape[1]}x{self.shape[2]}. Set image_size to bring all images to one size."
            )
        return torch.tensor(pixels), int(self.labels[index])

    def select(self, indices: Tensor | Sequence[int]) -> "ImageFiles":
        """Return the images at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, paths=self.paths[index.numpy()], labels=self.labels[index])

    def fingerprint(self) -> str:
        """Return the SHA-256 of shape, names, sizes of files and labels, in hexadecimal.

        Raises:
            DataError: If a file is missing.
        """
        digest = hashlib.sha256(repr(self.shape).encode())
        for index in range(len(self)):
            path = self.path(index)
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path}: expected an image file; got {error.strerror}.") from error
            digest.update(bytes(self.paths[index]) + b"\0%d\0" % size)
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def as_pixels(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255.0)


def stratified_split(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that each class gives the same fraction to the second part.

    Args:
        labels: int64 ``[count]``.
        fraction: Share of each class in the second part, in (0, 1); at least one image of each class
            that has two.
        seed: Chooses which images.

    Returns:
        Sorted int64 indices of the first and of the second part.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the validation fraction must be in (0, 1); got {fraction}.")
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        take = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out[members[torch.randperm(len(members), generator=generator)[:take]]] = True
    if not bool(held_out.any()):
        raise DataError("too few images to hold any out for validation; pass validation data yourself.")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def check_batch(images: Tensor, labels: Tensor, *, where: str) -> None:
    """Check one batch of floating-point images and labels.

    Raises:
        DataError: If images are not floating point [batch, channels, height, width] in [0, 1], or
            labels are not int64 ``[batch]`` of 0 or more.
    """
    if not images.is_floating_point() or images.ndim < 2 or len(images) == 0:
        raise DataError(
            f"{where}: images must be floating point [batch, channels, height, width]; "
            f"got {images.dtype} {list(images.shape)}."
        )
    low, high = (float(end) for end in torch.aminmax(images.detach()))
    if not (low >= 0.0 and high <= 1.0):
        raise DataError(
            f"{where}: pixels must be in [0, 1]; found {low:.4g} to {high:.4g}. Put normalisation inside "
            "the network with robustcompress.Normalized(model, mean, std)."
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: labels must be int64 [{len(images)}]; got {labels.dtype} {list(labels.shape)}."
        )
    if int(labels.min()) < 0:
        raise DataError(f"{where}: labels must be 0 or more; found {int(labels.min())}.")


def check_logits(logits: object, labels: Tensor, *, where: str) -> Tensor:
    """Return ``logits`` if they are [batch, classes] and every label names one of the classes.

    Raises:
        DataError: If the network's output has another shape or a label is out of range.
    """
    return check_classes(logits, len(labels), int(labels.max()), where=where)


def check_classes(logits: object, count: int, highest: int, *, where: str) -> Tensor:
    """Return ``logits`` if they are ``[count, classes]`` and ``highest`` is one of the classes.

    Unlike :func:`check_logits` it does not wait for the device.

    Raises:
        DataError: If not.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(f"{where}: the network must return logits [batch, classes]; got {got}.")
    if highest >= logits.shape[1]:
        raise DataError(
            f"{where}: label {highest} is out of range: the network has {logits.shape[1]} classes "
            f"(0 to {logits.shape[1] - 1})."
        )
    return logits
