"""Labelled batches from anyone's iterable, checked before they are judged."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from robustcompress.data import check_batch
from robustcompress.errors import ConfigError, DataError

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images, float ``[batch, ...]`` in [0, 1], and labels, int64 ``[batch]``."""


@dataclass(frozen=True)
class Batch:
    """Checked images and labels on the device where they are judged.

    Attributes:
        index: Position in the iterable, from 0.
        images: float32 or float64 ``[batch, ...]`` in [0, 1].
        labels: int64 ``[batch]``.
        total: How many batches there will be; 0 if the iterable does not tell.
    """

    index: int
    images: Tensor
    labels: Tensor
    total: int


def checked_batches(batches: Batches, *, device: torch.device | str, limit: int | None) -> Iterator[Batch]:
    """Yield the first ``limit`` images of ``batches``, in order; the last batch may be cut.

    Half-precision images become float32: an ``eps`` of 1/255 is too near their rounding.

    Raises:
        ConfigError: If ``limit`` is not positive.
        DataError: If there is no batch, or one is not a pair of right images and labels.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more, or None for all images; got {limit}.")
    total = len(batches) if isinstance(batches, Sized) else 0
    seen = 0
    for index, pair in enumerate(batches):
        images, labels = _as_pair(pair, index)
        if limit is not None:
            if index == 0:
                in_limit = -(-limit // max(1, len(images)))
                total = min(total, in_limit) if total else in_limit
            images, labels = images[: limit - seen], labels[: limit - seen]
        check_batch(images, labels, where=f"batch {index}")
        images = images.detach().to(device, torch.promote_types(images.dtype, torch.float32))
        yield Batch(index, images, labels.to(device), total)
        seen += len(images)
        if limit is not None and seen >= limit:
            return
    if seen == 0:
        raise DataError(
            "expected batches of (images, labels) to judge; got none. The iterable is empty, or it is an "
            "iterator that was used up before: pass a list, a DataLoader or a fresh iterator."
        )


def _as_pair(pair: object, index: int) -> tuple[Tensor, Tensor]:
    if isinstance(pair, tuple | list) and len(pair) == 2:
        images, labels = pair
        if isinstance(images, Tensor) and isinstance(labels, Tensor):
            return images, labels
    got = type(pair).__name__
    if isinstance(pair, tuple | list):
        got = f"{got} of ({', '.join(type(part).__name__ for part in pair)})"
    raise DataError(f"batch {index}: expected a pair of tensors (images, labels); got {got}.")
