"""Small versions of the architectures that people bring, in plain PyTorch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.pruning.architectures.attention import SqueezeExcite, Vit
from tests.pruning.architectures.blocks import (
    Basic,
    Bottleneck,
    ConvNextBlock,
    InvertedResidual,
    PaddedShortcut,
    PreActivation,
    Shuffle,
    conv_bn,
)  # fmt: skip


class DenseNet(nn.Module):
    """Four layers, each of which reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12 + 8 * index) for index in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(12 + 8 * index, 8, 3, padding=1) for index in range(4))
        self.transition = conv_bn(44, 22, 1)
        self.classifier = nn.Linear(22, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features = torch.cat([features, layer(F.relu(norm(features)))], 1)
        logits: Tensor = self.classifier(F.avg_pool2d(self.transition(features), 2).mean((2, 3)))
        return logits


class Reused(nn.Module):
    """One convolution, followed by one normalisation, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12, 3)
        self.again, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.hidden, self.classifier = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for _ in range(3):
            features = features + F.relu(self.norm(self.again(features)))
        logits: Tensor = self.classifier(F.relu(self.hidden(features.amax((2, 3)))))
        return logits


def head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)


def vgg_flatten() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 12, 3), conv_bn(12, 12, 3), nn.MaxPool2d(2), nn.Conv2d(12, 20, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20 * 9, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5),
    )  # fmt: skip


def resnet_basic() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8, 3), Basic(8, 8), Basic(8, 16, stride=2), Basic(16, 16), *head(16))


def resnet_bottleneck() -> nn.Module:
    blocks = (Bottleneck(8, 8, 24), Bottleneck(24, 8, 24), Bottleneck(24, 12, 32, stride=2))
    return nn.Sequential(conv_bn(3, 8, 3), *blocks, *head(32))


def wide_resnet() -> nn.Module:
    blocks = (PreActivation(8, 12), PreActivation(12, 12), PreActivation(12, 20, stride=2))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.BatchNorm2d(20), nn.ReLU(), *head(20))


def mobilenet_v2() -> nn.Module:
    blocks = (InvertedResidual(8, 24, 8), InvertedResidual(8, 24, 12, stride=2), InvertedResidual(12, 36, 12))
    return nn.Sequential(conv_bn(3, 8, 3), *blocks, conv_bn(12, 32, 1), *head(32))


def mobilenet_v3() -> nn.Module:
    def gate(width: int) -> nn.Module:
        return SqueezeExcite(width, 8, nn.Hardsigmoid())

    act = nn.Hardswish()
    blocks = (InvertedResidual(8, 24, 8, gate=gate, act=act), InvertedResidual(8, 24, 12, gate=gate, act=act))
    return nn.Sequential(conv_bn(3, 8, 3), *blocks, *head(12))


def resnext() -> nn.Module:
    blocks = (Bottleneck(8, 16, 24, groups=4), Bottleneck(24, 16, 24, groups=4))
    return nn.Sequential(conv_bn(3, 8, 3), *blocks, *head(24))


def se_resnet() -> nn.Module:
    blocks = [Basic(12, 12, gate=SqueezeExcite(12, 6, nn.Sigmoid())) for _ in range(2)]
    return nn.Sequential(conv_bn(3, 12, 3), *blocks, *head(12))


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 2, stride=2), ConvNextBlock(12), ConvNextBlock(12), nn.Conv2d(12, 16, 2, stride=2),
        ConvNextBlock(16), *head(16),
    )  # fmt: skip


def groupnorm_resnet() -> nn.Module:
    blocks = (Basic(8, 8, norm=lambda width: nn.GroupNorm(4, width)) for _ in range(2))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), *blocks, *head(8))


def shufflenet() -> nn.Module:
    """Grouped pointwise convolutions, a shuffle, and depthwise ones between them."""
    return nn.Sequential(
        conv_bn(3, 12, 3), Shuffle(12, 36, groups=3), Shuffle(36, 36, groups=3), conv_bn(36, 16, 1), *head(16)
    )


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 12, 3), nn.Conv2d(12, 24, 3, padding=1), nn.PixelShuffle(2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(48, 12, 1), nn.ReLU(),
        *head(12),
    )  # fmt: skip


def padded_shortcuts() -> nn.Module:
    blocks = (PaddedShortcut(8, 8), PaddedShortcut(8, 16, stride=2), PaddedShortcut(16, 16))
    return nn.Sequential(conv_bn(3, 8, 3), *blocks, *head(16))


def multiplied() -> nn.Module:
    """A depthwise convolution that makes two channels of each."""
    return nn.Sequential(
        conv_bn(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 1),
        nn.ReLU(), *head(12),
    )  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What is known of an architecture beforehand.

    Attributes:
        build: Makes the network.
        macs: At least this fraction of its multiply-adds is gone once every group lost half of its channels.
        frozen: Reason, or a part of it, of each layer that stays; the classifier at least.
    """

    build: Callable[[], nn.Module]
    macs: float
    frozen: Mapping[str, str]


OUTPUTS = "its channels are the network's outputs"
LAYER_NORM = "pass through LayerNorm"
GROUP_NORM = "pass through GroupNorm"
PADDED = "where they meet values that stay"

ARCHITECTURES: Mapping[str, Expected] = {
    "vgg_flatten": Expected(vgg_flatten, 0.7, {"10": OUTPUTS}),
    "resnet_basic": Expected(resnet_basic, 0.7, {"6": OUTPUTS}),
    "resnet_bottleneck": Expected(resnet_bottleneck, 0.7, {"6": OUTPUTS}),
    "wide_resnet": Expected(wide_resnet, 0.7, {"8": OUTPUTS}),
    "mobilenet_v2": Expected(mobilenet_v2, 0.65, {"7": OUTPUTS}),
    "mobilenet_v3": Expected(mobilenet_v3, 0.6, {"5": OUTPUTS}),
    "densenet": Expected(DenseNet, 0.7, {"classifier": OUTPUTS}),
    "resnext": Expected(resnext, 0.7, {"5": OUTPUTS}),
    "se_resnet": Expected(se_resnet, 0.7, {"5": OUTPUTS}),
    "reused": Expected(Reused, 0.7, {"classifier": OUTPUTS}),
    "shufflenet": Expected(shufflenet, 0.65, {"6": OUTPUTS}),
    "pixel_shuffle": Expected(pixel_shuffle, 0.7, {"12": OUTPUTS}),
    "multiplied": Expected(multiplied, 0.55, {"8": OUTPUTS}),
    "convnext": Expected(
        convnext,
        0.3,
        {
            **dict.fromkeys(("0", "1.depthwise", "1.back", "2.depthwise", "2.back"), LAYER_NORM),
            **dict.fromkeys(("3", "4.depthwise", "4.back"), LAYER_NORM),
            "7": OUTPUTS,
        },
    ),
    "vit": Expected(
        Vit,
        0.29,
        {
            **dict.fromkeys(("patches", "layers.0.back", "layers.1.back"), "pass through Cat"),
            **dict.fromkeys(("layers.0.attention.back", "layers.1.attention.back"), "pass through Cat"),
            **dict.fromkeys(
                ("layers.0.attention.qkv", "layers.1.attention.qkv"), "pass through Bmm in Attention"
            ),
            "classifier": OUTPUTS,
        },
    ),
    "padded_shortcuts": Expected(
        padded_shortcuts,
        0.45,
        {**dict.fromkeys(("0.0", "1.conv2", "2.conv2", "3.conv2"), PADDED), "6": OUTPUTS},
    ),
    "groupnorm_resnet": Expected(
        groupnorm_resnet,
        0.0,
        {**dict.fromkeys(("0", "3.conv1", "3.conv2", "4.conv1", "4.conv2"), GROUP_NORM), "7": OUTPUTS},
    ),
}

SHAPE = (3, 12, 12)
"""Of one image for every architecture."""


def settled(name: str) -> nn.Module:
    """Return an architecture with weights, norms and statistics as after training, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ARCHITECTURES[name].build()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    nn.init.normal_(module.running_mean, 0.0, 0.5)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
                    nn.init.normal_(module.weight, 1.0, 0.3)
                if isinstance(getattr(module, "bias", None), Tensor):
                    nn.init.normal_(module.bias, 0.0, 0.3)  # type: ignore[arg-type]  # checked above
    return network
