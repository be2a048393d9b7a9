"""VGG-16 with batch normalisation for small images."""

from pydantic import Field
from torch import nn

from robustcompress.zoo.networks import Network
from robustcompress.zoo.vgg import Head, VggNetwork


class Vgg16Bn(Network):
    """Thirteen 3x3 convolutions in five stages and one linear layer; images of 16x16 or more.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        head: ``average``: the average of the last feature map and one linear layer. ``hydra``: as in HYDRA's
            code, its averages over quarters and linear layers of 256, 256 and ``num_classes``.

    Source:
        Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556, table 1, column D.
        Differs: batch normalisation after each convolution; the average of the last feature map and one
        linear layer in place of the last max-pooling and three linear layers, as is usual for CIFAR-10.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    width: int = Field(default=64, ge=1)
    head: Head = "average"

    def build(self) -> nn.Module:
        return VggNetwork(
            (2, 2, 3, 3, 3),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            width=self.width,
            head=self.head,
        )
