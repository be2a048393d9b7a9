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
    """What one look at the network tells.

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
    targets: Tensor | None = None,
    with_gradient: bool = True,
    calls: int = 1,
) -> Probe:
    """Evaluate the network, and the gradient of the loss unless it is not needed, at ``points``.

    Args:
        logits_of: The network.
        points: float ``[batch, ...]``.
        labels: int64 ``[batch]``.
        loss_name: Which loss.
        targets: Classes that a targeted loss aims at, int64 ``[batch]``.
        with_gradient: Whether the gradient is wanted.
        calls: Evaluations over which loss and gradient are averaged, for a network that answers at random;
            an image is then misclassified if more than half of them are wrong.

    Raises:
        ModelError: If a gradient is asked for and the logits have none, or it is not finite.
    """
    # A view of the same memory: the caller's tensor must not start to require a gradient.
    points = points.detach()
    if with_gradient:
        points.requires_grad_()
    seen = _look(logits_of, points, labels, loss_name, targets)
    if calls == 1:
        return seen
    loss, wrong, gradient = seen.loss, seen.wrong.long(), seen.gradient
    for _ in range(calls - 1):
        seen = _look(logits_of, points, labels, loss_name, targets)
        loss, wrong, gradient = loss + seen.loss, wrong + seen.wrong, gradient + seen.gradient
    return Probe(loss / calls, wrong * 2 > calls, gradient / calls)


def _look(
    logits_of: Callable[[Tensor], Tensor],
    points: Tensor,
    labels: Tensor,
    loss_name: LossName,
    targets: Tensor | None,
) -> Probe:
    with_gradient = points.requires_grad
    with torch.set_grad_enabled(with_gradient):
        logits = logits_of(points)
        loss = attack_loss(loss_name, logits, labels, targets)
        gradient = input_gradient(loss, points) if with_gradient else points.new_empty(0)
    # The sign of NaN is 0: left alone, such a gradient would pass for robustness.
    if not bool(gradient.isfinite().all()):
        bad = int((~gradient.isfinite()).flatten(1).any(1).sum())
        raise ModelError(
            f"expected finite gradients of the loss by the images; {bad} of {len(points)} images gave NaN or "
            "infinity, and no attack can follow them. Look for a root, a logarithm or a division at zero."
        )
    return Probe(loss.detach(), logits.detach().argmax(1) != labels, gradient)
