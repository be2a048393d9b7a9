"""Fashion-MNIST: 60,000 and 10,000 grey images of clothes, 28x28, as IDX files."""

from pathlib import Path
from typing import ClassVar

from robustcompress.data import ImageSet
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.downloading import Download
from robustcompress.zoo.idx_images import read_idx_images

_ADVICE = (
    "Install Debian's package dataset-fashion-mnist, or fetch the four files from "
    "https://github.com/zalandoresearch/fashion-mnist and name their folder with 'dir' (--data-dir). "
    "The bundled subset fashion-mnist-mini needs no files."
)

_PLACES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
_SUMS = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


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
    downloads: ClassVar[tuple[Download, ...]] = tuple(
        Download(tuple(place + name for place in _PLACES), md5) for name, md5 in _SUMS.items()
    )
    debian_dir: ClassVar[Path] = Path("/usr/share/datasets/fashion-mnist")

    def read(self, split: Split) -> ImageSet:
        if self.dir is not None:
            folders = [self.dir]
        else:
            folders = [Path.home() / ".cache" / "robustcompress" / "fashion-mnist", self.debian_dir]
        return read_idx_images(folders, split, name="fashion-mnist", classes=self.class_names, advice=_ADVICE)
