"""Training for randomized smoothing: right on images with Gaussian noise."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.training.objectives import Objective, StepView


class Smoothing(Objective):
    """Cross-entropy that Gaussian noise on the image should not change.

    ``stability`` is cross-entropy on the images plus ``beta`` times ``KL(f(x) || f(x + sigma n))``, its
    gradient through both branches; the network sees one clean and one noisy batch in train mode, so that
    batch statistics move twice a step. ``gaussian`` is cross-entropy on the noisy images alone.

    Noisy images are not clipped to the pixel range: the certificate of
    :class:`~robustcompress.robustness.certifiers.smoothing.Smoothing` holds for Gaussian noise, which
    leaves it, and the network should meet in training what it will be asked there. The threat plays no part.

    Attributes:
        form: ``stability`` (HYDRA on small images) or ``gaussian`` (HYDRA on ImageNet).
        sigma: Standard deviation of the noise, pixel scale 0 to 1; certify with the same.
        beta: Weight of the divergence; ``gaussian`` has none and does not use it.

    Source:
        Sehwag et al. 2020, https://arxiv.org/abs/2002.10509. ``gaussian``: Cohen et al. 2019,
        https://arxiv.org/abs/1902.02918, section 3.3. ``stability``: Li et al. 2019,
        https://arxiv.org/abs/1809.03113, with the divergence of HYDRA in place of the cross-entropy of
        both outputs.
    """

    form: Literal["stability", "gaussian"] = "stability"
    sigma: Number = Field(default=0.25, gt=0, allow_inf_nan=False)
    beta: float = Field(default=6.0, ge=0, allow_inf_nan=False)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        noisy = view.normal(images).mul_(self.sigma).add_(images)
        if self.form == "gaussian":
            return F.cross_entropy(view.learning(noisy), labels)
        clean_BC = view.learning(images)
        divergence = F.kl_div(
            F.log_softmax(view.learning(noisy), dim=1),
            F.log_softmax(clean_BC, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return F.cross_entropy(clean_BC, labels) + self.beta * divergence
