"""Weights in fewer bits: what is stored, and the float32 values that come back."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from robustcompress.errors import ExportError
from robustcompress.export.zeros import is_nonzero

ValueType: TypeAlias = Literal["float32", "float16", "int8", "int6", "int4"]
Floats: TypeAlias = npt.NDArray[np.float32]

BITS: dict[ValueType, int] = {"int8": 8, "int6": 6, "int4": 4}
_LEAST_NORMAL = float(np.finfo(np.float16).tiny)
SCALE_UNIT = 2.0**-12
"""What scales in float16 are stored in: those of weights from 1e-6 to 1000 fit with all their bits."""
# Ends of the range that are tried, over the largest weight: a few clipped weights can cost less than
# coarse steps for all.
_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight in fewer bits.

    Attributes:
        kind: How values are stored.
        codes: Shaped like the weight: float16, or int8 that hold the whole numbers of ``int8``, ``int6`` and
            ``int4``.
        scale: float32, one a row of the weight, that whole numbers are multiplied with; ``None`` for
            float16. Exact in float16, in units of ``SCALE_UNIT``, unless a row's is too small for that.
        axis: Along which the scales lie.
    """

    kind: ValueType
    codes: npt.NDArray[Any]
    scale: Floats | None
    axis: int = 0

    @property
    def factors(self) -> Floats | None:
        """The scales, shaped so that they multiply the codes."""
        if self.scale is None:
            return None
        return self.scale.reshape(*(-1 if axis == self.axis else 1 for axis in range(self.codes.ndim)))

    @property
    def values(self) -> Floats:
        """What comes back, float32: exactly what a runtime computes."""
        floats: Floats = np.asarray(self.codes.astype(np.float32))
        factors = self.factors
        return floats if factors is None else floats * factors

    def transposed(self) -> "Coded":
        """Return the same of the transposed matrix."""
        return Coded(self.kind, np.ascontiguousarray(self.codes.T), self.scale, 1 - self.axis)

    @property
    def half_scale(self) -> npt.NDArray[np.float16] | None:
        """The scales in units of ``SCALE_UNIT``, where there are any and float16 holds them exactly."""
        if self.scale is None:
            return None
        halves = _halves(self.scale)
        return (
            halves if bool((halves.astype(np.float32) * np.float32(SCALE_UNIT) == self.scale).all()) else None
        )


def code(weight: Floats, kind: ValueType) -> Coded:
    """Return ``weight`` in fewer bits.

    Whole numbers are symmetric, so that a removed weight stays exactly zero, and have a scale for each row
    (output channel). That of 8 bits ends at the row's largest weight; with fewer bits it ends where the
    squared error is least.

    Args:
        weight: float32 ``[rows, ...]``, finite.
        kind: Not ``float32``.

    Raises:
        ExportError: If a value is not finite or too large for float16.
    """
    if not bool(np.isfinite(weight).all()):
        raise ExportError(f"a weight to be stored in {kind} is not finite. Store it in float32.")
    if kind == "float16":
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        if not bool(np.isfinite(half).all()):
            raise ExportError(
                f"a weight of {float(np.abs(weight).max()):.3g} is too large for float16; use float32."
            )
        return Coded(kind, np.asarray(half + np.float16(0)), None)  # a sum of one value is no array
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    top = 2 ** (BITS[kind] - 1) - 1
    largest = np.abs(rows).max(axis=1, initial=0.0)
    best_error = np.full(len(rows), np.inf)
    scale = np.ones(len(rows), dtype=np.float32)
    codes = np.zeros(rows.shape, dtype=np.int8)
    for part in _RANGES if top < 127 else _RANGES[:1]:
        tried = _storable(largest * part / top)
        found = np.clip(np.rint(rows / tried[:, None].astype(np.float64)), -top, top)
        error = ((found * tried[:, None] - rows) ** 2).sum(axis=1)
        better = error < best_error
        best_error, scale = np.where(better, error, best_error), np.where(better, tried, scale)
        codes = np.where(better[:, None], found, codes).astype(np.int8)
    return Coded(kind, codes.reshape(weight.shape), scale.astype(np.float32))


def rounded_half(values: Floats) -> Floats:
    """Return ``values`` rounded to float16, as float32.

    Raises:
        ExportError: If one is too large or not finite.
    """
    return code(values, "float16").values


def value_bytes(coded: Coded) -> int:
    """Return the bytes of the values that are not zero, scales included."""
    count = int(np.count_nonzero(coded.codes))
    if coded.scale is None:
        return 2 * count
    scales = coded.scale.size * (4 if coded.half_scale is None else 2)
    return (count * BITS[coded.kind] + 7) // 8 + scales


def is_kept(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where values are not zero, of float32 told from their bits."""
    return is_nonzero(values) if values.dtype == np.float32 else np.asarray(values != 0)


def _halves(scale: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return (scale / SCALE_UNIT).astype(np.float16)


def _storable(scale: npt.NDArray[np.float64]) -> Floats:
    """Return scales as float32 that float16 holds exactly in units, unless one is too small for that."""
    halves = _halves(scale)
    fits = (scale / SCALE_UNIT >= _LEAST_NORMAL) & np.isfinite(halves)
    found = np.where(fits, halves.astype(np.float32) * np.float32(SCALE_UNIT), scale.astype(np.float32))
    # Rows of zeros, and of weights too small for float32 to divide by their scale.
    return np.where(found > np.finfo(np.float32).tiny, found, np.float32(1)).astype(np.float32)
