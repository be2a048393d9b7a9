"""Lowest weight magnitude (LWM): the baseline that learned scores must beat."""

from typing import ClassVar

from torch import Tensor

from robustcompress.pruning.scores import Score


class Magnitude(Score):
    """The weights (or norms of channels) themselves; nothing learns.

    Source:
        Han et al. 2015, https://arxiv.org/abs/1506.02626, section 3.
    """

    learns: ClassVar[bool] = False

    def initial(self, saliency: Tensor, fan_in: int) -> Tensor:
        return saliency.detach().clone()
