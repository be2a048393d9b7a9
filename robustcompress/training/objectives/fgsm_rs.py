"""Fast adversarial training: one step from a random point, and a watch for its collapse."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.ascent import ascend
from robustcompress.training.collapse import CollapseWatch
from robustcompress.training.objectives import Objective, StepView


class FgsmRs(Objective):
    """Cross-entropy on images that one step from a random point of the ball reaches.

    It costs as much as two epochs of training without an adversary cost, and may fail at once: within an
    epoch the network learns to resist that one step and nothing else (catastrophic overfitting). So the
    validation attack, which has more steps, is run on held-out images after every epoch that is judged; once
    the accuracy under it has fallen by ``collapse_drop`` below the best so far, ``collapse`` says what
    happens: ``stop`` ends the stage with the selected epoch before that one, ``warn`` says so and goes on,
    ``ignore`` does neither.

    Attributes:
        alpha: Length of the step in multiples of the threat's radius.
        collapse: What to do about catastrophic overfitting.
        collapse_drop: Fall of the accuracy under attack that counts as one, 0 to 1.

    Source:
        Wong et al. 2020, https://arxiv.org/abs/2001.03994, Algorithm 3 and section 5.3 (early stopping: PGD
        on a training minibatch, a drop of 0.2).
        Differs: the step is taken on the network in eval mode; the watch looks at held-out images, and
        compares with the best epoch instead of the one before.
    """

    alpha: float = Field(default=1.25, gt=0, allow_inf_nan=False)
    collapse: Literal["stop", "warn", "ignore"] = "stop"
    collapse_drop: float = Field(default=0.2, gt=0, le=1)

    @property
    def collapse_watch(self) -> CollapseWatch | None:
        """What to look for after each epoch."""
        if self.collapse == "ignore":
            return None
        return CollapseWatch(drop=self.collapse_drop, stop=self.collapse == "stop")

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = view.found(lambda: self._attack(view, images, labels))
        return F.cross_entropy(view.learning(adversarial), labels)

    def _attack(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        return ascend(
            lambda points: F.cross_entropy(view.frozen(points), labels, reduction="sum"),
            images,
            threat=view.threat,
            steps=1,
            step_size=self.alpha * view.threat.eps,
            start=view.random_point(images),
        )
