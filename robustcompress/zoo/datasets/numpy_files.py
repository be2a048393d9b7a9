"""Images of one's own as NumPy arrays: one .npz file for each split, or a pair of .npy files."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from robustcompress.data import ImageSet
from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.datasets import DataSet, Split
from robustcompress.zoo.numpy_images import channels_first, labelled_arrays, labels_of, read_arrays


class NumpyFiles(DataSet):
    """``train.npz`` with ``images`` and ``labels``, or ``train_images.npy`` and ``train_labels.npy``.

    And the same for ``test``, all in ``dir``. Images are uint8: ``[count, channels, height, width]``,
    ``[count, height, width, channels]`` with 1 or 3 channels, or ``[count, height, width]`` for grey ones.
    Labels are integers from 0. Pickled arrays are refused.

    Attributes:
        dir: Folder that holds the files.
        class_names: Names of the classes; empty calls them by their numbers, 0 to the highest label of the
            training images.
    """

    class_names: tuple[str, ...] = ()

    def read(self, split: Split) -> ImageSet:
        if self.dir is None:
            raise ConfigError(
                "numpy-files: needs 'dir' (--data-dir), the folder that holds train.npz and test.npz."
            )
        images, labels, where = self._arrays(self.dir, split)
        classes = self.class_names
        if not classes:
            trained = labels if split == "train" else self._arrays(self.dir, "train")[1]
            classes = tuple(str(number) for number in range(int(trained.max(initial=0)) + 1))
        return ImageSet(
            images=torch.from_numpy(channels_first(images, where)),
            labels=torch.from_numpy(labels),
            classes=classes,
            name=f"{self.dir.name} {split}",
        )

    def _arrays(self, folder: Path, split: Split) -> tuple[NDArray[Any], NDArray[Any], Path]:
        """Return images and labels, and the file of the images."""
        together = folder / f"{split}.npz"
        apart = folder / f"{split}_images.npy", folder / f"{split}_labels.npy"
        if together.is_file():
            images, labels, where = *labelled_arrays(together), together
        elif all(path.is_file() for path in apart):
            images, labels, where = read_arrays(apart[0])["array"], read_arrays(apart[1])["array"], apart[0]
        else:
            tried = "".join(f"\n  {path}" for path in (together, *apart))
            raise DataError(f"numpy-files: found no {split} images; tried one file or the other two:{tried}")
        return images, labels_of(labels, where), where
