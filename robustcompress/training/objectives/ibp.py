"""Interval bound propagation: train on the worst logits of a box sent through the network."""

from torch import Tensor

from robustcompress.robustness.bounds.interval import Propagation, interval_margins
from robustcompress.training.bound_training import BoundObjective


class Ibp(BoundObjective):
    """Cross-entropy of the worst logits by intervals, with a growing radius, mixed with the clean one.

    A step costs three to four times a clean one and makes networks whose intervals are tight; intervals of
    other networks prove nothing.

    Source:
        Gowal et al. 2018, https://arxiv.org/abs/1810.12715, eq. 12 and section 4: ``kappa`` from 1 to 0.5.
        Differs: ``warmup`` and ``ramp`` are fractions of the stage, not counts of steps; batch
        normalisation is as described for the base class, the paper's networks have none.
    """

    def margins(self, propagation: Propagation, labels: Tensor, grown: float) -> Tensor:
        return interval_margins(propagation, labels)
