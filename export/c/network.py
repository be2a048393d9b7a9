"""A network as a list of the few operations that the C file is made of."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Shape: TypeAlias = tuple[int, ...]
"""Of one image: ``(channels, height, width)`` or ``(features,)``."""

Pair: TypeAlias = tuple[int, int]
"""Of height and width."""

UNBOUNDED = float("inf")


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """One step from values to a value.

    Attributes:
        inputs: Names of what it reads.
        output: Name of what it makes.
    """

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Operation):
    """Weighted sums over windows, then ``clamp(sum + bias + residual, low, high)``.

    Attributes:
        inputs: The images, then the residual if there is one.
        weight: float32 ``[out, in / groups, height, width]``.
        bias: float32 ``[out]``.
        stride: Between windows.
        pads: Of zeros, at top, left, bottom and right.
        dilation: Between taps of a window.
        groups: Into which channels fall.
        low: Least value that leaves.
        high: Largest value that leaves.
        label: Of the layer, for reports: its weight's name in the graph. Empty for operations without weights
            of their own that are written as a convolution.
    """

    weight: Floats
    bias: Floats
    stride: Pair = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    low: float = -UNBOUNDED
    high: float = UNBOUNDED
    label: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether the graph holds it as a layer with weights."""
        return bool(self.label)


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Operation):
    """Weighted sums of features, then ``clamp(sum + bias, low, high)``.

    Attributes:
        weight: float32 ``[out, in]``.
        bias: float32 ``[out]``.
        low: Least value that leaves.
        high: Largest value that leaves.
        label: For reports: its weight's name in the graph.
    """

    weight: Floats
    bias: Floats
    low: float = -UNBOUNDED
    high: float = UNBOUNDED
    label: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Operation):
    """The largest value of each window; padding never wins."""

    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mean(Operation):
    """The mean of each channel over height and width."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Operation):
    """Channels, rows and columns in one row of features."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Operation):
    """``scale * input + shift``, of each channel or feature."""

    scale: Floats
    shift: Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Operation):
    """The sum of two values of one shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Clamp(Operation):
    """Values cut off below ``low`` and above ``high``."""

    low: float = -UNBOUNDED
    high: float = UNBOUNDED


@dataclass(frozen=True, eq=False, kw_only=True)
class Concatenation(Operation):
    """The channels, or features, of several values one after another."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """Operations in an order in which each finds its inputs made.

    Attributes:
        operations: What to do.
        input: Name of the images.
        output: Name of the logits.
        shapes: Of every value, for one image.
    """

    operations: tuple[Operation, ...]
    input: str
    output: str
    shapes: dict[str, Shape]
