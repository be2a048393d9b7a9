"""CIFAR-100: 50,000 and 10,000 colour images of 32x32 in 100 classes, in its authors' binary layout."""

from pathlib import Path
from typing import ClassVar

import torch

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.cifar_records import read_records
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.downloading import Download

_FOLDER = "cifar-100-binary"
_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class Cifar100(DataSet):
    """``train.bin`` and ``test.bin``, with the 100 fine labels.

    Each record is a byte for the coarse label, which is not used, one for the fine one, and 3,072 for the
    red, green and blue planes.

    Attributes:
        dir: Folder that holds the files or their folder ``cifar-100-binary``. ``None`` looks in
            ``~/.cache/robustcompress/cifar100``.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images";
        https://www.cs.toronto.edu/~kriz/cifar.html, "binary version".
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
            "03b5dce01913d631647c71ecec9e9cb8",
            (f"{_FOLDER}/train.bin", f"{_FOLDER}/test.bin"),
        ),
    )
    class_names: ClassVar[tuple[str, ...]] = tuple(_NAMES.split())

    def read(self, split: Split) -> ImageSet:
        place = self.dir or Path.home() / ".cache" / "robustcompress" / "cifar100"
        tried = [folder / f"{split}.bin" for folder in (place / _FOLDER, place)]
        path = next((path for path in tried if path.is_file()), None)
        if path is None:
            listing = "".join(f"\n  {path}" for path in tried)
            raise DataError(
                f"cifar100: found no {split} images; none of these is there:{listing}\n"
                "Unpack the binary version from https://www.cs.toronto.edu/~kriz/cifar.html and name its "
                "folder with 'dir' (--data-dir)."
            )
        which = "the binary version of CIFAR-100 (not 10)"
        labels, images = read_records(path, labels=2, classes=100, which=which)
        return ImageSet(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(labels),
            classes=self.class_names,
            name=f"cifar100 {split}",
        )
