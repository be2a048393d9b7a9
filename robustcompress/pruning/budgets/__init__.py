"""Budgets: how the sparsity that was asked for is spread over the sites."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from robustcompress.member import Member, class_attribute
from robustcompress.pruning.patterns import Site

if TYPE_CHECKING:
    from robustcompress.pruning.budgets.uniform import Uniform as Uniform


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

    def rates(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> Rates | None:
        """Return what learns beside the scores; nothing for a fixed budget."""
        return None

    @abstractmethod
    def removed(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[int]:
        """Return for each site how many units go; never more than ``units - minimum_kept``.

        Args:
            sites: In the network's order.
            scores: One tensor a site, shaped like it.
            sparsity: Fraction of all units to remove, 0 <= sparsity < 1.
        """


def __getattr__(name: str) -> Any:
    return class_attribute(Budget, name)
