"""Read arrays of numbers from MATLAB's level-5 files, checking every claim before believing it.

A file is a header of 128 bytes and then elements, each with a type and a length of 4 bytes; one of type 15 is
a compressed element. An array is an element that holds others: flags, dimensions, name, numbers. Short
elements pack length and type into 4 bytes and their content into the next 4.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustcompress.errors import DataError

_HEADER = 128
_ARRAY, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits
_MOST_BYTES = 4 * 2**30


def read_matlab(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """Return the arrays ``names`` of a file, in MATLAB's order of axes.

    Args:
        path: A level-5 file (``save`` up to ``-v7``).
        names: Which arrays; others are passed over.

    Raises:
        DataError: If the file cannot be read, is damaged, or lacks one of them.

    Source:
        The MathWorks, "MAT-File Format", level 5.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file; got {error}.") from error
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise DataError(
            f"{path}: expected a MATLAB file of level 5; it does not begin as one. Fetch the file again."
        )
    found: dict[str, NDArray[np.generic]] = {}
    try:
        for kind, content in _elements(memoryview(data)[_HEADER:], order):
            if kind == _COMPRESSED:
                kind, content = next(_elements(memoryview(_inflated(content)), order))
            if kind == _ARRAY:
                found.update(_array(content, order, names))
    except (ValueError, StopIteration, struct.error, zlib.error) as error:
        raise DataError(f"{path}: is a damaged MATLAB file: {error}. Fetch the file again.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path}: expected the arrays {', '.join(names)}; {', '.join(missing)} is missing.")
    return found


def _inflated(content: memoryview) -> bytes:
    inflater = zlib.decompressobj()
    data = inflater.decompress(content, _MOST_BYTES)
    if not inflater.eof:
        raise ValueError("a compressed element does not end")
    return data


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the content of each element."""
    place = 0
    while place + 8 <= len(data):
        (first,) = struct.unpack_from(f"{order}I", data, place)
        if first >> 16:  # a short element
            kind, length, begin = first & 0xFFFF, first >> 16, place + 4
            place += 8
        else:
            kind, (length,), begin = first, struct.unpack_from(f"{order}I", data, place + 4), place + 8
            padded = length if kind == _COMPRESSED else -(-length // 8) * 8
            place = begin + padded
        if begin + length > len(data) or (first >> 16 and length > 4):
            raise ValueError(f"an element claims {length} bytes, and the file ends before")
        yield kind, data[begin : begin + length]


def _array(content: memoryview, order: str, names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    """Return the array by its name, or nothing if it is not asked for."""
    parts = _elements(content, order)
    _, flags = next(parts)
    _, dimensions = next(parts)
    _, name_bytes = next(parts)
    name = bytes(name_bytes).decode("ascii", errors="replace")
    if name not in names:
        return {}
    kind, numbers = next(parts)
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if flag & 0xFF not in _NUMERIC_CLASSES or flag & 0x0800 or kind not in _NUMBERS:
        raise ValueError(f"{name} is no array of real numbers")
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    dtype = np.dtype(order + _NUMBERS[kind])
    if min(shape, default=-1) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"{name} claims {list(shape)} and has {len(numbers)} bytes")
    return {name: np.frombuffer(numbers, dtype).reshape(shape, order="F")}
