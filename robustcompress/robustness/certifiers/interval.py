"""Interval bounds: the cheapest proof, for networks that were trained for it."""

from typing import ClassVar

from robustcompress.robustness.bound_certifier import BoundCertifier
from robustcompress.robustness.box_bounds import INTERVAL, Bound


class Interval(BoundCertifier):
    """Certifies by interval bound propagation: about two forward passes for each radius tested.

    On networks that were not trained for interval bounds it proves almost nothing.

    Source:
        Gowal et al. 2018, https://arxiv.org/abs/1810.12715, section 3 (elision of the last layer).
        Differs: float64; margins of the predicted class, right or wrong.
    """

    bounds: ClassVar[tuple[Bound, ...]] = (INTERVAL,)
