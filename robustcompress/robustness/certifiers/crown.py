"""CROWN: linear bounds of every layer, each pulled back to the image."""

from typing import ClassVar

from robustcompress.robustness.bound_certifier import BoundCertifier
from robustcompress.robustness.box_bounds import CROWN, Bound


class Crown(BoundCertifier):
    """Certifies by full backward CROWN: a pass back for every entry before a rectifier or max-pooling.

    For small networks: the time grows with the square of their size. Of the intervals so found the interval
    bound of the margins is taken too, where it is the larger.

    Source:
        Zhang et al. 2018, https://arxiv.org/abs/1811.00866, theorem 3.2 (CROWN-Ada's lower slopes).
        Differs: intersected with interval bounds, before every layer and at the margins; float64; margins of
        the predicted class, right or wrong.
    """

    bounds: ClassVar[tuple[Bound, ...]] = (CROWN,)
