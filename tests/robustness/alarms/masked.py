"""Networks whose gradients are hidden: no harder to break than what they wrap, but by other means."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Masked(nn.Module):
    """A network behind a trick.

    Args:
        network: What computes the logits.
        before: What happens to the images.
        factor: Of the logits.
    """

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        *,
        factor: float = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.before = before
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.before(images))
        return logits * self.factor


def rounded(levels: int) -> Callable[[Tensor], Tensor]:
    """Keep so many steps between black and white; the gradient is zero wherever there is one."""
    return lambda images: (images * levels).round() / levels


def noisy(deviation: float) -> Callable[[Tensor], Tensor]:
    return lambda images: images + deviation * torch.randn_like(images)


def shifted(images: Tensor) -> Tensor:
    """Move all images by up to two pixels, somewhere else at each call."""
    by = torch.randint(-2, 3, (2,)).tolist()
    return images.roll(by, dims=(2, 3))


def centred(images: Tensor) -> Tensor:
    """Subtract what the batch has in common."""
    return images - images.mean(0, keepdim=True) + 0.3


def rippled(images: Tensor) -> Tensor:
    """Add waves too small to matter and too steep to climb."""
    return images + 1e-3 * torch.sin(images * 1e5)


class _Inverted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def inverted(images: Tensor) -> Tensor:
    """Leave images as they are and send gradients the other way."""
    moved: Tensor = _Inverted.apply(images)  # type: ignore[no-untyped-call]  # torch declares no types for it
    return moved


MASKS: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "saturated a hundredfold": ("blind_cross_entropy", lambda network: Masked(network, factor=1e2)),
    "saturated a thousandfold": ("blind_cross_entropy", lambda network: Masked(network, factor=1e3)),
    "saturated ten thousandfold": ("blind_cross_entropy", lambda network: Masked(network, factor=1e4)),
    "two levels": ("blind_gradient", lambda network: Masked(network, rounded(1))),
    "four levels": ("blind_gradient", lambda network: Masked(network, rounded(3))),
    "sixteen levels": ("blind_gradient", lambda network: Masked(network, rounded(15))),
    "256 levels": ("blind_gradient", lambda network: Masked(network, rounded(255))),
    "noise": ("random", lambda network: Masked(network, noisy(0.1))),
    "random shift": ("random", lambda network: Masked(network, shifted)),
    "centred batch": ("batch", lambda network: Masked(network, centred)),
    "ripples": ("blind_gradient", lambda network: Masked(network, rippled)),
    "inverted gradients": ("blind_gradient", lambda network: Masked(network, inverted)),
}
"""Name to the alarm that must fire, and the mask."""
