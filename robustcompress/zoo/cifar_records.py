"""The binary layout of CIFAR-10 and CIFAR-100: labels, then the red, green and blue planes of 32x32."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustcompress.errors import DataError

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def read_records(
    path: Path, *, labels: int, classes: int, which: str
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the labels ``[count]`` and the images, uint8 ``[count, 3, 32, 32]``, of one file.

    Args:
        path: The file.
        labels: Bytes of labels before each image; the last of them counts.
        classes: How many there are.
        which: What the file should be, for the message about a label that is too high.

    Raises:
        DataError: If it cannot be read, is not made of whole records, or a label is too high.
    """
    record_bytes = labels + _PIXELS
    try:
        size = path.stat().st_size
        if size == 0 or size % record_bytes:
            raise DataError(
                f"{path}: expected one or more records of {record_bytes} bytes; got {size} bytes. "
                "Unpack it again."
            )
        records = np.fromfile(path, dtype=np.uint8).reshape(-1, record_bytes)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file; got {error}.") from error
    found = records[:, labels - 1].astype(np.int64)
    if found.max() >= classes:
        raise DataError(f"{path}: labels must be 0 to {classes - 1}; found {found.max()}. Is it {which}?")
    return found, np.ascontiguousarray(records[:, labels:]).reshape(-1, *SHAPE)
