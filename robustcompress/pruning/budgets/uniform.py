"""The same sparsity in every site: the paper's budget."""

from collections.abc import Sequence

from torch import Tensor

from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.patterns import Site


class Uniform(Budget):
    """Remove ``sparsity * units`` of every site, rounded up or down so that the whole is exact.

    Source:
        Sehwag et al. 2020 (HYDRA), https://arxiv.org/abs/2002.10509.
        Differs: rounds so that ``round(sparsity * all units)`` go in all; the authors' code floors a float
        product in every layer, which keeps one weight too many in about one exact case in seven.
    """

    def wanted(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[float]:
        return [(1 - sparsity) * site.units for site in sites]
