"""Wide residual network of 28 layers, four times as wide."""

from pydantic import Field
from torch import nn

from robustcompress.zoo.networks import Network
from robustcompress.zoo.wide_residual import WideResidualNetwork


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
        return WideResidualNetwork(
            blocks=4,
            widen=4,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            width=self.width,
        )
