"""One threshold for the scores of all sites."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from robustcompress.pruning.budgets import Budget, units_kept
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.ranking import count_largest
from robustcompress.pruning.rounding import least_kept


class Global(Budget):
    """Keep the units whose absolute scores are the largest of the whole network.

    The first scores decide: those that learn compete within their site only.

    Attributes:
        scale: ``none`` compares scores as they are; ``rms`` divides each site's by their root mean square
            first, so that a layer of large weights does not win by them.

    Source:
        Han et al. 2015, https://arxiv.org/abs/1506.02626, with one threshold (Frankle & Carbin 2019,
        https://arxiv.org/abs/1803.03635, section 4).
        Differs: every site keeps its minimum.
    """

    ranks: ClassVar[bool] = True
    scale: Literal["none", "rms"] = "none"

    def wanted(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[float]:
        magnitudes = [values.detach().abs() for values in scores]
        if self.scale == "rms":
            magnitudes = [values / _root_mean_square(values) for values in magnitudes]
        least = [least_kept(site) for site in sites]
        return [float(count) for count in count_largest(magnitudes, least, units_kept(sites, sparsity))]


def _root_mean_square(values: Tensor) -> Tensor:
    found = values.double().square().mean().sqrt()
    return found.clamp_min(1e-30).to(values.dtype)
