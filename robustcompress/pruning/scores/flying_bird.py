"""Masks that move while the remaining weights train (Flying Bird and Flying Bird+)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.pruning.scores import MovingScore

_OFTEN = 0.5  # share of the last epochs that has to show a trend


class FlyingBird(MovingScore):
    """Dynamic sparse robust training: drop the smallest weights, grow those with the largest gradients.

    The prune stage trains the weights that are there. Every ``update_steps`` each site drops a fraction of
    its kept weights, those of smallest ``|w|``, and grows as many of those that are gone, by the largest
    ``|dL/dw|`` in that step; a weight that was dropped this moment may come back with its value, others
    grow from 0. The fraction falls from ``fraction`` to 0 with a cosine over the stage. The budget says how
    many weights each site keeps: ``uniform`` or ``erk`` in the paper.

    ``plus`` adapts the number of weights to overfitting. After every epoch the gap between robust accuracy
    on training and on validation images is compared with that before, over the last ``plus_window``
    epochs: if it grew in at least half of them, the next exchange drops ``1 + plus_drop`` times as many; if
    robust accuracy on validation images did not rise in at least half of them, it grows ``1 + plus_grow``
    times as many. A site never keeps more than the sparsity asked for allows, nor less than ``plus_least``
    of that; the sparsity reached is in the result.

    Source:
        Chen et al. 2022, https://arxiv.org/abs/2202.09844, section 3.3; exchange as in Evci et al. 2020
        (RigL), https://arxiv.org/abs/1911.11134, section 3. Settings of ``plus`` from the authors' code.
        Differs: the fraction falls to 0, not to 0.005; the step of an exchange updates weights too. In
        ``plus``, both accuracies are measured after the epoch with the validation attack (there training
        accuracy is that of the passing batches); validation accuracy stands in for validation loss; one
        exchange follows each judgement (there all until the next); the number of weights is bounded.

    Attributes:
        update_steps: Steps from one exchange to the next.
        fraction: Of a site's kept weights that the first exchange would drop.
        start: The first masks: ``random``, or the weights of largest ``magnitude``.
        plus: Whether the number of weights follows the gap between training and validation.
        plus_after: Fraction of the stage before which it does not.
        plus_window: Epochs looked back.
        plus_drop: More dropped, as a fraction of what is exchanged.
        plus_grow: More grown, likewise.
        plus_least: Smallest fraction of the weights kept at first that a site comes to.
        plus_images: Training images on which robust accuracy is measured.
    """

    fraction: float = Field(default=0.5, gt=0, lt=1)
    start: Literal["random", "magnitude"] = "random"
    plus: bool = False
    plus_after: float = Field(default=0.5, ge=0, le=1)
    plus_window: int = Field(default=4, ge=1)
    plus_drop: float = Field(default=0.4, ge=0)
    plus_grow: float = Field(default=0.05, ge=0)
    plus_least: float = Field(default=0.5, gt=0, le=1)
    plus_images: int = Field(default=1000, ge=1)

    def initial(self, saliency: Tensor, fan_in: int) -> Tensor:
        return saliency.detach().clone()

    def first(self, saliency: Tensor, generator: torch.Generator) -> Tensor:
        if self.start == "magnitude":
            return saliency.detach().clone()
        return torch.rand(saliency.shape, generator=generator, dtype=torch.float64).to(saliency)

    def exchanged(self, progress: float) -> float:
        return self.fraction / 2 * (1 + math.cos(math.pi * progress))

    @property
    def remembered(self) -> int:
        return self.plus_window + 1 if self.plus else 0

    @property
    def judged_images(self) -> int:
        return self.plus_images

    @property
    def least(self) -> float:
        return self.plus_least if self.plus else 1.0

    def extra(self, accuracies: Sequence[tuple[float, float]], progress: float) -> tuple[float, float]:
        if not self.plus or progress < self.plus_after or len(accuracies) < 2:
            return 0.0, 0.0
        changes = list(pairwise(accuracies[-self.plus_window - 1 :]))
        widened = [after[0] - after[1] > before[0] - before[1] for before, after in changes]
        stalled = [after[1] <= before[1] for before, after in changes]
        return (
            self.plus_drop if sum(widened) >= _OFTEN * len(changes) else 0.0,
            self.plus_grow if sum(stalled) >= _OFTEN * len(changes) else 0.0,
        )
