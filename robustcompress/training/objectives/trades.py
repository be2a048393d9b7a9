"""TRADES: right on the image, and the same around it.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.ascent import ascend, step_length
from robustcompress.training.objectives import Objective, StepView


class Trades(Objective):
    """Cross-entropy on the images plus ``beta`` times the divergence to images nearby.

    The images nearby are those that raise ``KL(f(x) || f(x'))``, found with the network in eval mode. The
    gradient of the loss goes through both branches. The network sees one clean and one adversarial batch
    in train mode, so that batch statistics move twice a step. HYDRA's code shows it the clean batch three
    times: before the attack, and on both sides of the adversarial one; ``bn_updates: hydra`` does as it does.

    Attributes:
        beta: Weight of the divergence: accuracy against robustness.
        steps: Gradient steps of the attack.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        start_noise: Standard deviation of the Gaussian noise that the attack starts with: on the image
            itself the divergence is at its minimum and has no gradient.

    Source:
        Zhang et al. 2019, https://arxiv.org/abs/1901.08573, eq. 5 and Algorithm 1; HYDRA's objective
        (Sehwag et al. 2020, https://arxiv.org/abs/2002.10509).
        Differs: the start is projected into the threat, and L2 steps are those of projected ascent too.
    """

    beta: float = Field(default=6.0, ge=0, allow_inf_nan=False)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    start_noise: float = Field(default=1e-3, gt=0, allow_inf_nan=False)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        view.repeat_for_statistics(images, 1)
        adversarial = view.found(lambda: self._attack(view, images))
        # After the attack: a forward in train mode moves the statistics that the attack's eval mode uses.
        clean_BC = view.learning(images)
        adversarial_BC = view.learning(adversarial)
        view.repeat_for_statistics(images, 1)
        divergence = F.kl_div(
            F.log_softmax(adversarial_BC, dim=1),
            F.log_softmax(clean_BC, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return F.cross_entropy(clean_BC, labels) + self.beta * divergence

    def _attack(self, view: StepView, images: Tensor) -> Tensor:
        with torch.no_grad():
            target_BC = view.frozen(images).softmax(dim=1)
        noise = view.normal(images)
        return ascend(
            # The divergence without its constant, the target's entropy: the same gradient, fewer operations.
            lambda points: F.cross_entropy(view.frozen(points), target_BC, reduction="sum"),
            images,
            threat=view.threat,
            steps=self.steps,
            step_size=step_length(self.step_size, threat=view.threat, steps=self.steps),
            start=noise.mul_(self.start_noise).add_(images),
        )
