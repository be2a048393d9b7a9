"""Which weights are zero, told from their bits: a processor that flushes subnormal numbers is not asked."""

from typing import Any

import numpy as np
import numpy.typing as npt


def is_nonzero(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return where float32 ``values`` are neither +0.0 nor -0.0; NaN counts as nonzero."""
    bits = np.asarray(values, order="C").view(np.uint32)
    return np.asarray(bits << np.uint32(1) != 0)  # all but the sign


def with_positive_zeros(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``array`` with +0.0 for -0.0 and every other bit as it is.

    A weight times a mask of zeros and ones leaves -0.0 where a negative weight was removed, which would
    count as a value of its own wherever bits are looked at.
    """
    if array.dtype != np.float32:
        return array
    copy = np.array(array, order="C")
    copy[~is_nonzero(copy)] = 0
    return copy
