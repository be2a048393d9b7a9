"""The same sparsity in every site: the paper's budget."""

from collections.abc import Sequence

from torch import Tensor

from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.patterns import Site


class Uniform(Budget):
    """Remove ``round(sparsity * units)`` of every site.

    Source:
        Sehwag et al. 2020 (HYDRA), https://arxiv.org/abs/2002.10509.
        Differs: rounds to the nearest count; the authors' code floors a float product, which keeps one
        weight too many in about one exact case in seven.
    """

    def removed(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[int]:
        return [min(round(sparsity * site.units), site.units - site.minimum_kept) for site in sites]
