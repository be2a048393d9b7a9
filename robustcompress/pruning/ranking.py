"""How many units each site keeps where all units compete with one another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcompress.pruning.selection import keep_largest


def count_largest(magnitudes: Sequence[Tensor], least: Sequence[int], total: int) -> list[int]:
    """Return how many of the ``total`` largest magnitudes lie in each site.

    The ``least[i]`` largest of every site are kept whatever they are; the others compete.

    Args:
        magnitudes: 0 or more, one tensor a site, of any shape.
        least: For each site at most its size.
        total: To keep; at least the sum of ``least`` are kept.
    """
    competing: list[Tensor] = []
    for values, count in zip(magnitudes, least, strict=True):
        flat = values.detach().reshape(-1).clone()
        if count:
            flat[keep_largest(flat, flat.numel() - count)] = float("inf")
        competing.append(flat)
    sizes = [len(flat) for flat in competing]
    removed = sum(sizes) - max(total, sum(least))
    kept = keep_largest(torch.cat(competing), max(0, removed))
    return [int(part.sum()) for part in kept.split(sizes)]
