"""Which pixels a convolution's weights meet, as distances in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robustcompress.export.c.network import Convolution
from robustcompress.export.c.planes import Planes


@dataclass(frozen=True, order=True)
class Phase:
    """One plane that is gathered from a channel: pixel (y, x) is (y * stride + top, x * stride + left)."""

    top: int
    left: int


@dataclass(frozen=True)
class Tap:
    """Where one place of a window reads.

    Attributes:
        phase: Which gathered plane, or which copy (-1, 0, 1).
        distance: In positions from the output's own.
    """

    phase: int
    distance: int


def is_direct(convolution: Convolution) -> bool:
    """Return whether a convolution can read its source where it lies."""
    return convolution.stride == (1, 1)


def window(convolution: Convolution) -> tuple[list[int], list[int]]:
    """Return rows and columns, from a window's corner over the padded image, of its taps on the image."""
    top, left = convolution.pads[:2]
    height, width = convolution.weight.shape[2:]
    rows = [place * convolution.dilation[0] - top for place in range(height)]
    columns = [place * convolution.dilation[1] - left for place in range(width)]
    return rows, columns


def phases(convolution: Convolution, *, shifted: bool) -> list[Phase]:
    """Return the planes that a convolution of any stride wants gathered.

    Args:
        convolution: That reads them.
        shifted: Whether rows have no columns of zeros at their ends, so that each column of a window needs
            a plane of its own.
    """
    rows, columns = window(convolution)
    tops = {row % convolution.stride[0] for row in rows}
    lefts = {column if shifted else column % convolution.stride[1] for column in columns}
    return sorted(Phase(top, left) for top in tops for left in lefts)


def direct_taps(convolution: Convolution, *, row: int, shifted: bool) -> list[Tap]:
    """Return where each place of a window reads, row after row, from the value itself."""
    rows, columns = window(convolution)
    if shifted:
        return [Tap(x, y * row) for y in rows for x in columns]
    return [Tap(0, y * row + x) for y in rows for x in columns]


def gathered_taps(
    convolution: Convolution, gathered: Sequence[Phase], *, row: int, shifted: bool
) -> list[Tap]:
    """Return where each place of a window reads, row after row, from gathered planes."""
    rows, columns = window(convolution)
    vertical, horizontal = convolution.stride
    found: list[Tap] = []
    for y in rows:
        for x in columns:
            left = x if shifted else x % horizontal
            place = gathered.index(Phase(y % vertical, left))
            found.append(Tap(place, y // vertical * row + (0 if shifted else x // horizontal)))
    return found


def offsets(taps: Sequence[Tap], source: Planes, *, channels: int, planes_each: int) -> npt.NDArray[np.int64]:
    """Return int64 ``[channels, taps]``: floats from an output's position to what a tap reads.

    Args:
        taps: Of one window.
        source: That they read.
        channels: Of the source that a window spans, counted from the first.
        planes_each: Gathered planes a channel; 1 for a value itself, whose phases are copies.
    """
    within = [tap.phase * (source.channel if planes_each > 1 else source.copy) + tap.distance for tap in taps]
    start = np.arange(channels, dtype=np.int64) * (source.channel * planes_each)
    return start[:, None] + np.array(within, dtype=np.int64)[None, :]
