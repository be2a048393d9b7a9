"""Choose a part of a data set that has as many images of each class as of any other."""

from typing import TypeVar

import numpy as np
import torch

from robustcompress.data import ImageFiles, ImageSet
from robustcompress.errors import ConfigError, DataError

Images = TypeVar("Images", ImageSet, ImageFiles)
"""Images in memory or in files."""


def balanced_subset(images: Images, size: int, *, seed: int) -> Images:
    """Return ``size`` images, the same number of each class, the classes taking turns.

    Subsets of one seed are nested: the smaller is the beginning of the larger, and any beginning of whole
    turns is balanced too.

    Args:
        images: The whole set.
        size: Images to keep, a multiple of the number of classes.
        seed: Chooses which. The choice is the same on every machine and with every version of NumPy, which
            promises the stream of its bit generators for ever.

    Raises:
        ConfigError: If ``size`` is not a positive multiple of the number of classes.
        DataError: If a class has too few images.
    """
    classes = len(images.classes)
    if size < 1 or size % classes:
        raise ConfigError(
            f"{images.name}: a balanced subset needs a positive multiple of {classes} classes; got {size}. "
            f"Try {max(1, round(size / classes)) * classes}."
        )
    each = size // classes
    order = torch.from_numpy(np.argsort(np.random.PCG64(seed).random_raw(len(images)), kind="stable"))
    labels = images.labels.cpu()[order]
    chosen = [order[labels == label][:each] for label in range(classes)]
    fewest = min(range(classes), key=lambda label: len(chosen[label]))
    if len(chosen[fewest]) < each:
        raise DataError(
            f"{images.name}: {size} balanced images need {each} of each class; {images.classes[fewest]!r} "
            f"has {len(chosen[fewest])}. Ask for at most {len(chosen[fewest]) * classes}."
        )
    return images.select(torch.stack(chosen, dim=1).flatten())
