"""What training on bounds has in common: a radius that grows, the loss of the worst logits, an attack.

Shapes: B batch, C classes.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from robustcompress.robustness.ascent import ascend
from robustcompress.robustness.bounds.interval import Propagation, propagate
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Moment, Objective, StepView


class GrowingRadius(Objective, ABC):
    """An objective whose radius begins at 0.

    It is 0 for the stage's first ``warmup``, then grows linearly with the step for ``ramp`` of the stage,
    then stays at the threat's.

    Bounds hold for the network in eval mode, so batch normalisation is the affine map of its running
    statistics, as in the network that is certified in the end. Images pass once in train mode, which moves
    these statistics before the bounds read them; no gradient goes through the statistics into the bounds.
    Bounds are computed in the images' type, whatever the precision of the rest. Around an L2 threat they
    cover the Linf box of the same radius, in which the ball lies.

    Attributes:
        warmup: Fraction of the stage, 0 to 1, before the radius begins to grow.
        ramp: Fraction of the stage, 0 to 1, over which it grows; 0 starts at the threat's radius.
    """

    warmup: float = Field(default=0.0, ge=0, lt=1)
    ramp: float = Field(default=0.6, ge=0, le=1)

    @model_validator(mode="after")
    def _ramp_ends_within_the_stage(self) -> Self:
        if self.warmup + self.ramp > 1:
            raise ValueError(
                f"warmup and ramp must be at most 1 together, or the radius never reaches the threat's; got "
                f"{self.warmup} and {self.ramp}"
            )
        return self

    def grown(self, moment: Moment) -> float:
        """Return which fraction of the threat's radius is trained on at ``moment``, 0 to 1."""
        progress = moment.step / moment.steps - self.warmup
        if self.ramp == 0:
            return float(progress >= 0)
        return min(1.0, max(0.0, progress / self.ramp))

    def threat_at(self, view: StepView) -> Threat:
        """Return the threat with the radius of this step."""
        return scaled(view.threat, self.grown(view.moment))


class BoundObjective(GrowingRadius, ABC):
    """Cross-entropy of the worst logits that bounds allow, mixed with that of the clean ones.

    With ``m_j`` a lower bound of the margin ``f_y - f_j`` over a box of images, and ``m_y = 0``::

        loss = kappa * CE(f(x), y) + (1 - kappa) * CE(-m, y)

    ``kappa`` moves with the radius from ``kappa_start`` to ``kappa_end``.

    Attributes:
        kappa_start: Share of the clean loss while the radius is 0.
        kappa_end: Share of the clean loss once the radius is the threat's.
    """

    kappa_start: float = Field(default=1.0, ge=0, le=1)
    kappa_end: float = Field(default=0.5, ge=0, le=1)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        grown = self.grown(view.moment)
        kappa = _between(self.kappa_start, self.kappa_end, grown)
        # Before the clean images: these move the statistics that an attack, in eval mode, reads.
        box = self.box(view, images, labels)
        clean = images.new_zeros(())
        # Without a share in the loss the clean images only move statistics, if there are any.
        if kappa > 0 or next(view.model.buffers(), None) is not None:
            with torch.set_grad_enabled(kappa > 0 and torch.is_grad_enabled()):
                clean = F.cross_entropy(view.learning(images), labels)
        worst_BC = -self.margins(propagate(trace_network(view.model), view.tensors, *box), labels, grown)
        return kappa * clean + (1 - kappa) * F.cross_entropy(worst_BC, labels)

    def box(self, view: StepView, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value of each pixel that bounds are computed for.

        Args:
            view: The network and the surroundings of this step.
            images: float ``[batch, ...]``.
            labels: int64 ``[batch]``.
        """
        return self.threat_at(view).box(images)

    @abstractmethod
    def margins(self, propagation: Propagation, labels: Tensor, grown: float) -> Tensor:
        """Return lower bounds ``[batch, classes]`` of the margins, 0 at the label.

        Args:
            propagation: Of the box around the images.
            labels: int64 ``[batch]``.
            grown: Fraction of the threat's radius that the box has.
        """


def scaled(threat: Threat, factor: float) -> Threat:
    """Return ``threat`` with its radius times ``factor``."""
    return threat.model_copy(update={"eps": factor * threat.eps})


def adversarial(
    view: StepView, images: Tensor, labels: Tensor, *, threat: Threat, steps: int, step_size: float
) -> Tensor:
    """Return images of ``threat`` that raise the cross-entropy: projected ascent from a random point.

    Args:
        view: Its frozen network is attacked.
        images: float ``[batch, ...]``.
        labels: int64 ``[batch]``.
        threat: Of the radius at hand; with radius 0 the images themselves are returned.
        steps: Gradient steps.
        step_size: Length of a step as a fraction of the radius.
    """
    if threat.eps == 0:
        return images
    return ascend(
        lambda points: F.cross_entropy(view.frozen(points), labels, reduction="sum"),
        images,
        threat=threat,
        steps=steps,
        step_size=step_size * threat.eps,
        start=replace(view, threat=threat).random_point(images),
    )


def _between(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction
