"""Where the channels of a value lie in memory."""

from collections.abc import Iterable
from dataclasses import dataclass

from robustcompress.export.c.network import Shape

MOST_LANES = 16
"""Floats of the widest vector: one may be read or written past a plane's end."""


def rounded(length: int, lanes: int) -> int:
    """Return ``length`` rounded up to whole vectors."""
    return -(-length // lanes) * lanes


@dataclass(frozen=True)
class Planes:
    """A value of channels, rows and columns: one plane a channel, or three.

    A position of a plane is ``y * row + x``. Whatever lies around a plane's positions is zero, so that a
    window may reach over the edges: with ``shifted`` false, rows are longer than the image and end in columns
    of zeros; with ``shifted`` true, rows follow each other directly and a channel has three copies, in which
    each row is shifted right by one, not, and left by one (zeros come in at the sides).

    Attributes:
        channels: Of the value, or planes of a gathered one.
        height: Rows.
        width: Columns.
        row: Floats from one row to the next.
        lead: Zeros before the first position of each copy.
        body: Floats of a copy from its first position on, whole vectors.
        copies: 1 or 3.
    """

    channels: int
    height: int
    width: int
    row: int
    lead: int
    body: int
    copies: int

    @property
    def positions(self) -> int:
        """From the first pixel to the last, the columns between included."""
        return (self.height - 1) * self.row + self.width

    @property
    def copy(self) -> int:
        """Floats from one copy to the next."""
        return self.lead + self.body

    @property
    def channel(self) -> int:
        """Floats from one channel to the next."""
        return self.copy * self.copies

    @property
    def origin(self) -> int:
        """Of the first position of the first channel, in the copy that is not shifted."""
        return self.lead + (self.copy if self.copies == 3 else 0)

    @property
    def length(self) -> int:
        """Floats of it all, with zeros after the last plane and room for one vector more."""
        return self.channels * self.channel + self.lead + MOST_LANES


def planes(
    shape: Shape, *, row: int, reach: Iterable[tuple[int, int]], lanes: int, copies: int = 1
) -> Planes:
    """Return planes that the given windows may read.

    Args:
        shape: ``(channels, height, width)``.
        row: Floats from one row to the next.
        reach: Of everything that reads them: the least and the largest position that it reads as zero or
            as a pixel.
        lanes: Floats of a vector, which bodies consist of.
        copies: 1 or 3.
    """
    channels, height, width = shape
    body = rounded((height - 1) * row + width, lanes)
    needed = MOST_LANES - lanes  # a wider vector's last store goes so far
    for least, largest in reach:
        needed = max(needed, -least, largest + 1 - body)
    return Planes(channels, height, width, row, rounded(needed, lanes), body, copies)
