"""A balanced part of Fashion-MNIST that comes with the package: 6,000 and 1,000 images."""

import hashlib
import lzma
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Self

import numpy as np
import torch
from pydantic import model_validator

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.datasets.fashion_mnist import FashionMnist

SHA256 = "d4b84d5ce30dc1dcfdc2c300316a2babd50126ecd40a1378362ff4ea6e2fd84a"
SIZES: dict[Split, int] = {"train": 6_000, "test": 1_000}
_CLASSES = len(FashionMnist.class_names)


class FashionMnistMini(DataSet):
    """The same images as ``FashionMnist(train_size=6000, test_size=1000)``, in the same order.

    The file is one xz stream of bare pixels: train, then test, each ``[class, image, row, column]``.
    ``tools/make_fashion_mnist_mini.py`` makes it. Its licence (MIT) lies beside it.

    Attributes:
        dir: Must be ``None``: the images come with the package.

    Source:
        Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747.
    """

    @model_validator(mode="after")
    def _needs_no_dir(self) -> Self:
        if self.dir is not None:
            raise ValueError(
                f"fashion-mnist-mini comes with the package, so dir must not be set; got {str(self.dir)!r}. "
                "Leave it out, or ask for fashion-mnist, which reads files"
            )
        return self

    def read(self, split: Split) -> ImageSet:
        pixels = np.frombuffer(lzma.decompress(_checked_bytes()), dtype=np.uint8)
        train, test = np.split(pixels, [SIZES["train"] * 28 * 28])
        images = torch.tensor(train if split == "train" else test).reshape(_CLASSES, -1, 1, 28, 28)
        return ImageSet(
            # Stored class by class, which compresses better; the classes take turns in balanced subsets.
            images=images.transpose(0, 1).flatten(0, 1).contiguous(),
            labels=torch.arange(_CLASSES).repeat(SIZES[split] // _CLASSES),
            classes=FashionMnist.class_names,
            name=f"fashion-mnist-mini {split}",
        )


def bundled_file() -> Traversable:
    """Return where the package keeps the compressed pixels."""
    return files("robustcompress.zoo.datasets") / "fashion_mnist_mini.xz"


def _checked_bytes() -> bytes:
    path = bundled_file()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}. Install robustcompress again.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DataError(
            f"{path}: expected SHA-256 {SHA256}; got {digest}. The file is damaged: install "
            "robustcompress again."
        )
    return content
