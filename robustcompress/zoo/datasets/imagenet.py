"""ImageNet's folders as they are usually unpacked: ``train`` and ``val``, in them one for each class."""

from typing import ClassVar

from pydantic import Field

from robustcompress.zoo.datasets import Split
from robustcompress.zoo.datasets.image_folder import ImageFolder


class Imagenet(ImageFolder):
    """``dir/train/n01440764/*.JPEG`` and ``dir/val/n01440764/*.JPEG``, on which the result is judged.

    An image folder in all else: any number of classes, sorted by name, which for all 1000 gives the usual
    labels. Each image's shorter side is scaled to ``image_size`` and the middle square cut out; images are
    decoded anew in each epoch unless their pixels fit into ``memory_limit_mb``.

    Attributes:
        dir: Folder that holds ``train`` and ``val``.
        image_size: Height and width in pixels.

    Source:
        Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575.
        Differs: training images are cut out of the middle too, and not at random places and scales; test
        images are scaled to their final size at once, and not to 256 and then cut to 224.
    """

    folders: ClassVar[dict[Split, str]] = {"train": "train", "test": "val"}
    image_size: int | None = Field(default=224, ge=1)
