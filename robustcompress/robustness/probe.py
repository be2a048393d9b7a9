"""One look at a network from where an attack stands."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcompress.errors import ModelError
from robustcompress.robustness.ascent import input_gradient
from robustcompress.robustness.losses import LossName, attack_loss


@dataclass(frozen=True)
class Probe:
    """What one evaluation of the network tells.

    Attributes:
        loss: Per image, float ``[batch]``, without graph.
        wrong: Which images are misclassified, bool ``[batch]``.
        gradient: Of the loss by the images; empty if it was not asked for.
    """

    loss: Tensor
    wrong: Tensor
    gradient: Tensor


def probe(
    logits_of: Callable[[Tensor], Tensor],
    points: Tensor,
    labels: Tensor,
    loss_name: LossName,
    *,
    with_gradient: bool = True,
) -> Probe:
    """Evaluate the network, and the gradient of the loss unless it is not needed, at ``points``.

    Raises:
        ModelError: If a gradient is asked for and the logits have none, or it is not finite.
    """
    # A view of the same memory: the caller's tensor must not start to require a gradient.
    points = points.detach()
    with torch.set_grad_enabled(with_gradient):
        if with_gradient:
            points.requires_grad_()
        logits = logits_of(points)
        loss = attack_loss(loss_name, logits, labels)
        gradient = input_gradient(loss, points) if with_gradient else points.new_empty(0)
    # The sign of NaN is 0: left alone, such a gradient would pass for robustness.
    if not bool(gradient.isfinite().all()):
        bad = int((~gradient.isfinite()).flatten(1).any(1).sum())
        raise ModelError(
            f"expected finite gradients of the loss by the images; {bad} of {len(points)} images gave NaN or "
            "infinity, and no attack can follow them. Look for a root, a logarithm or a division at zero."
        )
    return Probe(loss.detach(), logits.detach().argmax(1) != labels, gradient)
