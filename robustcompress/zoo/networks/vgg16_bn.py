"""VGG-16 with batch normalisation for small images."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.zoo.initialisation import he_normal
from robustcompress.zoo.networks import Network

# Convolutions in each stage, and their channels in multiples of the first stage's.
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class Vgg16Bn(Network):
    """Thirteen 3x3 convolutions in five stages and one linear layer; images of 16x16 or more.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.

    Source:
        Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556, table 1, column D.
        Differs: batch normalisation after each convolution; the average of the last feature map and one
        linear layer in place of the last max-pooling and three linear layers, as is usual for CIFAR-10.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    width: int = Field(default=64, ge=1)

    def build(self) -> nn.Module:
        return _Vgg16Bn(self)


class _Vgg16Bn(nn.Module):
    """Images ``[batch, in_channels, height, width]`` in, logits ``[batch, num_classes]`` out."""

    def __init__(self, settings: Vgg16Bn) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = settings.in_channels
        for stage, (depth, multiple) in enumerate(_STAGES):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                out_channels = settings.width * multiple
                # Batch normalisation has a bias of its own, which would make this one a dead parameter.
                layers.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=False))
                layers.append(nn.BatchNorm2d(out_channels))
                layers.append(nn.ReLU())
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, settings.num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = F.adaptive_avg_pool2d(self.features(images), 1)
        logits: Tensor = self.classifier(torch.flatten(features, 1))
        return logits
