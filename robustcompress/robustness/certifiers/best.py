"""The best of all bounds, each computed only where the cheaper ones do not suffice."""

from typing import ClassVar

from pydantic import Field

from robustcompress.robustness.bound_certifier import BoundCertifier
from robustcompress.robustness.box_bounds import CROWN, CROWN_IBP, INTERVAL, Bound, BoxBounds


class Best(BoundCertifier):
    """Certifies by interval bounds, then CROWN-IBP, then CROWN: margin by margin the largest counts.

    At each radius the dearer bound is computed for the images that the cheaper ones left open. Whatever one
    of the three certifiers proves at the same radii, this one proves too.

    Attributes:
        crown_entries: CROWN is left out of a network that has more entries than this before rectifiers and
            max-pooling, per image: it takes a pass back for each. 0 leaves it out of all.

    Source:
        Those of ``interval``, ``crown_ibp`` and ``crown``.
    """

    bounds: ClassVar[tuple[Bound, ...]] = (INTERVAL, CROWN_IBP, CROWN)
    crown_entries: int = Field(default=20_000, ge=0)

    def asked_of(self, boxes: BoxBounds) -> tuple[Bound, ...]:
        return self.bounds if boxes.relaxed_entries <= self.crown_entries else (INTERVAL, CROWN_IBP)
