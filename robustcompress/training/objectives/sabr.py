"""SABR: train on the bounds of a small box around an adversarial image."""

from pydantic import Field
from torch import Tensor

from robustcompress.robustness.bounds.interval import Propagation, interval_margins
from robustcompress.training.bound_training import BoundObjective, adversarial, scaled
from robustcompress.training.objectives import StepView


class Sabr(BoundObjective):
    """Cross-entropy of the worst logits, by intervals, of a small box within the threat's.

    The box has ``ratio`` times the radius. Its centre is an image that raises the cross-entropy, found with
    the network in eval mode, moved so far inwards that the box lies within the threat. A small box keeps
    intervals tight and the network accurate; bounds of the whole threat are then not trained on, and prove
    little by intervals: certify with tighter ones.

    Attributes:
        ratio: Radius of the box as a fraction of the threat's; 1 is interval bound propagation.
        steps: Gradient steps of the attack.
        step_size: Length of a step as a fraction of the radius.

    Source:
        Mueller et al. 2023, https://arxiv.org/abs/2210.04871, section 3; ``ratio`` 0.1 at 2/255 and 0.7 at
        8/255 on CIFAR-10 in the authors' code.
        Differs: the attack's steps have one length, where the authors shorten the last ones; ``warmup`` and
        ``ramp`` are fractions of the stage; batch normalisation takes running statistics, see the base
        class; the L1 penalty on weights and the shrinking of boxes in rectifiers are not here.
    """

    kappa_start: float = Field(default=0.0, ge=0, le=1)
    kappa_end: float = Field(default=0.0, ge=0, le=1)
    ratio: float = Field(default=0.7, gt=0, le=1)
    steps: int = Field(default=8, ge=1)
    step_size: float = Field(default=0.5, gt=0, allow_inf_nan=False)

    def box(self, view: StepView, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.threat_at(view)
        points = adversarial(view, images, labels, threat=whole, steps=self.steps, step_size=self.step_size)
        centre = scaled(whole, 1 - self.ratio).project(points, images)
        return scaled(whole, self.ratio).box(centre)

    def margins(self, propagation: Propagation, labels: Tensor, grown: float) -> Tensor:
        return interval_margins(propagation, labels)
