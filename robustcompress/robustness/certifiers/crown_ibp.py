"""CROWN-IBP: intervals inside the network, one linear pass back from the margins."""

from typing import ClassVar

from robustcompress.robustness.bound_certifier import BoundCertifier
from robustcompress.robustness.box_bounds import CROWN_IBP, Bound


class CrownIbp(BoundCertifier):
    """Certifies by CROWN-IBP: a forward pass with intervals and one pass back for all margins together.

    Neither always above nor always below what interval bounds prove; ``best`` takes the larger.

    Source:
        Zhang et al. 2020, https://arxiv.org/abs/1906.06316, section 3.2.
        Differs: float64; margins of the predicted class, right or wrong.
    """

    bounds: ClassVar[tuple[Bound, ...]] = (CROWN_IBP,)
