"""Residual networks of basic blocks or bottlenecks, with a stem for small images or for ImageNet's."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.zoo.initialisation import he_normal

Stem: TypeAlias = Literal["small", "imagenet"]
"""``small``: a 3x3 convolution of stride 1. ``imagenet``: 7x7 of stride 2, then max-pooling of stride 2."""

_WIDER = 4  # a bottleneck puts out four times the channels that its 3x3 convolution has


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
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(inputs)))))
        outputs: Tensor = self.relu2(residual + self.shortcut(inputs))
        return outputs


class _Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 beside a shortcut; the one in the middle has the stride."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = _WIDER * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu3 = nn.ReLU()
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        middle = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(inputs))))))
        outputs: Tensor = self.relu3(self.bn3(self.conv3(middle)) + self.shortcut(inputs))
        return outputs


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity where shapes agree, and a normalised 1x1 convolution elsewhere (option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class ResidualNetwork(nn.Module):
    """Images ``[batch, in_channels, height, width]`` in, logits ``[batch, num_classes]`` out.

    Args:
        depths: Blocks in each of the four stages.
        bottleneck: Blocks of three convolutions, instead of basic blocks of two.
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the stem and of the first stage's 3x3 convolutions; each further stage has twice as
            many.
        stem: For small images or for ImageNet's.

    Source:
        He et al. 2016, https://arxiv.org/abs/1512.03385, table 1, figure 5 and option B (projection
        shortcuts).
        Differs: the stride of a bottleneck is in its 3x3 convolution, as in torchvision; there in the first.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        bottleneck: bool,
        in_channels: int,
        num_classes: int,
        width: int,
        stem: Stem,
    ) -> None:
        super().__init__()
        small = stem == "small"
        kernel_size, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(
            in_channels, width, kernel_size, stride=stride, padding=kernel_size // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = None if small else nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                inner = width * 2**stage
                blocks.append((_Bottleneck if bottleneck else _BasicBlock)(channels, inner, stride))
                channels = inner * (_WIDER if bottleneck else 1)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = self.relu(self.bn1(self.conv1(images)))
        if self.pool is not None:
            features = self.pool(features)
        features = self.blocks(features)
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits
