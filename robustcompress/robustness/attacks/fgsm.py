"""Fast gradient sign method: one step as long as the threat allows."""

import torch
from torch import Tensor

from robustcompress.robustness.ascent import Region
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.probe import probe
from robustcompress.robustness.threat import Threat


class Fgsm(Attack):
    """One step of length eps from the image itself, along the gradient of the cross-entropy.

    It is weak, and there to be compared with: where it breaks more than PGD does, gradients are masked.
    Nothing in it is random.

    Source:
        Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572, section 4.
        Differs: under L2 the step follows the gradient itself, of length eps.
    """

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        del generator
        result = images.detach().clone()
        first = probe(logits_of, result, labels, "cross_entropy")
        rows = (~first.wrong).nonzero().flatten()
        region = Region(images.detach()[rows], threat)
        result[rows] = region.climb(region.images, first.gradient[rows], threat.eps)
        return result

    def __str__(self) -> str:
        return "FGSM"
