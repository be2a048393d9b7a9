"""Budgets: how the sparsity that was asked for is spread over the sites."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from robustcompress.member import Member, class_attribute
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.rounding import fit_kept

if TYPE_CHECKING:
    from robustcompress.pruning.budgets.erk import Erk as Erk
    from robustcompress.pruning.budgets.global_ import Global as Global
    from robustcompress.pruning.budgets.lamp import Lamp as Lamp
    from robustcompress.pruning.budgets.learned import Learned as Learned
    from robustcompress.pruning.budgets.uniform import Uniform as Uniform
    from robustcompress.pruning.costs import NetworkCosts


class Rates(nn.Module, ABC):
    """What a budget that learns trains: the fraction of each site that is kept."""

    @abstractmethod
    def fractions(self) -> Tensor:
        """Return the kept fraction of every site, differentiable, ``[sites]``."""

    @abstractmethod
    def counts(self, sites: Sequence[Site]) -> list[int]:
        """Return how many units of each site go now."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """Return what is added to the loss, a scalar."""

    @abstractmethod
    def after_epoch(self) -> None:
        """Run at the end of each epoch."""


class Budget(Member, ABC):
    """Decides how many units each site loses."""

    family: ClassVar[str] = "robustcompress.pruning.budgets"
    learns: ClassVar[bool] = False
    """Whether ``rates`` returns something, for which it needs the network's costs."""
    ranks: ClassVar[bool] = False
    """Whether the scores' values decide how much each site keeps."""

    def counts(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[int]:
        """Return for each site how many units go; sites whose pattern fixes it are not asked.

        Args:
            sites: In the network's order.
            scores: One tensor a site, shaped like it.
            sparsity: Fraction of all units to remove, 0 <= sparsity < 1.
        """
        free = [index for index, site in enumerate(sites) if site.fixed_removed is None]
        chosen = self.removed([sites[i] for i in free], [scores[i] for i in free], sparsity) if free else []
        found = [site.fixed_removed or 0 for site in sites]
        for index, removed in zip(free, chosen, strict=True):
            found[index] = removed
        return found

    def rates(
        self,
        sites: Sequence[Site],
        scores: Sequence[Tensor],
        sparsity: float,
        *,
        costs: "NetworkCosts | None" = None,
    ) -> Rates | None:
        """Return what learns beside the scores; nothing for a fixed budget.

        Args:
            sites: In the network's order.
            scores: One tensor a site, shaped like it.
            sparsity: Fraction of all units to remove, 0 <= sparsity < 1.
            costs: What the network costs as a function of what its sites keep.
        """
        return None

    def removed(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[int]:
        """Return for each site how many units go: ``round(sparsity * units)`` in all, over all sites.

        Every site keeps at least its minimum and a multiple of its granularity, or all; where that forbids
        the exact sum, it is as near as it can be.

        Args:
            sites: In the network's order.
            scores: One tensor a site, shaped like it.
            sparsity: Fraction of all units to remove, 0 <= sparsity < 1.
        """
        kept = fit_kept(self.wanted(sites, scores, sparsity), sites, units_kept(sites, sparsity))
        return [site.units - count for site, count in zip(sites, kept, strict=True)]

    @abstractmethod
    def wanted(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[float]:
        """Return for each site how many units should stay, before rounding.

        Args:
            sites: In the network's order.
            scores: One tensor a site, shaped like it.
            sparsity: Fraction of all units to remove, 0 <= sparsity < 1.
        """


def units_kept(sites: Sequence[Site], sparsity: float) -> int:
    """Return how many units of all ``sites`` together stay: ``round(sparsity * units)`` go."""
    units = sum(site.units for site in sites)
    return units - round(sparsity * units)


def __getattr__(name: str) -> Any:
    return class_attribute(Budget, name)
