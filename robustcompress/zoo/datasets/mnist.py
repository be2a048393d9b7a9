"""MNIST: 60,000 and 10,000 grey images of digits, 28x28, as IDX files."""

from pathlib import Path
from typing import ClassVar

from robustcompress.data import ImageSet
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.downloading import Download
from robustcompress.zoo.idx_images import read_idx_images

_ADVICE = (
    "Fetch the four files, such as train-images-idx3-ubyte.gz, with `robustcompress fetch mnist`, or from "
    "https://ossci-datasets.s3.amazonaws.com/mnist and name their folder with 'dir' (--data-dir)."
)

_PLACES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_SUMS = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


class Mnist(DataSet):
    """The four IDX files as their authors publish them, gzipped or not.

    Attributes:
        dir: Folder that holds the files, or torchvision's folder around ``MNIST/raw``. ``None`` looks in
            ``~/.cache/robustcompress/mnist``.

    Source:
        LeCun, Cortes and Burges, "The MNIST database"; LeCun et al. 1998, "Gradient-based learning applied
        to document recognition".
    """

    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    downloads: ClassVar[tuple[Download, ...]] = tuple(
        Download(tuple(place + name for place in _PLACES), md5) for name, md5 in _SUMS.items()
    )

    def read(self, split: Split) -> ImageSet:
        place = self.dir or Path.home() / ".cache" / "robustcompress" / "mnist"
        folders = [place, place / "MNIST" / "raw"]
        return read_idx_images(folders, split, name="mnist", classes=self.class_names, advice=_ADVICE)
