"""VGG networks with batch normalisation for small images."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.zoo.initialisation import he_normal

Head: TypeAlias = Literal["average", "hydra"]
"""``average``: the mean of the last feature map and one linear layer. ``hydra``: means of its quarters and
three linear layers."""

_MULTIPLES = (1, 2, 4, 8, 8)  # channels of each stage, in multiples of the first stage's
_HIDDEN = 256


class VggNetwork(nn.Module):
    """Images ``[batch, in_channels, height, width]`` in, logits ``[batch, num_classes]`` out.

    Args:
        depths: 3x3 convolutions in each of the five stages.
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        head: What comes after the convolutions.

    Source:
        Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556, table 1. ``hydra``: Sehwag et al. 2020,
        https://arxiv.org/abs/2002.10509, the authors' code.
        Differs: batch normalisation after each convolution; the average of the last feature map and one
        linear layer in place of the last max-pooling and three linear layers, as is usual for CIFAR-10.
    """

    def __init__(
        self, depths: tuple[int, ...], *, in_channels: int, num_classes: int, width: int, head: Head
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (depth, multiple) in enumerate(zip(depths, _MULTIPLES, strict=True)):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                out_channels = width * multiple
                # Batch normalisation has a bias of its own, which would make this one a dead parameter.
                layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=False))
                layers.append(nn.BatchNorm2d(out_channels))
                layers.append(nn.ReLU())
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self._side = 1 if head == "average" else 2
        self.classifier: nn.Module
        if head == "average":
            self.classifier = nn.Linear(channels, num_classes)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(channels * self._side**2, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, _HIDDEN),
                nn.ReLU(),
                nn.Linear(_HIDDEN, num_classes),
            )
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = F.adaptive_avg_pool2d(self.features(images), self._side)
        logits: Tensor = self.classifier(torch.flatten(features, 1))
        return logits
