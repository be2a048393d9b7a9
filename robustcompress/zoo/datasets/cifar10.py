"""CIFAR-10: 50,000 and 10,000 colour images of 32x32, in the binary layout of its authors."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.datasets import DataSet, Split

_FOLDER = "cifar-10-batches-bin"
_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32
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
        records = np.concatenate([_read_batch(path) for path in paths])
        labels = torch.from_numpy(records[:, 0].astype(np.int64))
        images = torch.from_numpy(np.ascontiguousarray(records[:, 1:])).reshape(-1, *_SHAPE)
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


def _read_batch(path: Path) -> NDArray[np.uint8]:
    """Return the records of one file, uint8 ``[count, 3073]``."""
    try:
        size = path.stat().st_size
        if size == 0 or size % _RECORD_BYTES:
            raise DataError(
                f"{path}: expected one or more records of {_RECORD_BYTES} bytes; got {size} bytes. "
                "Unpack it again."
            )
        records = np.fromfile(path, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file; got {error}.") from error
    highest = int(records[:, 0].max())
    if highest > 9:
        raise DataError(
            f"{path}: labels must be 0 to 9; found {highest}. Is it the binary version of CIFAR-10 (not 100)?"
        )
    return records
