"""Images of one's own: a folder for each split, in it a folder for each class."""

import logging
import math
import os
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from robustcompress.data import ImageFiles, ImageSet
from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.image_file import SUFFIXES, decode, read_size

_LOG = logging.getLogger(__name__)


class ImageFolder(DataSet):
    """``dir/train/CLASS/*.png`` and ``dir/test/CLASS/*.png`` (or .jpg, .jpeg).

    Classes are the folders in ``dir/train``, sorted by name. Hidden files are passed over; any other file
    that is not an image is refused, so that none is left out unseen. A split is decoded into memory or, if
    it needs more than ``memory_limit_mb``, anew in each epoch.

    Attributes:
        dir: Folder that holds ``train`` and ``test``.
        channels: 1 turns every image grey, 3 turns every image into red, green and blue. Transparency is
            dropped.
        image_size: Shrink or enlarge the shorter side to this and cut out the middle square. ``None``
            leaves images as they are; they must then have one size.
        memory_limit_mb: Keep a split in memory if its pixels need at most this many MiB.
        corrupt: What becomes of files that cannot be decoded. ``refuse`` names the first one met; ``skip``
            leaves them out and names them all in a warning of the log, after every file was decoded once.
    """

    folders: ClassVar[dict[Split, str]] = {"train": "train", "test": "test"}

    channels: Literal[1, 3] = 3
    image_size: int | None = Field(default=None, ge=1)
    memory_limit_mb: int = Field(default=4096, ge=1)
    corrupt: Literal["refuse", "skip"] = "refuse"

    def read(self, split: Split) -> ImageSet:
        files = self._files(split)
        wanted_mb = _size_mb(files)
        if wanted_mb > self.memory_limit_mb:
            channels, height, width = files.shape
            raise DataError(
                f"{files.folder}: {len(files)} images of {channels}x{height}x{width} need "
                f"{wanted_mb:.1f} MiB; the limit is {self.memory_limit_mb}. Set a smaller image_size, use "
                "fewer images, raise memory_limit_mb, or decode them as they are needed: open() instead of "
                "load()."
            )
        return self._decoded(files)

    def open(self, split: Split) -> ImageSet | ImageFiles:
        files = self._files(split)
        if _size_mb(files) > self.memory_limit_mb:
            return self.chosen(files, split)
        return self.chosen(self._decoded(files), split)

    def _files(self, split: Split) -> ImageFiles:
        if self.dir is None:
            raise ConfigError(
                f"{self.kind.replace('_', '-')}: needs 'dir' (--data-dir), the folder that holds "
                f"{self.folders['train']}/CLASS and {self.folders['test']}/CLASS."
            )
        classes = [folder.name for folder in _visible(self.dir / self.folders["train"])]
        folder, side = self.dir / self.folders[split], self.image_size
        paths, labels = _list_images(folder, classes)
        skipped = ""
        if self.corrupt == "skip":
            count = len(paths)
            paths, labels = _sound(paths, labels, folder, self.channels)
            skipped = f" ({count - len(paths)} corrupt left out)" if len(paths) < count else ""
        return ImageFiles(
            folder=folder,
            paths=np.array([os.fsencode(path.relative_to(folder)) for path in paths]),
            labels=torch.tensor(labels, dtype=torch.int64),
            classes=tuple(classes),
            name=f"{self.dir.name} {split}{skipped}",
            shape=(self.channels, *((side, side) if side else read_size(paths[0]))),
            decode=partial(decode, channels=self.channels, side=side),
        )

    def _decoded(self, files: ImageFiles) -> ImageSet:
        """Return the same images in memory."""
        if self.image_size is None:
            _check_sizes(files)
        pixels: NDArray[np.uint8] = np.empty((len(files), *files.shape), dtype=np.uint8)
        for index in range(len(files)):
            pixels[index] = files.decode(files.path(index))
        return ImageSet(torch.from_numpy(pixels), files.labels, files.classes, files.name)


def _size_mb(files: ImageFiles) -> float:
    """Return the MiB that the pixels of all images need."""
    return len(files) * math.prod(files.shape) / 2**20


def _check_sizes(files: ImageFiles) -> None:
    """Look at every file's header before any is decoded."""
    for index in range(len(files)):
        height, width = read_size(files.path(index))
        if (height, width) != files.shape[1:]:
            raise DataError(
                f"{files.path(index)} is {height}x{width} but {files.path(0)} is "
                f"{files.shape[1]}x{files.shape[2]}. Set image_size to bring all images to one size."
            )


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


def _sound(paths: list[Path], labels: list[int], folder: Path, channels: int) -> tuple[list[Path], list[int]]:
    """Return the files that can be decoded; the others are named in the log."""
    broken: list[Path] = []
    kept: list[tuple[Path, int]] = []
    for path, label in zip(paths, labels, strict=True):
        try:
            decode(path, channels=channels, side=None)
        except DataError:
            broken.append(path)
        else:
            kept.append((path, label))
    if broken:
        names = ", ".join(str(path.relative_to(folder)) for path in broken)
        _LOG.warning(
            "%s: left out %d of %d images, which are corrupt: %s", folder, len(broken), len(paths), names
        )
    if {label for _, label in kept} != set(labels):
        raise DataError(
            f"{folder}: a class has corrupt images only, such as {broken[0]}. Repair or remove it."
        )
    return [path for path, _ in kept], [label for _, label in kept]


def _visible(folder: Path) -> list[Path]:
    """Return what lies in ``folder``, sorted by name, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder; got {error}. image-folder reads dir/train/CLASS/*.png and "
            "dir/test/CLASS/*.png (or .jpg)."
        ) from error
