"""MTL-IBP: the loss of an attack and the loss of interval bounds, added."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.training.bound_training import GrowingRadius, adversarial, scaled
from robustcompress.training.objectives import StepView


class MtlIbp(GrowingRadius):
    """Cross-entropy of adversarial images and of the worst logits by intervals, mixed.

    With ``m_j`` the interval bound of the margin ``f_y - f_j`` over all images of the threat and ``x'`` an
    image that raises the cross-entropy, found with the network in eval mode::

        loss = alpha * CE(-m, y) + (1 - alpha) * CE(f(x'), y)

    The first is never below the loss of the worst image and the second never above it: ``alpha`` moves
    between a bound that regularises and an attack that proves nothing. The adversarial images pass in train
    mode.

    Attributes:
        alpha: Share of the bound.
        steps: Gradient steps of the attack.
        step_size: Length of a step as a fraction of the attack's radius.
        attack_factor: Radius of the attack as a multiple of the threat's; above 1 the images learnt from may
            leave the threat.

    Source:
        De Palma et al. 2024, https://arxiv.org/abs/2305.13991, eq. 6; on CIFAR-10 the authors' code takes
        ``alpha`` 0.004, 8 steps of 0.25 and ``attack_factor`` 2.1 at 2/255, and ``alpha`` 0.5 and one step at
        8/255.
        Differs: both radii grow together; ``warmup`` and ``ramp`` are fractions of the stage; batch
        normalisation takes running statistics, see the base class; the L1 penalty on weights and the
        regularisation of the first epochs are not here.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    steps: int = Field(default=8, ge=1)
    step_size: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    attack_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        threat = self.threat_at(view)
        attack = scaled(threat, self.attack_factor)
        points = adversarial(view, images, labels, threat=attack, steps=self.steps, step_size=self.step_size)
        with torch.set_grad_enabled(self.alpha < 1 and torch.is_grad_enabled()):
            attacked = F.cross_entropy(view.learning(points), labels)
        boxed = propagate(trace_network(view.model), view.tensors, *threat.box(images))
        bounded = F.cross_entropy(-interval_margins(boxed, labels), labels)
        return self.alpha * bounded + (1 - self.alpha) * attacked
