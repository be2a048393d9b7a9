"""Do the same images give the same logits?"""

import torch
from torch import Tensor

from robustcompress.robustness.predictor import Predictor

_CALLS = 3
_ALONE = 16
_ROUNDING_OF_CALLS = 1e-4
_ROUNDING_OF_BATCHES = 1e-2
"""Shares of the logits' spread. A batch of another size may run through other kernels, and where values are
quantised, rounding may move one by a whole level."""


@torch.no_grad()
def changes_by_call(predictor: Predictor, images: Tensor) -> Tensor:
    """Return which images get other logits when the call is repeated, bool ``[batch]``."""
    first = predictor(images)
    changed = torch.zeros(len(images), dtype=torch.bool, device=first.device)
    for _ in range(_CALLS - 1):
        changed |= _furthest(first, predictor(images)) > _ROUNDING_OF_CALLS * _spread(first)
    return changed.to(images.device)


@torch.no_grad()
def changes_by_batch(predictor: Predictor, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return which images get other logits in other company, bool ``[batch]``.

    All are judged once more in another order, the batch halved, and the first few of them each alone.

    Args:
        predictor: Who is judged.
        images: float ``[batch, ...]``.
        generator: Shuffles; on the images' device.
    """
    together = predictor(images)
    order = torch.randperm(len(images), generator=generator, device=images.device)
    shuffled = torch.cat([predictor(images[part]) for part in order.split(-(-len(order) // 2))])
    apart = shuffled[order.argsort().to(shuffled.device)]
    moved = _furthest(together, apart)
    for row in range(min(_ALONE, len(images))):
        alone = _furthest(together[row : row + 1], predictor(images[row : row + 1]))
        moved[row] = torch.maximum(moved[row], alone[0])
    return (moved > _ROUNDING_OF_BATCHES * _spread(together)).to(images.device)


def _furthest(first: Tensor, second: Tensor) -> Tensor:
    """Return by how much the logit that differs most differs, ``[batch]``."""
    return (first - second).abs().amax(1)


def _spread(logits: Tensor) -> Tensor:
    """Return how far an image's largest logit lies above its smallest, on average."""
    return (logits.amax(1) - logits.amin(1)).mean()
