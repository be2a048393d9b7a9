"""ARD: under attack the network answers as a robust teacher answers on the clean image.

Shapes: B batch, C classes.
"""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.ascent import ascend, step_length
from robustcompress.training.distillation import divergence
from robustcompress.training.objectives import Objective, StepView


class Ard(Objective):
    """Divergence of the answers under attack from the teacher's on the clean images, and cross-entropy.

    With ``s`` the network, ``t`` the teacher, both softmax of logits over the temperature T in the first
    term, and ``x'`` an image that raises the network's own cross-entropy, found in eval mode::

        loss = alpha * T^2 * KL(t(x) || s(x')) + (1 - alpha) * CE(s(x), y)

    A high temperature compares logits, not classes. With ``alpha`` 1 no label is used outside the attack, and
    the network sees one batch in train mode a step; otherwise two, so that batch statistics move twice.

    Attributes:
        alpha: Share of the teacher, 0 to 1.
        temperature: T.
        steps: Gradient steps of the attack.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        random_start: Start from a uniform point of the ball; otherwise from the image itself.

    Source:
        Goldblum et al. 2020, https://arxiv.org/abs/1905.09747; ``alpha`` 1 and T 30 as in the authors' code.
        Differs: the divergence is a sum over classes, as its definition; that code takes the mean, C times
        less. The attack runs on the network in eval mode. Attack and cross-entropy know no temperature, as
        in that code.
    """

    needs_teacher: ClassVar[bool] = True
    alpha: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    random_start: bool = True

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        target_BC = view.teacher_logits(images)
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
        taught = divergence(target_BC, view.learning(adversarial), temperature=self.temperature)
        weighted = self.alpha * self.temperature**2 * taught
        if self.alpha == 1:
            return weighted
        return weighted + (1 - self.alpha) * F.cross_entropy(view.learning(images), labels)
