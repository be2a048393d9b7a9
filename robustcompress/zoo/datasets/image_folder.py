"""Images of one's own: a folder for each split, in it a folder for each class."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from robustcompress.data import ImageSet
from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.image_file import SUFFIXES, decode, read_size


class ImageFolder(DataSet):
    """``dir/train/CLASS/*.png`` and ``dir/test/CLASS/*.png`` (or .jpg, .jpeg), decoded into memory.

    Classes are the folders in ``dir/train``, sorted by name. Hidden files are passed over; any other file
    that is not an image is refused, so that none is left out unseen.

    Attributes:
        dir: Folder that holds ``train`` and ``test``.
        channels: 1 turns every image grey, 3 turns every image into red, green and blue. Transparency is
            dropped.
        image_size: Shrink or enlarge the shorter side to this and cut out the middle square. ``None``
            leaves images as they are; they must then have one size.
        memory_limit_mb: Refuse a split whose pixels need more than this many MiB.
    """

    channels: Literal[1, 3] = 3
    image_size: int | None = Field(default=None, ge=1)
    memory_limit_mb: int = Field(default=4096, ge=1)

    def read(self, split: Split) -> ImageSet:
        if self.dir is None:
            raise ConfigError(
                "image-folder: needs 'dir' (--data-dir), the folder that holds train/CLASS and test/CLASS."
            )
        classes = [folder.name for folder in _visible(self.dir / "train")]
        paths, labels = _list_images(self.dir / split, classes)
        height, width = self._common_size(paths)
        wanted_mb = len(paths) * self.channels * height * width / 2**20
        if wanted_mb > self.memory_limit_mb:
            raise DataError(
                f"{self.dir / split}: {len(paths)} images of {self.channels}x{height}x{width} need "
                f"{wanted_mb:.1f} MiB; the limit is {self.memory_limit_mb}. Set a smaller image_size, use "
                "fewer images or raise memory_limit_mb."
            )
        pixels: NDArray[np.uint8] = np.empty((len(paths), self.channels, height, width), dtype=np.uint8)
        for index, path in enumerate(paths):
            pixels[index] = decode(path, channels=self.channels, side=self.image_size)
        return ImageSet(
            images=torch.from_numpy(pixels),
            labels=torch.tensor(labels, dtype=torch.int64),
            classes=tuple(classes),
            name=f"{self.dir.name} {split}",
        )

    def _common_size(self, paths: list[Path]) -> tuple[int, int]:
        """Return the (height, width) that all images will have."""
        if self.image_size is not None:
            return self.image_size, self.image_size
        size = read_size(paths[0])
        for path in paths:
            other = read_size(path)
            if other != size:
                raise DataError(
                    f"{path} is {other[0]}x{other[1]} but {paths[0]} is {size[0]}x{size[1]}. Set image_size "
                    "to bring all images to one size."
                )
        return size


def _list_images(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """Return the image files in the class folders of ``folder``, sorted, and the class of each."""
    if not classes:
        raise DataError(f"{folder}: expected one folder for each class in train; found none.")
    paths: list[Path] = []
    labels: list[int] = []
    for class_folder in _visible(folder):
        if class_folder.name not in classes:
            raise DataError(
                f"{class_folder}: is no class of train, which has {', '.join(classes)}. Move it away."
            )
        for path in _visible(class_folder):
            if path.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{path}: expected {', '.join(SUFFIXES)} files only. Convert it or move it away."
                )
            paths.append(path)
            labels.append(classes.index(class_folder.name))
    missing = set(range(len(classes))) - set(labels)
    if missing:
        names = ", ".join(classes[label] for label in sorted(missing))
        raise DataError(
            f"{folder}: found no images of {names}. Every class of train needs some in each split."
        )
    return paths, labels


def _visible(folder: Path) -> list[Path]:
    """Return what lies in ``folder``, sorted by name, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder; got {error}. image-folder reads dir/train/CLASS/*.png and "
            "dir/test/CLASS/*.png (or .jpg)."
        ) from error
