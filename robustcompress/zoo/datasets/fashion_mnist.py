"""Fashion-MNIST: 60,000 and 10,000 grey images of clothes, 28x28, as IDX files."""

from pathlib import Path
from typing import ClassVar

import torch

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.idx import read_idx

_PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}


class FashionMnist(DataSet):
    """The four IDX files as their authors publish them, gzipped or not.

    Attributes:
        dir: Folder that holds the files. ``None`` looks in ``~/.cache/robustcompress/fashion-mnist``, then
            where Debian's package ``dataset-fashion-mnist`` puts them.

    Source:
        Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747.
    """

    class_names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    debian_dir: ClassVar[Path] = Path("/usr/share/datasets/fashion-mnist")

    def read(self, split: Split) -> ImageSet:
        images_path, labels_path = self._find(split)
        images = read_idx(images_path, dimensions=3)
        labels = read_idx(labels_path, dimensions=1)
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels. "
                "Fetch both again."
            )
        return ImageSet(
            images=torch.from_numpy(images).unsqueeze(1),
            labels=torch.from_numpy(labels).to(torch.int64),
            classes=self.class_names,
            name=f"fashion-mnist {split}",
        )

    def _find(self, split: Split) -> tuple[Path, Path]:
        """Return the paths of images and labels, both from the first folder that has both."""
        images, labels = (f"{_PREFIXES[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1"))
        if self.dir is not None:
            folders = [self.dir]
        else:
            folders = [Path.home() / ".cache" / "robustcompress" / "fashion-mnist", self.debian_dir]
        tried: list[Path] = []
        for folder in folders:
            found: list[Path] = []
            for name in (images, labels):
                candidates = [folder / f"{name}.gz", folder / name]
                tried += candidates
                found += [path for path in candidates if path.is_file()][:1]
            if len(found) == 2:
                return found[0], found[1]
        listing = "".join(f"\n  {path}" for path in tried)
        raise DataError(
            f"fashion-mnist: expected the images and the labels of {split} in one folder; tried:{listing}\n"
            "Install Debian's package dataset-fashion-mnist, or fetch the four files from "
            "https://github.com/zalandoresearch/fashion-mnist and name their folder with 'dir' (--data-dir). "
            "The bundled subset fashion-mnist-mini needs no files."
        )
