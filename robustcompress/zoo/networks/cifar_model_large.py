"""The large network for CIFAR-10 of the literature on provable defences."""

from pydantic import Field
from torch import nn

from robustcompress.zoo.networks import Network
from robustcompress.zoo.plain_cnn import he_normal_without_bias, large_plain_cnn


class CifarModelLarge(Network):
    """Four convolutions, every second of stride 2, and three linear layers, without normalisation.

    Attributes:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        image_size: Height and width in pixels.
        width: Channels of the first two convolutions; the others have twice as many.
        hidden: Units of both hidden linear layers.

    Source:
        Wong et al. 2018, https://arxiv.org/abs/1805.12514, the large network for CIFAR-10;
        ``cifar_model_large`` of HYDRA (Sehwag et al. 2020, https://arxiv.org/abs/2002.10509), whose tensors
        have the same names.
    """

    in_channels: int = Field(default=3, ge=1)
    num_classes: int = Field(default=10, ge=1)
    image_size: int = Field(default=32, ge=4)
    width: int = Field(default=32, ge=1)
    hidden: int = Field(default=512, ge=1)

    def build(self) -> nn.Module:
        network = large_plain_cnn(
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
            width=self.width,
            hidden=self.hidden,
        )
        he_normal_without_bias(network)
        return network
