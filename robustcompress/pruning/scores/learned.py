"""Scores that learn by minimising the robust training objective itself (HYDRA)."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from robustcompress.pruning.scores import Score


class Learned(Score):
    """HYDRA's scores: scaled to the weights at first, then trained while the weights stand still.

    Source:
        Sehwag et al. 2020 (HYDRA), https://arxiv.org/abs/2002.10509, section 3 (scaled initialisation).
    """

    learns: ClassVar[bool] = True

    def initial(self, saliency: Tensor, fan_in: int) -> Tensor:
        """Return ``sqrt(6 / fan_in) * w / max|w|``: ranked as the weights are, scaled as a fresh layer."""
        largest = saliency.detach().abs().max().clamp_min(torch.finfo(saliency.dtype).tiny)
        return (math.sqrt(6 / fan_in) / largest) * saliency.detach()
