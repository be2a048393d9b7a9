"""Golomb-Rice codes of the gaps between nonzero values, and the nonzero values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Codec, Values, expect_parts
from robustcompress.storage.kept import kept_values, nonzero, scattered, value_parts

_WIDEST = 48  # bits of a gap: no tensor is longer


class Rice(Codec):
    """Smallest where half of the values or more are zero: for random positions near their entropy.

    A gap g is the number of zeros before a nonzero value since the last one. With parameter r, part ``unary``
    (uint8) holds g >> r clear bits and a set one for each, from the lowest bit of the first byte on; bits
    behind the last set one are clear, and there is no byte without a set one at the end. Part ``low`` (uint8)
    holds the r lower bits of all gaps, in r planes one after the other, the lowest bit's first: bit ``i % 8``
    of byte ``i // 8`` of a plane is that of value i. Part ``values``: the nonzero values in order, absent for
    booleans.

    Source:
        Rice and Plaunt 1971, "Adaptive variable-length coding for efficient compression of spacecraft
        television data", IEEE Transactions on Communication Technology 19(6).
    """

    def encode(self, values: Values) -> dict[str, Values]:
        positions = np.flatnonzero(nonzero(values))
        gaps = np.diff(positions, prepend=-1) - 1
        parameter = _best_parameter(gaps)
        ends = np.cumsum((gaps >> parameter) + 1) - 1
        unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
        unary[ends] = 1
        planes = [
            np.packbits(((gaps >> bit) & 1).astype(np.uint8), bitorder="little") for bit in range(parameter)
        ]
        low = np.concatenate([np.zeros(0, dtype=np.uint8), *planes])
        return {"unary": np.packbits(unary, bitorder="little"), "low": low, **kept_values(values, positions)}

    def decode(self, parts: Mapping[str, Values], size: int, dtype: np.dtype[Any]) -> Values:
        expect_parts(parts, ["unary", "low", *value_parts(dtype)])
        for name in ("unary", "low"):
            if parts[name].dtype != np.uint8:
                raise StorageError(f"part {name!r}: expected uint8; got {parts[name].dtype}.")
        unary = parts["unary"].astype(np.uint8, copy=False)
        if len(unary) and not unary[-1]:
            raise StorageError("part 'unary': ends in a byte without a set bit.")
        if len(unary) > (size + 7) // 8:  # each value takes a bit at least, and each gap no more than it is
            raise StorageError(f"part 'unary': {len(unary)} bytes are too many for {size} values.")
        ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
        gaps = _gaps(ends, parts["low"].astype(np.uint8, copy=False))
        # In float64 first: what is nonsense may overflow whole numbers.
        if float(gaps.sum(dtype=np.float64)) + len(gaps) > 2.0 * size + 1:
            raise StorageError(f"part 'unary': its gaps go far beyond {size} values.")
        positions = np.cumsum(gaps + 1) - 1
        if len(positions) and int(positions[-1]) >= size:
            raise StorageError(f"part 'unary': position {int(positions[-1])} is outside {size} values.")
        return scattered(parts, positions, len(positions), size, dtype)


def _gaps(ends: npt.NDArray[np.int64], low: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the gaps whose codes end at ``ends`` of the unary stream."""
    plane = (len(ends) + 7) // 8
    parameter = len(low) // plane if plane else 0
    if parameter * plane != len(low) or parameter > _WIDEST:
        raise StorageError(
            f"part 'low': expected up to {_WIDEST} planes of {plane} bytes; got {len(low)} bytes."
        )
    zeros = np.diff(ends, prepend=-1) - 1
    if parameter and int(zeros.max(initial=0)) >= 1 << (_WIDEST + 13 - parameter):
        raise StorageError("part 'unary': a gap is longer than any tensor.")
    gaps = zeros << parameter
    for bit in range(parameter):
        packed = low[bit * plane : (bit + 1) * plane]
        if len(ends) % 8 and int(packed[-1]) >> (len(ends) % 8):
            raise StorageError(f"part 'low': a bit behind the last of {len(ends)} values is set.")
        bits = np.unpackbits(packed, count=len(ends), bitorder="little").astype(np.int64)
        gaps |= bits << bit
    return gaps


def _best_parameter(gaps: npt.NDArray[np.int64]) -> int:
    """Return the parameter with which both parts take the fewest bytes, the smallest one of a tie."""
    widest = int(gaps.max(initial=0)).bit_length()

    def size(parameter: int) -> int:
        unary = int((gaps >> parameter).sum()) + len(gaps)
        return (unary + 7) // 8 + parameter * ((len(gaps) + 7) // 8)

    return min(range(widest + 1), key=size)
