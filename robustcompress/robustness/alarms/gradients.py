"""Do the gradients tell how the logits change?

Shapes: B batch, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustcompress.robustness.ascent import input_gradient
from robustcompress.robustness.attacks import Logits
from robustcompress.robustness.losses import LossName, attack_loss
from robustcompress.robustness.threat import Threat

_POINTS = 16
_ROUNDING = 1e-4
"""Changes of the margin below this share of the logits' spread are rounding."""


@dataclass(frozen=True)
class Gradients:
    """What gradients say about each image; all ``[batch]``.

    Attributes:
        misleads: Whether the margin's change to a neighbour is not the gradient's sum along the way.
        loses_cross_entropy: Whether the cross-entropy's gradient is zero and the margin's is not.
        is_flat: Whether the margin's gradient is zero.
    """

    misleads: Tensor
    loses_cross_entropy: Tensor
    is_flat: Tensor


def look_at_gradients(logits_of: Logits, images: Tensor, labels: Tensor, threat: Threat) -> Gradients:
    """Compare gradients with what they are gradients of.

    Along a straight way the margin changes by the sum of its gradient along it, whatever the network, as
    long as gradients are what they claim. An image misleads if its margin changes otherwise, by more than
    half, on the way to an allowed neighbour: the one in the direction of the image's negative. A network
    may be flat around an image, as sparse ones are; margin and gradient then say so alike, and the whole way
    to the negative is looked at instead.

    Args:
        logits_of: The network, in the mode in which it is to be judged.
        images: float ``[batch, ...]`` in the threat's pixel range.
        labels: int64 ``[batch]``.
        threat: Gives neighbours.

    Raises:
        ModelError: If the logits do not depend on the images through differentiable operations.

    Source:
        Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, proposition 1 (completeness).
        Differs: as a test of gradients.
    """
    negatives = threat.lower + threat.upper - images
    near, is_level = _misleads(logits_of, images, threat.project(negatives, images), labels)
    far, _ = _misleads(logits_of, images, negatives, labels)
    flat = _is_zero(_gradient(logits_of, images, labels, "margin"))
    lost = _is_zero(_gradient(logits_of, images, labels, "cross_entropy"))
    return Gradients(near | (is_level & far), lost & ~flat, flat)


def _misleads(logits_of: Logits, images: Tensor, ends: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the margin changes otherwise than foretold, and where neither says that it changes."""
    way = ends - images
    start, spread = _margin(logits_of, images, labels)
    change = _margin(logits_of, ends, labels)[0] - start
    foretold = torch.zeros_like(change)
    for point in range(_POINTS):
        gradient = _gradient(logits_of, images + way * ((point + 0.5) / _POINTS), labels, "margin")
        foretold += (gradient * way).flatten(1).sum(1) / _POINTS
    larger = torch.maximum(change.abs(), foretold.abs())
    is_level = larger <= _ROUNDING * spread
    return ~is_level & ((change - foretold).abs() > larger / 2), is_level


def _margin(logits_of: Logits, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margin and the spread of the logits, each ``[batch]``."""
    with torch.no_grad():
        logits_BC = logits_of(images)
    return attack_loss("margin", logits_BC, labels), logits_BC.amax(1) - logits_BC.amin(1)


def _gradient(logits_of: Logits, images: Tensor, labels: Tensor, loss_name: LossName) -> Tensor:
    points = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        return input_gradient(attack_loss(loss_name, logits_of(points), labels), points)


def _is_zero(gradient: Tensor) -> Tensor:
    """Return which gradients are zero or so small that they are not represented exactly."""
    return gradient.flatten(1).abs().amax(1) < torch.finfo(gradient.dtype).tiny
