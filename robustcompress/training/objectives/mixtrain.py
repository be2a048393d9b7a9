"""MixTrain: bounds by symbolic intervals, for a few images of each batch."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.bounds.symbolic import symbolic_margins_of
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.training.bound_training import GrowingRadius
from robustcompress.training.objectives import Moment, StepView


class MixTrain(GrowingRadius):
    """Cross-entropy on the images plus that of the worst logits of a few of them.

    With ``probability`` a step adds ``w`` times the mean, over ``samples`` images drawn from the batch, of
    the cross-entropy of the worst logits that symbolic intervals allow: tight bounds for few images in place
    of loose ones for all (stochastic approximation). The weight ``w`` moves from the clean loss to the bounds
    as training goes on (dynamic mixing): it starts at ``weight``, is multiplied by ``growth`` whenever
    another ``every`` of the stage has passed since the radius reached the threat's, and stops at ``largest``.

    Draws are made for the whole batch, so that its loss does not depend on how it is divided over parts and
    processes.

    Attributes:
        samples: Images a step whose bounds are trained on.
        probability: That a step trains on bounds at all.
        weight: Of the bounds' loss at first.
        growth: Factor of the weight.
        every: Fraction of the stage after which it grows again.
        largest: Weight at which it stops.

    Source:
        Wang et al. 2018, https://arxiv.org/abs/1811.02625, as in HYDRA (Sehwag et al. 2020,
        https://arxiv.org/abs/2002.10509): ``w = min(0.1 * 2.5^floor(max(0, epoch - L) / 5), 50)``, the radius
        growing over the first L = 15 of 100 epochs, one image a step for large networks and five for small.
        Differs: the weight follows HYDRA's schedule, not the sizes of the losses; radius and weight go by the
        step, not by the epoch, in fractions of the stage; every margin takes the larger of the symbolic and
        of the interval bound.
    """

    ramp: float = Field(default=0.15, ge=0, le=1)
    samples: int = Field(default=1, ge=1)
    probability: float = Field(default=0.8, ge=0, le=1)
    weight: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    growth: float = Field(default=2.5, ge=1, allow_inf_nan=False)
    every: float = Field(default=0.05, gt=0, le=1)
    largest: float = Field(default=50.0, ge=0, allow_inf_nan=False)

    def weight_at(self, moment: Moment) -> float:
        """Return the weight of the bounds' loss."""
        since = moment.step / moment.steps - self.warmup - self.ramp
        # A difference of fractions may fall short of the multiple that it is.
        times = math.floor(max(0.0, since) / self.every + 1e-9)
        if self.weight == 0 or self.growth == 1:
            return min(self.weight, self.largest)
        enough = math.log(max(self.largest / self.weight, 1.0)) / math.log(self.growth)
        return self.largest if times > enough else min(self.weight * self.growth**times, self.largest)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        chosen, share = self._chosen(view, images)
        clean = F.cross_entropy(view.learning(images), labels)
        if len(chosen) == 0:
            return clean
        box = self.threat_at(view).box(images[chosen])
        margins_BC = symbolic_margins_of(trace_network(view.model), view.tensors, *box, labels[chosen])
        worst = F.cross_entropy(-margins_BC, labels[chosen], reduction="sum")
        return clean + self.weight_at(view.moment) * share * worst

    def _chosen(self, view: StepView, images: Tensor) -> tuple[Tensor, float]:
        """Return the rows at hand that are drawn, and what one of them weighs in the loss of these rows."""
        whole = len(images) if view.rows is None else view.batch
        drawn = torch.rand(1, generator=view.generator, device=images.device) < self.probability
        samples = min(self.samples, whole)
        rows = torch.randperm(whole, generator=view.generator, device=images.device)[:samples]
        # The step weights a part's loss by its share of the images: what is divided by here.
        share = whole / len(images) / samples
        if not bool(drawn):
            return rows[:0], share
        first = 0 if view.rows is None else view.rows.start
        rows = rows - first
        return rows[(rows >= 0) & (rows < len(images))], share
