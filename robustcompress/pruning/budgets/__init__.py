"""Budgets: how the sparsity that was asked for is spread over the sites."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from robustcompress.member import Member, class_attribute
from robustcompress.pruning.patterns import Site

if TYPE_CHECKING:
    from robustcompress.pruning.budgets.uniform import Uniform as Uniform


class Budget(Member, ABC):
    """Decides how many units each site loses."""

    family: ClassVar[str] = "robustcompress.pruning.budgets"

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
