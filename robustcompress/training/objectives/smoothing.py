"""Training for randomized smoothing: right on images with Gaussian noise."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.errors import ConfigError
from robustcompress.fractions import Number
from robustcompress.robustness.ascent import ascend
from robustcompress.training.objectives import Objective, StepView


class Smoothing(Objective):
    """Cross-entropy that Gaussian noise on the image should not change.

    ``stability`` is cross-entropy on the images plus ``beta`` times ``KL(f(x) || f(x + sigma n))``, its
    gradient through both branches; the network sees one clean and one noisy batch in train mode, so that
    batch statistics move twice a step. ``gaussian`` is cross-entropy on the noisy images alone.

    ``smoothadv`` attacks the smoothed classifier within the L2 threat and learns from what it finds: with
    ``samples`` draws of noise for each image, the same throughout the step, the attack raises
    ``-log(mean_i softmax(f(x' + sigma n_i))_y)`` with the network in eval mode, and the loss is the mean
    cross-entropy of ``f(x' + sigma n_i)``, all draws in one batch in train mode.

    Noisy images are not clipped to the pixel range: the certificate of
    :class:`~robustcompress.robustness.certifiers.smoothing.Smoothing` holds for Gaussian noise, which
    leaves it, and the network should meet in training what it will be asked there. The threat plays a part in
    ``smoothadv`` only.

    Attributes:
        form: ``stability`` (HYDRA on small images), ``gaussian`` (HYDRA on ImageNet) or ``smoothadv``.
        sigma: Standard deviation of the noise, pixel scale 0 to 1; certify with the same.
        beta: Weight of the divergence of ``stability``.
        samples: Draws of noise for each image of ``smoothadv``: so many forward and backward passes a step of
            the attack.
        steps: Gradient steps of the attack of ``smoothadv``.
        step_size: Length of such a step, L2, pixel scale 0 to 1; ``None`` means ``2 * eps / steps``.
        ramp: Fraction of the stage over which the radius of the attack grows from 0 to the threat's.

    Source:
        Sehwag et al. 2020, https://arxiv.org/abs/2002.10509. ``gaussian``: Cohen et al. 2019,
        https://arxiv.org/abs/1902.02918, section 3.3. ``stability``: Li et al. 2019,
        https://arxiv.org/abs/1809.03113, with the divergence of HYDRA in place of the cross-entropy of
        both outputs. ``smoothadv``: Salman et al. 2019, https://arxiv.org/abs/1906.04584, section 2.2 (the
        plug-in gradient) and its pseudocode 1.
        Differs: ``ramp`` goes by the step, not by the epoch.
    """

    form: Literal["stability", "gaussian", "smoothadv"] = "stability"
    sigma: Number = Field(default=0.25, gt=0, allow_inf_nan=False)
    beta: float = Field(default=6.0, ge=0, allow_inf_nan=False)
    samples: int = Field(default=2, ge=1)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    ramp: float = Field(default=0.0, ge=0, le=1)

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        if self.form == "smoothadv":
            return self._adversarial(view, images, labels)
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

    def _adversarial(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        if view.threat.norm != "l2":
            raise ConfigError(
                f"smoothadv attacks within an L2 ball; the threat is {view.threat}. Set threat.norm to l2, "
                "or objective.form to stability or gaussian."
            )
        # One tensor of the images' shape a draw: each is drawn for the whole batch.
        noise = torch.cat([view.normal(images) for _ in range(self.samples)]).mul_(self.sigma)
        progress = view.moment.step / view.moment.steps
        grown = 1.0 if self.ramp == 0 else min(1.0, progress / self.ramp)
        threat = view.threat.model_copy(update={"eps": grown * view.threat.eps})

        def noisy(points: Tensor) -> Tensor:
            return points.repeat(self.samples, *[1] * (points.ndim - 1)) + noise

        def smoothed_loss(points: Tensor) -> Tensor:
            # The log of a mean of probabilities, of logarithms alone: tiny ones do not vanish.
            logarithms = F.log_softmax(view.frozen(noisy(points)), dim=1).unflatten(0, (self.samples, -1))
            return F.nll_loss(logarithms.logsumexp(0), labels, reduction="sum")

        step_size = 2 * threat.eps / self.steps if self.step_size is None else self.step_size
        points = images
        if threat.eps > 0:
            points = view.found(
                lambda: ascend(
                    smoothed_loss, images, threat=threat, steps=self.steps, step_size=step_size, start=images
                )
            )
        return F.cross_entropy(view.learning(noisy(points)), labels.repeat(self.samples))
