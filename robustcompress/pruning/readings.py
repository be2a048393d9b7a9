"""What layers take in that is the same for every image: constants, and where zeros surround them."""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDING = 1e-12
"""Relative difference of values that are one constant: vectorised and scalar code round differently."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The inputs of one call of a convolution or linear layer; ``[inputs]`` unless said otherwise.

    Attributes:
        constant: bool, whether an input is the same for every image and has one value, perhaps with zeros
            around it.
        values: That value, float64; 0 where all is zero.
        inside: bool ``[inputs, entries]``, where it is not zero.
        padded: Whether the layer puts zeros around its inputs.
        biased: Whether the layer adds its own bias.
    """

    constant: Tensor
    values: Tensor
    inside: Tensor
    padded: bool
    biased: bool

    @property
    def filled(self) -> Tensor:
        """Whether an input has its value everywhere, for constants that are not zero."""
        return self.inside.all(1)

    @staticmethod
    def of(inputs: Tensor, depends: Tensor, *, padded: bool, biased: bool) -> "Reading":
        """Look at inputs ``[batch, inputs, ...]``; ``depends`` is positive where they depend on the image."""
        rows = inputs.detach().to("cpu", torch.float64).movedim(1, 0).flatten(1)
        values = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        near = (rows - values).abs() <= _ROUNDING * values.abs()
        fixed = ~(depends > 0).movedim(1, 0).flatten(1).any(1).cpu() & values[:, 0].isfinite()
        inside = rows != 0
        return Reading(fixed & (near | ~inside).all(1), values[:, 0], inside, padded, biased)


def agreeing(readings: list[Reading]) -> Tensor:
    """Return which inputs are the same constant in all calls of a layer; bool ``[inputs]``."""
    first = readings[0]
    same = first.constant.clone()
    for reading in readings[1:]:
        apart = (reading.values - first.values).abs()
        same &= reading.constant & (apart <= _ROUNDING * first.values.abs())
    return same
