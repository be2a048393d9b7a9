"""Wide residual network of 28 layers, four times as wide."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.zoo.initialisation import he_normal
from robustcompress.zoo.networks import Network

_WIDEN = 4
_BLOCKS_A_STAGE = 4  # depth 28 = 4 + 6 * 4


class WideResnet284(Network):
    """WRN-28-4, pre-activation, without dropout, for images of about 32x32.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the stem; the three stages have 4, 8 and 16 times as many.

    Source:
        Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146, table 1 and section 2.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    width: int = Field(default=16, ge=1)

    def build(self) -> nn.Module:
        return _WideResnet284(self)


class _PreactivationBlock(nn.Module):
    """Normalise, ReLU, convolve, twice; the sum itself is neither normalised nor cut off.

    Where the shape changes, the 1x1 shortcut takes the activated input; elsewhere the raw input passes by.

    Source:
        He et al. 2016, https://arxiv.org/abs/1603.05027, figure 4 (e).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(inputs))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        passed = inputs if self.shortcut is None else self.shortcut(activated)
        outputs: Tensor = residual + passed
        return outputs


class _WideResnet284(nn.Module):
    """Images ``[batch, in_channels, height, width]`` in, logits ``[batch, num_classes]`` out."""

    def __init__(self, settings: WideResnet284) -> None:
        super().__init__()
        self.conv = nn.Conv2d(settings.in_channels, settings.width, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = settings.width
        for stage in range(3):
            out_channels = settings.width * _WIDEN * 2**stage
            for block in range(_BLOCKS_A_STAGE):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_PreactivationBlock(channels, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(channels, settings.num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = self.relu(self.bn(self.blocks(self.conv(images))))
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits
