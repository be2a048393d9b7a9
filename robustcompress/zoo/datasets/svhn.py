"""SVHN: 73,257 and 26,032 colour images of house numbers, cropped to 32x32, as MATLAB files."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.downloading import Download
from robustcompress.zoo.matlab_file import read_matlab


class Svhn(DataSet):
    """``train_32x32.mat`` and ``test_32x32.mat`` ("format 2"); the digit 0, which they call 10, is class 0.

    Attributes:
        dir: Folder that holds the files. ``None`` looks in ``~/.cache/robustcompress/svhn``.

    Source:
        Netzer et al. 2011, "Reading digits in natural images with unsupervised feature learning";
        http://ufldl.stanford.edu/housenumbers.
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        Download(
            ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",), "e26dedcc434d2e4c54c9b2d4a06d8373"
        ),
        Download(
            ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",), "eb5a983be6a315427106f1b164d9cef3"
        ),
    )
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")

    def read(self, split: Split) -> ImageSet:
        place = self.dir or Path.home() / ".cache" / "robustcompress" / "svhn"
        path = place / f"{split}_32x32.mat"
        if not path.is_file():
            raise DataError(
                f"svhn: found no {split} images; tried:\n  {path}\nFetch the file from "
                "http://ufldl.stanford.edu/housenumbers and name its folder with 'dir' (--data-dir)."
            )
        arrays = read_matlab(path, ("X", "y"))
        images, labels = arrays["X"], arrays["y"].reshape(-1)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
            raise DataError(
                f"{path}: X must be uint8 [height, width, 3, count]; got {images.dtype} "
                f"{list(images.shape)}. Is it the cropped version, format 2?"
            )
        if labels.size and not (labels.min() >= 1 and labels.max() <= 10):
            raise DataError(f"{path}: y must be 1 to 10; found {labels.min()} to {labels.max()}.")
        return ImageSet(
            images=torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))),
            labels=torch.from_numpy(labels.astype(np.int64) % 10),
            classes=self.class_names,
            name=f"svhn {split}",
        )
