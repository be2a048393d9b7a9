"""One threshold for scores that say what a unit is worth within its layer."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from robustcompress.pruning.budgets import Budget, units_kept
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.ranking import count_largest
from robustcompress.pruning.rounding import least_kept


class Lamp(Budget):
    """Keep the units whose LAMP scores are the largest of the whole network.

    The largest unit of every site has score 1, so no site is emptied. The first scores decide; those that
    learn compete within their site only.

    Source:
        Lee et al. 2021, https://arxiv.org/abs/2010.07611, equation 4: the square of a weight over the sum
        of the squares of all weights of its layer that are not smaller.
        Differs: of the scores' squares, which for the learned and the magnitude score give the same as the
        weights'; and for channels of their norms.
    """

    ranks: ClassVar[bool] = True

    def wanted(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[float]:
        least = [least_kept(site) for site in sites]
        worth = [lamp_scores(values) for values in scores]
        return [float(count) for count in count_largest(worth, least, units_kept(sites, sparsity))]


@torch.no_grad()
def lamp_scores(scores: Tensor) -> Tensor:
    """Return the LAMP score of every unit, float64, shaped like ``scores``; of equals the later is larger."""
    squares = scores.detach().double().square().reshape(-1)
    ascending, order = squares.sort(stable=True)
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    worth = torch.empty_like(squares)
    worth[order] = ascending / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
    return worth.reshape(scores.shape)
