"""Projected steepest ascent: the inner loop of gradient attacks and of adversarial training."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from robustcompress.errors import ModelError
from robustcompress.robustness.threat import Threat

LossOf: TypeAlias = Callable[[Tensor], Tensor]
"""Images ``[batch, ...]`` to a loss per image ``[batch]`` or to their sum."""


class Region:
    """The allowed images around one batch, with what every projection needs computed once.

    Attributes:
        images: The originals, float ``[batch, ...]``.
        threat: Norm, radius and pixel range.
    """

    def __init__(self, images: Tensor, threat: Threat) -> None:
        self.images = images
        self.threat = threat
        self._box = threat.box(images) if threat.norm == "linf" else None

    def project(self, points: Tensor) -> Tensor:
        """Return allowed images near ``points``; may overwrite them."""
        if self._box is not None:
            return points.clamp_(*self._box)
        return self.threat.project(points, self.images)

    def climb(self, points: Tensor, gradient: Tensor, step_size: float | Tensor) -> Tensor:
        """Return ``points`` moved by ``step_size`` (one, or ``[batch, 1, ...]``) uphill, and projected.

        Neither ``points`` nor ``gradient`` is changed: a gradient may share memory with the network.
        """
        direction = self.threat.steepest(gradient)
        if isinstance(step_size, float):
            return self.project(torch.add(points, direction, alpha=step_size, out=direction))
        return self.project(direction.mul_(step_size).add_(points))

    def select(self, keep: Tensor) -> "Region":
        """Return the region around the rows that ``keep`` (bool or indices) names."""
        chosen = object.__new__(Region)
        chosen.images = self.images[keep]
        chosen.threat = self.threat
        chosen._box = None if self._box is None else (self._box[0][keep], self._box[1][keep])
        return chosen


def input_gradient(loss: Tensor, points: Tensor, *, keep_graph: bool = False) -> Tensor:
    """Return the gradient of ``loss``, summed, by ``points``; nothing else receives a gradient.

    Args:
        loss: A loss per image, or one for all.
        points: float ``[batch, ...]`` that it depends on.
        keep_graph: Whether another gradient through the same graph follows.

    Raises:
        ModelError: If the loss does not depend on the points through differentiable operations.
    """
    gradient = None
    if loss.requires_grad:
        gradient = torch.autograd.grad(loss.sum(), [points], retain_graph=keep_graph, allow_unused=True)[0]
    if gradient is None:
        raise ModelError(
            "a gradient attack needs logits that depend on the images through differentiable operations; "
            "these do not. Attack the PyTorch network, and judge runtimes by re-scoring the images it gives."
        )
    return gradient


def ascend(
    loss_of: LossOf, images: Tensor, *, threat: Threat, steps: int, step_size: float, start: Tensor
) -> Tensor:
    """Return images within ``threat`` that projected steepest ascent on ``loss_of`` reaches.

    No weight gradient is computed and no ``.grad`` is written. The result carries no graph.

    Args:
        loss_of: Loss per image, or its sum: an image's gradient must not depend on the others.
        images: The originals, float ``[batch, ...]`` in the pixel range.
        threat: Norm, radius and pixel range.
        steps: Gradient steps; 0 returns the projected start.
        step_size: Length of each step in the threat's norm, pixel scale 0 to 1.
        start: First iterate, of the images' shape; it is projected first and not changed.

    Raises:
        ModelError: If the loss does not depend on the images through differentiable operations.

    Source:
        Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 2.1.
    """
    region = Region(images.detach(), threat)
    points = threat.project(start.detach(), region.images)
    for _ in range(steps):
        with torch.enable_grad():
            points.requires_grad_()
            gradient = input_gradient(loss_of(points), points)
        points = region.climb(points.detach(), gradient, step_size)
    return points.detach()


def step_length(step_size: float | None, *, threat: Threat, steps: int) -> float:
    """Return ``step_size``, or ``2.5 * eps / steps`` if none is set.

    Source:
        Madry et al. 2018, the authors' challenge code: 2.5 times the way to the border, so that the border
        can be reached from anywhere in the ball with steps to spare.
    """
    return 2.5 * threat.eps / steps if step_size is None else step_size
