"""Data sets that recipes name."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from robustcompress.data import ImageFiles, ImageSet
from robustcompress.errors import ConfigError
from robustcompress.member import Member, class_attribute
from robustcompress.zoo.balanced_subset import Images, balanced_subset
from robustcompress.zoo.downloading import Download, Progress, fetch

if TYPE_CHECKING:
    from robustcompress.zoo.datasets.cifar10 import Cifar10 as Cifar10
    from robustcompress.zoo.datasets.cifar100 import Cifar100 as Cifar100
    from robustcompress.zoo.datasets.fashion_mnist import FashionMnist as FashionMnist
    from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini as FashionMnistMini
    from robustcompress.zoo.datasets.image_folder import ImageFolder as ImageFolder
    from robustcompress.zoo.datasets.imagenet import Imagenet as Imagenet
    from robustcompress.zoo.datasets.mnist import Mnist as Mnist
    from robustcompress.zoo.datasets.numpy_files import NumpyFiles as NumpyFiles
    from robustcompress.zoo.datasets.svhn import Svhn as Svhn

Split: TypeAlias = Literal["train", "test"]


class DataSet(Member, ABC):
    """Where a data set lies and which part of it is used.

    Attributes:
        dir: Folder that holds the files; ``None`` looks in the usual places.
        train_size: Training images to use, the same number of each class; ``None`` uses all.
        test_size: The same for the test images.
        subset_seed: Chooses which images a size keeps.
    """

    family: ClassVar[str] = "robustcompress.zoo.datasets"
    downloads: ClassVar[tuple[Download, ...]] = ()
    """What ``fetch`` brings; empty if nothing is published under a fixed address."""

    dir: Path | None = None
    train_size: int | None = Field(default=None, ge=1)
    test_size: int | None = Field(default=None, ge=1)
    subset_seed: int = Field(default=0, ge=0)

    def load(self, split: Split) -> ImageSet:
        """Return one split in memory: whole, or a balanced subset of ``train_size`` or ``test_size`` images.

        Raises:
            DataError: If files are missing or damaged; the message names the paths tried. Or if a class has
                too few images for the size.
            ConfigError: If the size is no multiple of the number of classes.
        """
        return self.chosen(self.read(split), split)

    def open(self, split: Split) -> ImageSet | ImageFiles:
        """Return what ``load`` does or, where memory is too small for it, the files to decode it from.

        Raises:
            DataError: As ``load``.
            ConfigError: As ``load``.
        """
        return self.load(split)

    def chosen(self, images: Images, split: Split) -> Images:
        """Return ``images``, a whole split, or the subset of it that the settings ask for.

        Raises:
            DataError: If a class has too few images for the size.
            ConfigError: If the size is no multiple of the number of classes.
        """
        size = self.train_size if split == "train" else self.test_size
        if size is None:
            return images
        subset = balanced_subset(images, size, seed=self.subset_seed)
        return replace(subset, name=f"{images.name} ({size} balanced, seed {self.subset_seed})")

    def fetch(self, *, progress: Progress | None = None) -> list[Path]:
        """Bring the files from where their authors publish them into ``dir``, or where it is looked for.

        Files that are there already are not fetched again; each that comes is checked against its sum.

        Args:
            progress: Told the file, the bytes so far, and all of them.

        Returns:
            Paths of the files.

        Raises:
            ConfigError: If nothing is published under a fixed address.
            DataError: If no address answers, or what came is damaged; names the addresses and the paths.
        """
        name = self.kind.replace("_", "-")
        if not self.downloads:
            raise ConfigError(f"{name} has no files to fetch: it is bundled, or made of files of your own.")
        return fetch(
            self.downloads, self.dir or Path.home() / ".cache" / "robustcompress" / name, progress=progress
        )

    @abstractmethod
    def read(self, split: Split) -> ImageSet:
        """Return one split, whole.

        Raises:
            DataError: If files are missing or damaged; the message names the paths tried.
        """


def __getattr__(name: str) -> Any:
    return class_attribute(DataSet, name)
