"""The values that a sparse tensor keeps: which they are, and how they go into a file and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Values


def nonzero(values: Values) -> npt.NDArray[np.bool_]:
    """Return where ``values`` (1-D) are neither +0.0 nor -0.0; NaN and infinities count as nonzero.

    Decided on bits: a thread that flushes subnormal numbers to zero would lose them in a comparison.
    """
    if values.dtype.kind != "f":
        return np.asarray(values != np.zeros((), values.dtype))
    bits: npt.NDArray[Any] = values.view(f"u{values.dtype.itemsize}")
    return np.asarray((bits << 1) != 0)  # all but the sign


def value_parts(dtype: np.dtype[Any]) -> list[str]:
    """Return the names of the parts that hold kept values: none for booleans, which are all true."""
    return [] if dtype.kind == "b" else ["values"]


def kept_values(values: Values, kept: npt.NDArray[Any]) -> dict[str, Values]:
    """Return the parts that hold ``values[kept]``; ``kept`` is a mask or ascending positions."""
    return dict.fromkeys(value_parts(values.dtype), values[kept])


def scattered(
    parts: Mapping[str, Values], kept: npt.NDArray[Any], count: int, size: int, dtype: np.dtype[Any]
) -> Values:
    """Return ``size`` values, zero but for those that ``parts`` give to ``kept``.

    Args:
        parts: As from ``kept_values``; other parts are ignored.
        kept: Mask of ``size`` booleans, or ascending positions below ``size``.
        count: How many values ``kept`` asks for.
        size: Length of the result.
        dtype: Of the result.

    Raises:
        StorageError: If the values are of another dtype or number, or one of them is zero.
    """
    filled: Values = np.zeros(size, dtype)
    if not value_parts(dtype):
        filled[kept] = True
        return filled
    values = parts["values"]
    if values.dtype != dtype or len(values) != count:
        raise StorageError(
            f"part 'values': expected {count} values of {dtype}; got {len(values)} of {values.dtype}."
        )
    if not nonzero(values).all():
        raise StorageError("part 'values': a value that is said to be nonzero is zero.")
    filled[kept] = values
    return filled
