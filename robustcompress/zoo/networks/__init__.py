"""Networks that recipes name. Each is settings with a ``build``; all take images in [0, 1]."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import nn

from robustcompress.member import Member, class_attribute

if TYPE_CHECKING:
    from robustcompress.zoo.networks.cifar_model import CifarModel as CifarModel
    from robustcompress.zoo.networks.cifar_model_large import CifarModelLarge as CifarModelLarge
    from robustcompress.zoo.networks.mnist_model import MnistModel as MnistModel
    from robustcompress.zoo.networks.mnist_model_large import MnistModelLarge as MnistModelLarge
    from robustcompress.zoo.networks.resnet18 import Resnet18 as Resnet18
    from robustcompress.zoo.networks.resnet34 import Resnet34 as Resnet34
    from robustcompress.zoo.networks.resnet50 import Resnet50 as Resnet50
    from robustcompress.zoo.networks.small_cnn import SmallCnn as SmallCnn
    from robustcompress.zoo.networks.vgg11_bn import Vgg11Bn as Vgg11Bn
    from robustcompress.zoo.networks.vgg13_bn import Vgg13Bn as Vgg13Bn
    from robustcompress.zoo.networks.vgg16_bn import Vgg16Bn as Vgg16Bn
    from robustcompress.zoo.networks.wide_resnet_28_4 import WideResnet284 as WideResnet284
    from robustcompress.zoo.networks.wide_resnet_28_10 import WideResnet2810 as WideResnet2810
    from robustcompress.zoo.networks.wide_resnet_34_10 import WideResnet3410 as WideResnet3410


class Network(Member, ABC):
    """Settings from which a network is built; saved in artifacts, so that loading needs no user code."""

    family: ClassVar[str] = "robustcompress.zoo.networks"

    in_channels: int
    num_classes: int

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with freshly drawn weights from torch's global generator."""

    def fitted(self, *, in_channels: int, num_classes: int, image_size: int) -> Self:
        """Return these settings with whatever was left unsaid taken from the images.

        Args:
            in_channels: Channels of the images.
            num_classes: Classes they fall into.
            image_size: Height and width in pixels; only some networks have a setting for it.
        """
        known = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
        unsaid = {
            name: value
            for name, value in known.items()
            if name in type(self).model_fields and name not in self.model_fields_set
        }
        return self.model_validate({**dict(self), **unsaid})


def __getattr__(name: str) -> Any:
    return class_attribute(Network, name)
