"""Free adversarial training: one backward pass serves the weights and the perturbation."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Objective, StepView


class Free(Objective):
    """Cross-entropy on images moved by a perturbation that is never made anew.

    Each minibatch is trained on ``replays`` times in a row. Every replay is an optimizer step at the images
    plus the perturbation; its one backward pass gives the weights their gradient and moves the perturbation
    uphill by ``alpha * eps``. The perturbation, one for each row of a batch, is handed from replay to replay
    and from minibatch to minibatch; it begins at zero, and a smaller batch uses and moves its first rows
    only. A stage of ``epochs`` passes ``epochs / replays`` times over the images, rounded up: it costs what
    so many epochs without an adversary cost.

    Attributes:
        replays: Steps on each minibatch, m in the paper.
        alpha: Length of the perturbation's step in multiples of the threat's radius.

    Source:
        Shafahi et al. 2019, https://arxiv.org/abs/1904.12843, Algorithm 1; with 4 replays, as on ImageNet
        there and in HYDRA (Sehwag et al. 2020, https://arxiv.org/abs/2002.10509).
        Differs: L2 threats take steps along the gradient, and the ball's projection.
    """

    carries: ClassVar[bool] = True
    replays: int = Field(default=4, ge=1)
    alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def steps_a_batch(self) -> int:
        """Steps on each minibatch."""
        return self.replays

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        carried = torch.zeros_like(images) if view.carried is None else view.carried
        threat = view.threat
        perturbation = carried.detach().clone().requires_grad_()

        def climb(gradient: Tensor) -> None:
            # While the backward pass is under way: the weights' gradient belongs to the images before.
            with torch.no_grad():
                moved = carried + self.alpha * threat.eps * threat.steepest(gradient)
                carried.copy_(_within(moved, threat))

        perturbation.register_hook(climb)
        points = (images + perturbation).clamp(threat.lower, threat.upper)
        return F.cross_entropy(view.learning(points), labels)


def _within(perturbation: Tensor, threat: Threat) -> Tensor:
    """Return the nearest perturbation in the threat's ball; the pixel range is another matter."""
    if threat.norm == "linf":
        return perturbation.clamp(-threat.eps, threat.eps)
    return perturbation * (threat.eps / threat.lengths(perturbation).clamp_min(1e-12)).clamp_max(1.0)
