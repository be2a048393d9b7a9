"""Golomb-Rice codes for the positions of nonzero weights, in NumPy.

A position is written as its gap: how many zeros stand before it since the last one. With parameter ``r``,
gap ``g`` becomes ``g >> r`` zero bits and a one bit in the unary stream, and its ``r`` lower bits in ``r``
bit planes. With ``r = 0`` the unary stream is a bitmask up to the last position.

Source:
    Golomb 1966, "Run-length encodings", IEEE Transactions on Information Theory 12(3); Rice and Plaunt
    1971, "Adaptive variable-length coding for efficient compression of spacecraft television data".
    Differs: the two parts of a code lie in streams of their own, so that whole-array operations read them.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from robustcompress.errors import ExportError

Positions: TypeAlias = npt.NDArray[np.int64]
Packed: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class RiceCode:
    """Coded positions.

    Attributes:
        parameter: Lower bits that each gap has in the planes.
        unary: uint8, eight bits a byte, the first bit highest.
        unary_bits: How many of them count.
        planes: uint8 ``[parameter, ceil((positions + 1) / 8)]``, highest bit first. Column 0 is all ones:
            together with the 1 that every code advances by, it is what a zero of the unary stream stands
            for, so that a decoder looks up zeros and ones alike.
    """

    parameter: int
    unary: Packed
    unary_bits: int
    planes: Packed

    @property
    def size_bytes(self) -> int:
        """Bytes of both streams."""
        return self.unary.nbytes + self.planes.nbytes


def gaps_of(positions: Positions) -> Positions:
    """Return how many zeros stand before each position since the one before it.

    Args:
        positions: int64 ``[count]``, 0 or more, strictly increasing.

    Raises:
        ExportError: If they are not.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    if np.any(gaps < 0):
        raise ExportError("positions must be 0 or more and strictly increasing; sort them and drop doubles.")
    return gaps


def coded_bytes(gaps: Positions, parameter: int) -> int:
    """Return the bytes that :func:`encode` needs with ``parameter``."""
    count = len(gaps)
    return _bytes(int((gaps >> parameter).sum()) + count) + parameter * _bytes(count + 1)


def best_parameter(gaps: Positions) -> int:
    """Return the parameter of 1 or more that needs the fewest bytes, the smallest one of a tie."""
    widest = int(gaps.max(initial=1)).bit_length()
    return min(range(1, widest + 1), key=lambda parameter: coded_bytes(gaps, parameter))


def encode(positions: Positions, parameter: int | None = None) -> RiceCode:
    """Code ``positions``.

    Args:
        positions: int64 ``[count]``, 0 or more, strictly increasing.
        parameter: 0 or more; ``None`` takes the best of 1 or more.

    Raises:
        ExportError: If the positions are not increasing.
    """
    gaps = gaps_of(positions)
    if parameter is None:
        parameter = best_parameter(gaps)
    ends = np.cumsum((gaps >> parameter) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    unary[ends] = 1
    low = np.concatenate([[-1], gaps])
    shifts = range(parameter - 1, -1, -1)
    planes = [np.packbits(((low >> shift) & 1).astype(np.uint8)) for shift in shifts]
    stacked = np.stack(planes) if planes else np.zeros((0, _bytes(len(low))), dtype=np.uint8)
    return RiceCode(parameter, np.packbits(unary), len(unary), stacked)


def decode(code: RiceCode) -> Positions:
    """Return the positions that ``code`` holds."""
    bits = np.unpackbits(code.unary, count=code.unary_bits)
    ends = np.flatnonzero(bits)
    zeros_before = np.diff(ends, prepend=-1) - 1
    low = np.zeros(len(ends), dtype=np.int64)
    for plane in code.planes:
        low = 2 * low + np.unpackbits(plane, count=len(ends) + 1)[1:]
    advances: Positions = (zeros_before << code.parameter) + low + 1
    return np.cumsum(advances) - 1


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
