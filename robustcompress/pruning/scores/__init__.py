"""Scores: how important each unit is. The mask keeps the units of largest absolute score."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from robustcompress.member import Member, class_attribute

if TYPE_CHECKING:
    from robustcompress.pruning.scores.learned import Learned as Learned
    from robustcompress.pruning.scores.magnitude import Magnitude as Magnitude


class Score(Member, ABC):
    """Where scores come from."""

    family: ClassVar[str] = "robustcompress.pruning.scores"
    learns: ClassVar[bool]
    """Whether the prune stage trains the scores."""

    @abstractmethod
    def initial(self, saliency: Tensor, fan_in: int) -> Tensor:
        """Return the scores to begin with, shaped like ``saliency``.

        Args:
            saliency: Signed magnitude of each unit: the weights themselves, or norms of channels.
            fan_in: Inputs that one output of the layer sums over.
        """


def __getattr__(name: str) -> Any:
    return class_attribute(Score, name)
