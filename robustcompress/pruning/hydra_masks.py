"""The masks that HYDRA's own code makes of its scores."""

import torch
from torch import Tensor

from robustcompress.errors import ConfigError, StorageError


def hydra_mask(scores: Tensor, k: float) -> Tensor:
    """Return the mask (bool, True where kept) of one layer, to the weight as the reference has it.

    Args:
        scores: The layer's ``popup_scores``.
        k: Fraction kept, 0 < k <= 1, as the run was given it: the number itself counts, since the
            reference computes ``int((1 - k) * size)`` in floating point.

    Raises:
        ConfigError: If ``k`` is out of range.
        StorageError: If a score is not finite.

    Source:
        Sehwag et al. 2020, https://arxiv.org/abs/2002.10509, the authors' code.
        Of equal scores at the threshold those go that torch's unstable sort happens to put first, here as
        there: on another device or with another version of torch the reference may take the other ones.
    """
    if not 0 < k <= 1:
        raise ConfigError(
            f"k is the fraction of weights kept, above 0 and at most 1; got {k}. 0.1 keeps 10%."
        )
    if not bool(torch.isfinite(scores).all()):
        raise StorageError("popup_scores must be finite; found NaN or infinity. The run diverged.")
    removed = int((1 - k) * scores.numel())  # not rounded: one weight too many stays where 1 - k is inexact
    order = scores.detach().abs().flatten().sort().indices
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[order[:removed]] = False
    return mask.reshape(scores.shape)
