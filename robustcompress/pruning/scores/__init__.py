"""Scores: how important each unit is. The mask keeps the units of largest absolute score."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.member import Member, class_attribute

if TYPE_CHECKING:
    from robustcompress.pruning.scores.flying_bird import FlyingBird as FlyingBird
    from robustcompress.pruning.scores.learned import Learned as Learned
    from robustcompress.pruning.scores.magnitude import Magnitude as Magnitude
    from robustcompress.pruning.scores.snip import Snip as Snip
    from robustcompress.pruning.scores.taylor import Taylor as Taylor


class Score(Member, ABC):
    """Where scores come from."""

    family: ClassVar[str] = "robustcompress.pruning.scores"
    learns: ClassVar[bool]
    """Whether the prune stage trains the scores."""
    moves: ClassVar[bool] = False
    """Whether the prune stage trains weights while masks move; such a score is a ``MovingScore``."""

    @abstractmethod
    def initial(self, saliency: Tensor, fan_in: int) -> Tensor:
        """Return the scores to begin with, shaped like ``saliency``.

        Args:
            saliency: Signed magnitude of each unit: the weights themselves, or norms of channels.
            fan_in: Inputs that one output of the layer sums over.
        """


class GradientScore(Score):
    """Scores that come from the gradients of the units' gates under the training objective; nothing learns.

    A gate multiplies a unit and is 1. Its gradient is measured in the dense network under the prune stage's
    objective, attack included. Until then magnitudes stand in.

    Attributes:
        batches: Training batches that it is measured on.
    """

    learns: ClassVar[bool] = False
    batches: int = Field(default=10, ge=1)

    def initial(self, saliency: Tensor, fan_in: int) -> Tensor:
        return saliency.detach().clone()

    @abstractmethod
    def from_gradients(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        """Return the scores of one site, shaped like the arguments.

        Args:
            mean: Of dL/dgate of each unit over the batches.
            mean_square: Of its square.
        """


class MovingScore(Score):
    """Masks that move while weights train: removed weights take the places of weak ones.

    Attributes:
        update_steps: Steps from one exchange to the next.
    """

    learns: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    update_steps: int = Field(default=100, ge=1)

    @property
    def remembered(self) -> int:
        """How many of the last epochs' accuracies ``extra`` is given; 0 if it needs none."""
        return 0

    @property
    def judged_images(self) -> int:
        """Training images on which those accuracies are measured."""
        return 1000

    @abstractmethod
    def first(self, saliency: Tensor, generator: torch.Generator) -> Tensor:
        """Return scores whose largest are the first masks, shaped like ``saliency``.

        Args:
            saliency: The weights.
            generator: On the CPU.
        """

    @abstractmethod
    def exchanged(self, progress: float) -> float:
        """Return which fraction of a site's kept weights goes for others, at a fraction of the stage."""

    @abstractmethod
    def extra(self, accuracies: Sequence[tuple[float, float]], progress: float) -> tuple[float, float]:
        """Return how much more is dropped, and how much more grown, as fractions of what is exchanged.

        Args:
            accuracies: Robust accuracies on training and on validation images after each of the last epochs.
            progress: Fraction of the stage, 0 to 1.
        """

    @property
    def least(self) -> float:
        """Smallest fraction of the weights kept at first that a site may come to."""
        return 1.0


def __getattr__(name: str) -> Any:
    return class_attribute(Score, name)
