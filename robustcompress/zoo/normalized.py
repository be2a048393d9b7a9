"""Normalisation as the first layer of a network, so that images stay in [0, 1] outside."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError


class Normalized(nn.Module):
    """``model`` behind ``(images - mean) / std``: takes images in [0, 1], whatever ``model`` was trained on.

    Attacks, certificates and exports then share one pixel scale, and the exported file needs no
    preprocessing.

    Attributes:
        model: The network that expects normalised images.
        mean: Buffer ``[1, channels, 1, 1]``.
        std: Buffer ``[1, channels, 1, 1]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap ``model``.

        Args:
            model: Any network that maps normalised images ``[batch, channels, height, width]`` to logits.
            mean: One number a channel, on the pixel scale 0 to 1.
            std: One number above 0 a channel, on the same scale.

        Raises:
            ConfigError: If the lengths differ or are 0, a number is not finite, or a ``std`` is not above 0.
        """
        super().__init__()
        means, stds = [float(number) for number in mean], [float(number) for number in std]
        if len(means) != len(stds) or len(means) == 0:
            raise ConfigError(
                f"mean and std must have one number for each channel; got {len(means)} and {len(stds)}."
            )
        if not all(math.isfinite(number) for number in (*means, *stds)):
            raise ConfigError(f"mean and std must be finite; got {means} and {stds}.")
        if min(stds) <= 0:
            raise ConfigError(f"std must be above 0 in every channel; got {stds}.")
        self.model = model
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``model`` for images ``[batch, channels, height, width]`` in [0, 1]."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits
