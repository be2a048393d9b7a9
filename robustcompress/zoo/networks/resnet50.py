"""ResNet-50 with the stem for ImageNet."""

from pydantic import Field
from torch import nn

from robustcompress.zoo.networks import Network
from robustcompress.zoo.residual import ResidualNetwork, Stem


class Resnet50(Network):
    """ResNet-50 for ImageNet: a 7x7 stem of stride 2 and max-pooling.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the stem and of the first stage's 3x3 convolutions; each further stage has twice as
            many, and every block puts out four times as many.
        stem: ``small`` for images of about 32x32, ``imagenet`` for images of about 224x224.

    Source:
        He et al. 2016, https://arxiv.org/abs/1512.03385, table 1 (50 layers) and option B (projection
        shortcuts).
        Differs: the stride of a bottleneck is in its 3x3 convolution, as in torchvision.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=1000, ge=1)
    width: int = Field(default=64, ge=1)
    stem: Stem = "imagenet"

    def build(self) -> nn.Module:
        return ResidualNetwork(
            (3, 4, 6, 3),
            bottleneck=True,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            width=self.width,
            stem=self.stem,
        )
