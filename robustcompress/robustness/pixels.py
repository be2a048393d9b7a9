"""Images as files hold them: 8 bits a pixel."""

from torch import Tensor

from robustcompress.robustness.threat import Threat

_LEVELS = 255


def eight_bit(adversarial: Tensor, images: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return each adversarial image with every pixel a multiple of 1/255, and whether it is still allowed.

    For Linf the nearest level within the ball is taken, pixel by pixel. For L2 the nearest level is, and an
    image that leaves the ball by it is not allowed.

    Args:
        adversarial: float ``[batch, ...]`` within ``threat``.
        images: The originals.
        threat: Norm and radius; its pixel range must be 0 to 1.

    Returns:
        The images, and bool ``[batch]``: which lie within ``threat``.
    """
    nearest = adversarial.mul(_LEVELS).round_()
    if threat.norm == "linf":
        low, high = threat.box(images)
        # A level within a rounding error of the ball's end counts as in it, as contains() sees it.
        nearest = nearest.clamp((low * _LEVELS - 1e-4).ceil(), (high * _LEVELS + 1e-4).floor())
    rounded = nearest.div_(_LEVELS)
    return rounded, threat.contains(rounded, images)


def holds_pixels(threat: Threat) -> bool:
    """Return whether the threat's pixels are those that 8 bits count, from 0 to 1."""
    return (threat.lower, threat.upper) == (0.0, 1.0)
