"""Labelled images in NumPy's files, every array checked."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcompress.errors import DataError


def labelled_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the arrays ``images`` and ``labels`` of an .npz file, as they are.

    Raises:
        DataError: If it cannot be read or lacks one of them.
    """
    arrays = read_arrays(path)
    if not {"images", "labels"} <= arrays.keys():
        raise DataError(f"{path}: expected the arrays images and labels; got {', '.join(arrays) or 'none'}.")
    return arrays["images"], arrays["labels"]


def labels_of(labels: NDArray[Any], where: Path) -> NDArray[np.int64]:
    """Return labels as int64 ``[count]``.

    Raises:
        DataError: If they are of another type or shape.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{where}: labels must be integers [count]; got {labels.dtype} {list(labels.shape)}.")
    return labels.astype(np.int64)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file; the one of an .npy file is called ``array``.

    Raises:
        DataError: If it cannot be read or holds pickled objects.
    """
    try:
        found: Any = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return {"array": found}
        with found:
            return {name: found[name] for name in found.files}
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
        raise DataError(
            f"{path}: expected a NumPy file without pickled objects; got {type(error).__name__}: {error}. "
            "Write it again with numpy.savez or numpy.save."
        ) from error


def channels_first(images: NDArray[Any], where: Path) -> NDArray[np.uint8]:
    """Return images as uint8 ``[count, channels, height, width]``.

    Args:
        images: With channels first, last (1 or 3) or none.
        where: The file, for messages.

    Raises:
        DataError: If they are of another type or shape.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{where}: images must be uint8 [count, height, width], with channels before or after the "
            f"last two or none; got {images.dtype} {list(images.shape)}. Images in [0, 1] become "
            "(255 * images).round()."
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)
