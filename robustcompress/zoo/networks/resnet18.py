"""ResNet-18 with the stem for small images."""

from pydantic import Field
from torch import nn

from robustcompress.zoo.networks import Network
from robustcompress.zoo.residual import ResidualNetwork, Stem


class Resnet18(Network):
    """ResNet-18 for images of about 32x32: a 3x3 stem of stride 1 and no max-pooling.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the stem and the first stage; each further stage has twice as many.
        stem: ``small`` for images of about 32x32, ``imagenet`` for images of about 224x224.

    Source:
        He et al. 2016, https://arxiv.org/abs/1512.03385, table 1 (18 layers) and option B (projection
        shortcuts).
        Differs: the stem above, which the literature on adversarially robust pruning uses for CIFAR-10.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    width: int = Field(default=64, ge=1)
    stem: Stem = "small"

    def build(self) -> nn.Module:
        return ResidualNetwork(
            (2, 2, 2, 2),
            bottleneck=False,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            width=self.width,
            stem=self.stem,
        )
