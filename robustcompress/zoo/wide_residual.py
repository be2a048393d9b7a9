"""Wide residual networks of pre-activation blocks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.zoo.initialisation import he_normal


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


class WideResidualNetwork(nn.Module):
    """Images ``[batch, in_channels, height, width]`` in, logits ``[batch, num_classes]`` out.

    Args:
        blocks: In each of the three stages; the depth is six times as many layers and four.
        widen: Channels of the first stage as a multiple of the stem's; the others have 2 and 4 times as many.
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the stem.

    Source:
        Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146, table 1 and section 2, without
        dropout.
    """

    def __init__(self, *, blocks: int, widen: int, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        made: list[nn.Module] = []
        channels = width
        for stage in range(3):
            out_channels = width * widen * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                made.append(_PreactivationBlock(channels, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*made)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[batch, num_classes]``."""
        features = self.relu(self.bn(self.blocks(self.conv(images))))
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits
