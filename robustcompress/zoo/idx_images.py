"""Images and labels of one split from a pair of IDX files, as MNIST and its kin are published."""

from collections.abc import Sequence
from pathlib import Path

import torch

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.zoo.datasets import Split
from robustcompress.zoo.idx import read_idx

_PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}


def read_idx_images(
    folders: Sequence[Path], split: Split, *, name: str, classes: tuple[str, ...], advice: str
) -> ImageSet:
    """Return one split, from the first of ``folders`` that has both of its files, gzipped or not.

    Args:
        folders: Where to look.
        split: Its files begin with ``train`` or ``t10k``.
        name: Of the data set, for messages and reports.
        classes: Names of the classes.
        advice: How to get the files.

    Raises:
        DataError: If no folder has both, one is damaged, or they do not belong together.
    """
    images_path, labels_path = _find(folders, split, name, advice)
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
        classes=classes,
        name=f"{name} {split}",
    )


def _find(folders: Sequence[Path], split: Split, name: str, advice: str) -> tuple[Path, Path]:
    """Return the paths of images and labels, both from the first folder that has both."""
    stems = [f"{_PREFIXES[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1")]
    tried: list[Path] = []
    for folder in folders:
        found: list[Path] = []
        for stem in stems:
            candidates = [folder / f"{stem}.gz", folder / stem]
            tried += candidates
            found += [path for path in candidates if path.is_file()][:1]
        if len(found) == 2:
            return found[0], found[1]
    listing = "".join(f"\n  {path}" for path in tried)
    raise DataError(
        f"{name}: expected the images and the labels of {split} in one folder; tried:{listing}\n{advice}"
    )
