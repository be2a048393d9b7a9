"""Constraints: what the result may cost at most, and the sparsity at which it does not cost more."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from robustcompress.errors import ConfigError

_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 1024.0, "Mi": 1024.0**2, "Gi": 1024.0**3}
_FINEST = 1e-7  # of the sparsity: below that nothing but single weights of huge networks changes

Allocate: TypeAlias = Callable[[float], Sequence[int]]
"""From a sparsity to the units that each site keeps."""


def _share_or_count(value: object) -> object:
    """Read ``"25%"`` as 0.25 and ``"50M"`` as 5e7; leave numbers to pydantic.

    Raises:
        ValueError: If the text is neither.
    """
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"expected a percentage such as '25%'; got {value!r}") from None
    return _scaled(value, "", "0.25, '25%', 50000000 or '50M'")


def _size_bytes(value: object) -> object:
    """Read ``"300kB"`` as 300,000 and ``"2MiB"`` as 2,097,152; leave numbers to pydantic.

    Raises:
        ValueError: If the text is no size.
    """
    return _scaled(value, "B", "300000, '300kB' or '2MiB'")


def _scaled(value: object, unit: str, examples: str) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(rf"\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([kMG]i?)?{unit}?\s*", value)
    try:
        if found is None:
            raise ValueError
        return float(found[1]) * _FACTORS[found[2] or ""]
    except ValueError:
        raise ValueError(f"expected {examples}; got {value!r}") from None


Amount: TypeAlias = Annotated[float, BeforeValidator(_share_or_count), Field(gt=0)]
Bytes: TypeAlias = Annotated[float, BeforeValidator(_size_bytes), Field(ge=1)]


class Constraints(BaseModel):
    """What the result may cost at most; several together must all hold.

    Where any is given, the recipe's sparsity is not used: the smallest that meets them all is searched.

    Attributes:
        macs: Multiply-adds of the dense layers that are left: a fraction of the original network's up to 1
            (``0.25`` or ``"25%"``), or above 1 a number (``5e7`` or ``"50M"``). Only patterns that remove
            channels lower them; zeros within a layer are multiplied like any other weight.
        weights: Weights of convolutions and linear layers that are not zero, likewise.
        bytes: Of every exported file, when it is written; ``300_000`` or ``"300kB"``. What an evaluation
            adds to a file's metadata afterwards, some hundred bytes, is not counted.
        latency_ms: Milliseconds for one image in ONNX Runtime on the CPU.
        latency_threads: On which one operator runs when latency is measured.
        latency_tolerance: By which fraction the measured latency may exceed ``latency_ms``: timings of one
            file differ from minute to minute.
        latency_table: A cost table that an earlier run saved, of this device or of another one. Of another
            one it is believed: the result is not measured here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    macs: Amount | None = None
    weights: Amount | None = None
    bytes: Bytes | None = None
    latency_ms: float | None = Field(default=None, gt=0)
    latency_threads: int = Field(default=1, ge=1)
    latency_tolerance: float = Field(default=0.05, ge=0, le=0.5)
    latency_table: Path | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.macs, self.weights, self.bytes, self.latency_ms))


def absolute(amount: float, dense: float) -> float:
    """Return the number that a fraction (up to 1) of ``dense`` means; larger amounts are numbers already."""
    return amount * dense if amount <= 1 else amount


@dataclass(frozen=True, eq=False)
class Check:
    """One constraint as numbers.

    Attributes:
        name: As in :class:`Constraints`.
        cost: From the units that each site keeps to the cost; falls, roughly, with every unit removed.
        target: That the cost may not exceed.
        hint: What to do if no sparsity meets it.
    """

    name: str
    cost: Callable[[Sequence[int]], float]
    target: float
    hint: str = ""

    def holds(self, kept: Sequence[int]) -> bool:
        """Whether the cost is within the target."""
        return self.cost(kept) <= self.target


def find_sparsity(allocate: Allocate, units: int, checks: Sequence[Check]) -> float:
    """Return the smallest sparsity found by bisection at which every check holds.

    Costs fall as sparsity grows but for rounding; whatever rounding does, the allocation at the sparsity
    that is returned has been checked.

    Args:
        allocate: Of a budget.
        units: Of all sites together; sparsities closer than half a unit are the same.
        checks: All must hold.

    Raises:
        ConfigError: If not even the smallest network meets them; says how close it comes.
    """
    if all(check.holds(allocate(0.0)) for check in checks):
        return 0.0
    low, high = 0.0, math.nextafter(1.0, 0.0)
    smallest = allocate(high)
    for check in checks:
        if not check.holds(smallest):
            raise ConfigError(
                missed(check.name, check.cost(smallest), check.target, "the smallest network", check.hint)
            )
    while high - low > max(0.25 / units, _FINEST):
        middle = (low + high) / 2
        kept = allocate(middle)
        if all(check.holds(kept) for check in checks):
            high = middle
        else:
            low = middle
    return high


def missed(name: str, cost: float, target: float, what: str, hint: str = "") -> str:
    """Return the message that a constraint is not met, and by how much."""
    advice = hint or "Relax the constraint, or ignore fewer layers."
    return (
        f"constraint {name} <= {_number(target)} is not met: {what} has {_number(cost)}, "
        f"{cost / target:.2f} times the target. {advice}"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
