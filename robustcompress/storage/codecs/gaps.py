"""The distance from each nonzero value to the next, and the nonzero values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Codec, Values, expect_parts
from robustcompress.storage.kept import kept_values, nonzero, scattered, value_parts


class Gaps(Codec):
    """Smallest where nine values out of ten or more are zero.

    Part ``gaps`` (uint8, or uint16 where that is smaller): before each nonzero value, the number of zeros
    since the last one. The greatest number of the dtype, E = 255 or 65535, is an escape: skip E zeros, and
    no value follows. Zeros behind the last nonzero value are not written. Part ``values``: the nonzero
    values in order, absent for booleans.
    """

    def encode(self, values: Values) -> dict[str, Values]:
        positions = np.flatnonzero(nonzero(values))
        zeros = np.diff(positions, prepend=-1) - 1
        candidates = [_with_escapes(zeros, dtype) for dtype in (np.dtype(np.uint8), np.dtype(np.uint16))]
        return {"gaps": min(candidates, key=lambda gaps: gaps.nbytes), **kept_values(values, positions)}

    def decode(self, parts: Mapping[str, Values], size: int, dtype: np.dtype[Any]) -> Values:
        expect_parts(parts, ["gaps", *value_parts(dtype)])
        gaps = parts["gaps"]
        if gaps.dtype.name not in ("uint8", "uint16"):
            raise StorageError(f"part 'gaps': expected uint8 or uint16; got {gaps.dtype}.")
        steps = gaps.astype(np.int64)
        ends_in_value: npt.NDArray[np.bool_] = np.not_equal(steps, 256**gaps.dtype.itemsize - 1)
        if len(steps) and not ends_in_value[-1]:
            raise StorageError("part 'gaps': ends in an escape that no value follows.")
        positions = (np.cumsum(steps + ends_in_value) - 1)[ends_in_value]
        if len(positions) and int(positions[-1]) >= size:
            raise StorageError(f"part 'gaps': position {int(positions[-1])} is outside {size} values.")
        return scattered(parts, positions, len(positions), size, dtype)


def _with_escapes(zeros: npt.NDArray[np.int64], dtype: np.dtype[Any]) -> Values:
    """Return ``zeros`` as ``dtype``, each preceded by the escapes that it needs."""
    escape = 256**dtype.itemsize - 1
    escapes = zeros // escape
    gaps = np.full(int(escapes.sum()) + len(zeros), escape, dtype)
    gaps[np.cumsum(escapes + 1) - 1] = (zeros % escape).astype(dtype)
    return gaps
