"""RSLAD: the answers of a robust teacher take the place of labels, in the attack and in the loss.

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


class Rslad(Objective):
    """Divergence of the answers, under attack and on clean images, from the teacher's on clean images.

    With ``s`` the network, ``t`` the teacher and ``x'`` an image that raises ``KL(t(x) || s(x'))``, found
    with the network in eval mode::

        loss = adversarial_weight * KL(t(x) || s(x')) + clean_weight * KL(t(x) || s(x))

    No label is used. The network sees one clean and one adversarial batch in train mode, so that batch
    statistics move twice a step.

    Attributes:
        adversarial_weight: Of the divergence under attack.
        clean_weight: Of the divergence on clean images.
        steps: Gradient steps of the attack.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        start_noise: Standard deviation of the Gaussian noise that the attack starts with: where the network
            still equals its teacher, the divergence has no gradient on the image itself.

    Source:
        Zi et al. 2021, https://arxiv.org/abs/2108.07969, weights 5/6 and 1/6. The paper writes the arguments
        of KL the other way round; this is the divergence that the authors' code computes.
        Differs: the divergence is a sum over classes, as its definition; that code's loss takes the mean, C
        times less. The start is projected into the threat.
    """

    needs_teacher: ClassVar[bool] = True
    adversarial_weight: Number = Field(default=5 / 6, ge=0, allow_inf_nan=False)
    clean_weight: Number = Field(default=1 / 6, ge=0, allow_inf_nan=False)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    start_noise: float = Field(default=1e-3, gt=0, allow_inf_nan=False)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        target_BC = view.teacher_logits(images)
        soft_BC = target_BC.softmax(dim=1)
        adversarial = view.found(
            lambda: ascend(
                # The divergence without its constant, the target's entropy: the same gradient.
                lambda points: F.cross_entropy(view.frozen(points), soft_BC, reduction="sum"),
                images,
                threat=view.threat,
                steps=self.steps,
                step_size=step_length(self.step_size, threat=view.threat, steps=self.steps),
                start=view.normal(images).mul_(self.start_noise).add_(images),
            )
        )
        # After the attack: a forward in train mode moves the statistics that the attack's eval mode uses.
        clean = divergence(target_BC, view.learning(images))
        attacked = divergence(target_BC, view.learning(adversarial))
        return self.adversarial_weight * attacked + self.clean_weight * clean
