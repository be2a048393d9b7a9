"""Read the IDX format of MNIST and Fashion-MNIST, checking every claim before believing it.

A file is: two zero bytes, one byte for the type (8: unsigned bytes), one for the number of dimensions, each
dimension as a big-endian 32-bit integer, then the numbers, last dimension fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from robustcompress.errors import DataError

_UNSIGNED_BYTES = 8
# Deflate writes at best 258 bytes for 2 bits, so no honest file claims more than this times its size.
_LARGEST_EXPANSION = 1040
_CHUNK = 1 << 20


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes; a name that ends in ``.gz`` is decompressed.

    Args:
        path: The file.
        dimensions: How many dimensions it must have: 3 for images, 1 for labels.

    Raises:
        DataError: If the file cannot be read, is of another type, or its length is not what it claims.

    Source:
        LeCun, Cortes and Burges, "The MNIST database", section "The IDX file format".
    """
    try:
        size = path.stat().st_size
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return _read(file, path, dimensions, most=size * _LARGEST_EXPANSION)
        with path.open("rb") as file:
            return _read(file, path, dimensions, most=size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a readable IDX file; got {error}. Fetch the file again."
        ) from error


def _read(file: BinaryIO | gzip.GzipFile, path: Path, dimensions: int, *, most: int) -> NDArray[np.uint8]:
    header_bytes = 4 + 4 * dimensions
    header = file.read(header_bytes)
    magic = struct.pack(">HBB", 0, _UNSIGNED_BYTES, dimensions)
    if header[:4] != magic:
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes with {dimensions} dimensions, which begins with "
            f"{magic.hex()}; got {header[:4].hex() or 'an empty file'}. Fetch the file again."
        )
    if len(header) < header_bytes:
        raise DataError(
            f"{path}: the header must have {header_bytes} bytes; got {len(header)}. Fetch it again."
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    expected = math.prod(shape)
    if header_bytes + expected > most:
        raise DataError(
            f"{path}: claims {list(shape)}, {expected} bytes, but the file cannot hold more than "
            f"{max(0, most - header_bytes)}. Fetch it again."
        )
    numbers = _read_at_most(file, expected + 1)
    if len(numbers) != expected:
        found = f"{len(numbers)}" if len(numbers) < expected else "more"
        raise DataError(f"{path}: claims {list(shape)}, {expected} bytes; holds {found}. Fetch it again.")
    return np.frombuffer(numbers, dtype=np.uint8).reshape(shape)


def _read_at_most(file: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Return up to ``count`` bytes; memory grows with what the file holds, not with what it claims."""
    numbers = bytearray()
    while len(numbers) < count:
        piece = file.read(min(_CHUNK, count - len(numbers)))
        if not piece:
            break
        numbers += piece
    return numbers
