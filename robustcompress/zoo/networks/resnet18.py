"""ResNet-18 with the stem for small images."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.zoo.initialisation import he_normal
from robustcompress.zoo.networks import Network


class Resnet18(Network):
    """ResNet-18 for images of about 32x32: a 3x3 stem of stride 1 and no max-pooling.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the stem and the first stage; each further stage has twice as many.

    Source:
        He et al. 2016, https://arxiv.org/abs/1512.03385, table 1 (18 layers) and option B (projection
        shortcuts).
        Differs: the stem above, which the literature on adversarially robust pruning uses for CIFAR-10.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    width: int = Field(default=64, ge=1)

    def build(self) -> nn.Module:
        return _Resnet18(self)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each normalised; the last ReLU comes after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(inputs)))))
        outputs: Tensor = self.relu2(residual + self.shortcut(inputs))
        return outputs


class _Resnet18(nn.Module):
    """Images ``[batch, in_channels, height, width]`` in, logits ``[batch, num_classes]`` out."""

    def __init__(self, settings: Resnet18) -> None:
        super().__init__()
        width = settings.width
        self.conv1 = nn.Conv2d(settings.in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            out_channels = width * 2**stage
            blocks.append(_BasicBlock(channels, out_channels, stride=1 if stage == 0 else 2))
            blocks.append(_BasicBlock(out_channels, out_channels, stride=1))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, settings.num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = self.blocks(self.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits
