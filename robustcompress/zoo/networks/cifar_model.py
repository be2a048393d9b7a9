"""The small network for CIFAR-10 of the literature on provable defences."""

from pydantic import Field
from torch import nn

from robustcompress.zoo.networks import Network
from robustcompress.zoo.plain_cnn import he_normal_without_bias, small_plain_cnn


class CifarModel(Network):
    """Two convolutions of stride 2 and two linear layers, without normalisation.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        image_size: Height and width in pixels.
        width: Channels of the first convolution; the second has twice as many.
        hidden: Units of the hidden linear layer.

    Source:
        Wong et al. 2018, https://arxiv.org/abs/1805.12514, the small network for CIFAR-10;
        ``cifar_model`` of HYDRA (Sehwag et al. 2020, https://arxiv.org/abs/2002.10509), whose tensors
        have the same names.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    image_size: int = Field(default=32, ge=4)
    width: int = Field(default=16, ge=1)
    hidden: int = Field(default=100, ge=1)

    def build(self) -> nn.Module:
        network = small_plain_cnn(
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
            width=self.width,
            hidden=self.hidden,
        )
        he_normal_without_bias(network)
        return network
