"""Blocks of convolutional networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Make = Callable[[int], nn.Module]


def conv_bn(taken: int, made: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(taken, made, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(made),
        nn.ReLU(inplace=True),
    )


class Basic(nn.Module):
    """Two convolutions and a shortcut, perhaps with a gate for each channel."""

    def __init__(
        self,
        taken: int,
        made: int,
        *,
        stride: int = 1,
        gate: nn.Module | None = None,
        norm: Make = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(taken, made, 3, stride, 1, bias=False), norm(made)
        self.conv2, self.norm2 = nn.Conv2d(made, made, 3, 1, 1, bias=False), norm(made)
        self.gate = nn.Identity() if gate is None else gate
        same = stride == 1 and taken == made
        self.shortcut = nn.Identity() if same else nn.Conv2d(taken, made, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(features)))))
        return F.relu(self.gate(inner) + self.shortcut(features))


class Bottleneck(nn.Module):
    """A narrow, perhaps grouped convolution between pointwise ones."""

    def __init__(self, taken: int, width: int, made: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(taken, width, 1), conv_bn(width, width, 3, stride=stride, groups=groups),
            nn.Conv2d(width, made, 1, bias=False), nn.BatchNorm2d(made),
        )  # fmt: skip
        same = stride == 1 and taken == made
        self.shortcut = nn.Identity() if same else nn.Conv2d(taken, made, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        summed = self.body(features)
        summed += self.shortcut(features)
        return F.relu(summed)


class PreActivation(nn.Module):
    """A block of a wide residual network: normalisation and activation come first."""

    def __init__(self, taken: int, made: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(taken), nn.Conv2d(taken, made, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(made), nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.shortcut = None if taken == made else nn.Conv2d(taken, made, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.norm1(features))
        around: Tensor = features if self.shortcut is None else self.shortcut(active)
        summed: Tensor = around + self.conv2(F.relu(self.norm2(self.conv1(active))))
        return summed


class InvertedResidual(nn.Module):
    """Wide inside, depthwise in the middle, narrow between blocks; perhaps with a gate."""

    def __init__(
        self,
        taken: int,
        width: int,
        made: int,
        *,
        stride: int = 1,
        gate: Make | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        active = nn.ReLU6() if act is None else act
        self.body = nn.Sequential(
            nn.Conv2d(taken, width, 1, bias=False), nn.BatchNorm2d(width), active,
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), active,
            nn.Identity() if gate is None else gate(width),
            nn.Conv2d(width, made, 1, bias=False), nn.BatchNorm2d(made),
        )  # fmt: skip
        self.adds = stride == 1 and taken == made

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.body(features)
        return features + inner if self.adds else inner


class ConvNextBlock(nn.Module):
    """Depthwise, a layer normalisation over channels, a hidden layer four times as wide, a learnt scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, features: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(features).permute(0, 2, 3, 1))
        inner = self.scale * self.back(F.gelu(self.hidden(inner)))
        summed: Tensor = features + inner.permute(0, 3, 1, 2)
        return summed


class Shuffle(nn.Module):
    """Grouped pointwise convolutions between which channels change groups."""

    def __init__(self, taken: int, made: int, *, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.enter = conv_bn(taken, made, 1, groups=groups)
        self.depthwise = nn.Conv2d(made, made, 3, padding=1, groups=made, bias=False)
        self.norm = nn.BatchNorm2d(made)
        self.leave = nn.Conv2d(made, made, 1, groups=groups, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        features = self.enter(features)
        batch, channels, height, width = features.shape
        parts = features.view(batch, self.groups, channels // self.groups, height, width)
        features = parts.transpose(1, 2).reshape(batch, channels, height, width)
        mixed: Tensor = self.leave(self.norm(self.depthwise(features)))
        return F.relu(mixed)


class PaddedShortcut(nn.Module):
    """A residual block whose shortcut fills new channels with zeros."""

    def __init__(self, taken: int, made: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.more = stride, made - taken
        self.conv1, self.norm1 = nn.Conv2d(taken, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made)
        self.conv2, self.norm2 = nn.Conv2d(made, made, 3, 1, 1, bias=False), nn.BatchNorm2d(made)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(features)))))
        around = features[:, :, :: self.stride, :: self.stride]
        if self.more:
            around = F.pad(around, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(inner + around)
