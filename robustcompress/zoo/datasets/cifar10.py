"""CIFAR-10: 50,000 and 10,000 colour images of 32x32, in the binary layout of its authors."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.cifar_records import read_records
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.downloading import Download

_FOLDER = "cifar-10-batches-bin"
_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}


class Cifar10(DataSet):
    """``data_batch_1.bin`` to ``data_batch_5.bin``, those that are there, and ``test_batch.bin``.

    Each record is one byte for the label and 3,072 for the red, green and blue planes.

    Attributes:
        dir: Folder that holds the files or their folder ``cifar-10-batches-bin``. ``None`` looks in
            ``~/.cache/robustcompress/cifar10``.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images";
        https://www.cs.toronto.edu/~kriz/cifar.html, "binary version".
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        Download(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            "c32a1d4ab5d03f1284b67883e8d87530",
            tuple(f"{_FOLDER}/{name}" for names in _FILES.values() for name in names),
        ),
    )
    class_names: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def read(self, split: Split) -> ImageSet:
        paths = self._find(split)
        which = "the binary version of CIFAR-10 (not 100)"
        batches = [read_records(path, labels=1, classes=10, which=which) for path in paths]
        labels = torch.from_numpy(np.concatenate([labels for labels, _ in batches]))
        images = torch.from_numpy(np.concatenate([images for _, images in batches]))
        part = "" if len(paths) == len(_FILES[split]) else f" ({len(paths)} of {len(_FILES[split])} batches)"
        return ImageSet(images=images, labels=labels, classes=self.class_names, name=f"cifar10 {split}{part}")

    def _find(self, split: Split) -> list[Path]:
        place = self.dir or Path.home() / ".cache" / "robustcompress" / "cifar10"
        folders = [place / _FOLDER, place]
        for folder in folders:
            paths = [folder / name for name in _FILES[split] if (folder / name).is_file()]
            if paths:
                return paths
        listing = "".join(f"\n  {folder / name}" for folder in folders for name in _FILES[split])
        raise DataError(
            f"cifar10: found no {split} images; none of these is there:{listing}\n"
            "Unpack the binary version from https://www.cs.toronto.edu/~kriz/cifar.html and name its folder "
            "with 'dir' (--data-dir)."
        )
