"""A small convolutional network for 28x28 images and minutes on a CPU."""

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from robustcompress.zoo.networks import Network

Positive = Annotated[int, Field(ge=1)]


class SmallCnn(Network):
    """Convolutions of stride 2, each halving the image, then one hidden layer and the classifier.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        image_size: Height and width of the images; the first linear layer is sized for it.
        widths: Output channels of each convolution.
        kernel_sizes: Side of each convolution's kernel, one for each width; padded by half of it.
        hidden: Units between the convolutions and the classifier.
        batch_norm: Whether batch normalisation follows every layer but the classifier.

    Source:
        Wong and Kolter 2018, https://arxiv.org/abs/1711.00851, the network for MNIST: convolutions of
        stride 2 with 16 and 32 channels, one hidden layer.
        Differs: batch normalisation, kernels of 5 and 3 instead of 4, and 128 hidden units instead of 100.
    """

    in_channels: int = Field(default=1, ge=1)
    num_classes: int = Field(default=10, ge=1)
    image_size: int = Field(default=28, ge=1)
    widths: tuple[Positive, ...] = Field(default=(16, 32), min_length=1)
    kernel_sizes: tuple[Positive, ...] = Field(default=(5, 3), min_length=1)
    hidden: int = Field(default=128, ge=1)
    batch_norm: bool = True

    @model_validator(mode="after")
    def _one_kernel_size_a_width(self) -> Self:
        if len(self.kernel_sizes) != len(self.widths):
            raise ValueError(
                f"kernel_sizes must have one entry for each of the {len(self.widths)} widths; "
                f"got {len(self.kernel_sizes)}"
            )
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd; got {list(self.kernel_sizes)}")
        return self

    def build(self) -> nn.Module:
        return _SmallCnn(self)


class _SmallCnn(nn.Module):
    """Images ``[batch, in_channels, image_size, image_size]`` in, logits ``[batch, num_classes]`` out."""

    def __init__(self, settings: SmallCnn) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, side = settings.in_channels, settings.image_size
        # Batch normalisation has a bias of its own, which would make the layer's bias a dead parameter.
        bias = not settings.batch_norm
        for width, kernel_size in zip(settings.widths, settings.kernel_sizes, strict=True):
            layers.append(
                nn.Conv2d(channels, width, kernel_size, stride=2, padding=kernel_size // 2, bias=bias)
            )
            if settings.batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels, side = width, (side + 1) // 2
        self.features = nn.Sequential(*layers)
        hidden: list[nn.Module] = [nn.Linear(channels * side * side, settings.hidden, bias=bias)]
        if settings.batch_norm:
            hidden.append(nn.BatchNorm1d(settings.hidden))
        hidden.append(nn.ReLU())
        self.hidden = nn.Sequential(*hidden)
        self.classifier = nn.Linear(settings.hidden, settings.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = torch.flatten(self.features(images), 1)
        logits: Tensor = self.classifier(self.hidden(features))
        return logits
