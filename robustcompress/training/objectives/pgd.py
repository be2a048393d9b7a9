"""Adversarial training with projected gradient descent."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.ascent import ascend, step_length
from robustcompress.training.objectives import Objective, StepView


class Pgd(Objective):
    """Cross-entropy on images that raise the cross-entropy.

    Attributes:
        steps: Gradient steps of the attack.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        random_start: Start from a uniform point of the ball; otherwise from the image itself.

    Source:
        Madry et al. 2018, https://arxiv.org/abs/1706.06083, eq. 2.1.
        Differs: the attack runs on the network in eval mode, so that it moves no batch statistics.
    """

    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    random_start: bool = True

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = view.found(
            lambda: ascend(
                lambda points: F.cross_entropy(view.frozen(points), labels, reduction="sum"),
                images,
                threat=view.threat,
                steps=self.steps,
                step_size=step_length(self.step_size, threat=view.threat, steps=self.steps),
                start=view.random_point(images) if self.random_start else images,
            )
        )
        return F.cross_entropy(view.learning(adversarial), labels)
