"""Which scores are the largest, exactly and in linear time."""

import torch
from torch import Tensor

from robustcompress.errors import ConfigError

_DIGIT = 16  # bits of a number that one pass over all of them settles
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def keep_largest(scores: Tensor, removed: int) -> Tensor:
    """Return a bool mask, shaped like ``scores``, that drops exactly the ``removed`` smallest ``|scores|``.

    Found by a partition in linear time. Among equal scores at the threshold the later ones are kept.

    Raises:
        ConfigError: If ``removed`` is negative or exceeds the number of scores.
    """
    flat = scores.detach().abs().reshape(-1)
    if not 0 <= removed <= flat.numel():
        raise ConfigError(f"expected to remove 0 to {flat.numel()} of {flat.numel()} scores; got {removed}.")
    if removed == 0:
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if flat.is_cuda:
        return keep_largest_queued(flat, removed).reshape(scores.shape)
    threshold = flat.kthvalue(removed).values
    mask = flat > threshold
    missing = flat.numel() - removed - int(mask.sum())
    if missing:
        ties = (flat == threshold).nonzero().flatten()
        mask[ties[len(ties) - missing :]] = True
    return mask.reshape(scores.shape)


def keep_largest_queued(magnitudes: Tensor, removed: int) -> Tensor:
    """Return what :func:`keep_largest` does for ``[count]`` magnitudes, without waiting for the device.

    Args:
        magnitudes: 0 or more, ``[count]``.
        removed: 1 to count.
    """
    threshold = kth_smallest(magnitudes, removed)
    mask, ties = magnitudes > threshold, magnitudes == threshold
    missing = len(magnitudes) - removed - mask.sum()
    from_the_end = ties.sum() - ties.cumsum(0)
    return mask | (ties & (from_the_end < missing))


def kth_smallest(magnitudes: Tensor, k: int) -> Tensor:
    """Return the ``k``-th smallest (from 1) of ``[count]`` numbers of 0 or more, as a tensor of one.

    A radix selection whose passes all processors of a GPU share: torch's own ``kthvalue`` works on one
    long row with a single block there. The bits of numbers that are not negative sort as the numbers do.
    """
    width = magnitudes.element_size() * 8
    bits = magnitudes.contiguous().view(_INTEGERS[magnitudes.element_size()]).long()
    digits = 1 << _DIGIT
    prefix = torch.zeros((), dtype=torch.int64, device=bits.device)
    rank = torch.full((), k, dtype=torch.int64, device=bits.device)
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        # Numbers that differ above this digit are counted in a place of their own and forgotten.
        candidate = (bits >> shift >> _DIGIT) == prefix
        digit = torch.where(candidate, (bits >> shift) & (digits - 1), digits)
        counts = torch.zeros(digits + 1, dtype=torch.int64, device=bits.device)
        counts.scatter_add_(0, digit, torch.ones_like(digit))
        below = counts[:-1].cumsum(0)
        found = torch.searchsorted(below, rank.reshape(1)).reshape(())
        rank = rank - torch.where(found > 0, below[(found - 1).clamp_min(0)], 0)
        prefix = (prefix << _DIGIT) | found
    return prefix.to(_INTEGERS[magnitudes.element_size()]).reshape(1).view(magnitudes.dtype).reshape(())
