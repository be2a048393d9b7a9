"""CROWN-IBP: train on bounds that are intervals inside and one linear pass back from the margins."""

from pydantic import Field
from torch import Tensor

from robustcompress.robustness.bounds.crown import crown_ibp_margins
from robustcompress.robustness.bounds.interval import Propagation, interval_margins
from robustcompress.training.bound_training import BoundObjective


class CrownIbp(BoundObjective):
    """Cross-entropy of the worst logits by a mixture of CROWN-IBP and interval bounds.

    The bound of a margin is ``beta * CROWN-IBP + (1 - beta) * IBP``; ``beta`` moves from ``beta_start`` to
    ``beta_end`` as the radius grows. Both are lower bounds, and so is every mixture. Where ``beta`` is 0 the
    linear pass is left out, where it is 1 the interval bounds are.

    Attributes:
        beta_start: Share of CROWN-IBP while the radius is 0.
        beta_end: Share of CROWN-IBP once the radius is the threat's.

    Source:
        Zhang et al. 2020, https://arxiv.org/abs/1906.06316, eq. 9 to 11; ``beta`` from 1 to 0 and no clean
        loss, as in HYDRA (Sehwag et al. 2020, https://arxiv.org/abs/2002.10509).
        Differs: ``warmup`` and ``ramp`` are fractions of the stage, and batch normalisation takes running
        statistics, see the base class.
    """

    kappa_start: float = Field(default=0.0, ge=0, le=1)
    kappa_end: float = Field(default=0.0, ge=0, le=1)
    beta_start: float = Field(default=1.0, ge=0, le=1)
    beta_end: float = Field(default=0.0, ge=0, le=1)

    def margins(self, propagation: Propagation, labels: Tensor, grown: float) -> Tensor:
        beta = self.beta_start + (self.beta_end - self.beta_start) * grown
        if beta == 0:
            return interval_margins(propagation, labels)
        crown = crown_ibp_margins(propagation, labels)
        if beta == 1:
            return crown
        return beta * crown + (1 - beta) * interval_margins(propagation, labels)
