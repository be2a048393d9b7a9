"""Affine operations: what they do to an interval, to a form, and to a linear function of their output.

Shapes: B batch, S linear functions (specifications), E errors; ``...`` is the shape of one image's features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Interval:
    """A box: every entry lies within ``radius`` of ``centre``.

    Attributes:
        centre: float ``[batch, ...]``.
        radius: Of the same shape, at least 0.
    """

    centre: Tensor
    radius: Tensor

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> "Interval":
        """Return the box from ``lower`` to ``upper``."""
        return cls((upper + lower) / 2, (upper - lower) / 2)

    @property
    def lower(self) -> Tensor:
        """The smallest values."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """The largest values."""
        return self.centre + self.radius

    def least(self, coefficients_BS: Tensor) -> Tensor:
        """Return the minimum over the box of linear functions of its points.

        Args:
            coefficients_BS: ``[batch, functions, ...]``.

        Returns:
            float ``[batch, functions]``.
        """
        flat_BSN = coefficients_BS.flatten(2)
        centre_BN1, radius_BN1 = self.centre.flatten(1)[..., None], self.radius.flatten(1)[..., None]
        return (flat_BSN @ centre_BN1 - flat_BSN.abs() @ radius_BN1).squeeze(2)


@dataclass(frozen=True, eq=False)
class Form:
    """All of ``centre + sum_e t_e errors_e`` with every ``t_e`` in [-1, 1]: an affine image of a box.

    Attributes:
        centre: float ``[batch, ...]``.
        errors: ``[batch, errors, ...]``. An error of one number is the same in every form of a network.
    """

    centre: Tensor
    errors: Tensor

    @property
    def interval(self) -> Interval:
        """The smallest box that holds all of it."""
        return Interval(self.centre, self.errors.abs().sum(1))


@dataclass(frozen=True, eq=False)
class Pushed:
    """What an operation makes of forms.

    Attributes:
        form: In the errors that the inputs have.
        fresh: Radius, ``[batch, ...]``, of an error of its own that each entry has besides; ``None`` if none
            has.
    """

    form: Form
    fresh: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Pulled:
    """A linear function of an operation's output, as one of its inputs that is never above it.

    Attributes:
        coefficients: ``[batch, functions, ...]`` for each input.
        constant: ``[batch, functions]``.
    """

    coefficients: tuple[Tensor, ...]
    constant: Tensor


class Operation(ABC):
    """One step of a network, its weights included.

    Attributes:
        moves_only: Whether it only copies, reshapes or joins entries.
        affine: Whether pulling back, and pushing on, lose nothing.
    """

    moves_only: ClassVar[bool] = False
    affine: ClassVar[bool] = False

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """Return a box that holds every output for inputs in ``inputs``."""

    @abstractmethod
    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        """Return a linear function of the inputs that is, on ``inputs``, never above that of the output.

        Args:
            coefficients_BS: ``[batch, functions, ...]`` of the linear functions of the output.
            inputs: Boxes in which the inputs lie.
        """

    @abstractmethod
    def push(self, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
        """Return a form that holds the output for every input of ``forms`` that lies in ``inputs``.

        Args:
            forms: Of the inputs, all in the same errors.
            inputs: Boxes in which the inputs lie.
        """


class Affine(Operation, ABC):
    """An operation that sends a form to a form, with nothing lost."""

    affine = True

    @abstractmethod
    def directions(self, *parts_BE: Tensor) -> Tensor:
        """Return what the operation without its shift makes of ``[batch, errors, ...]`` for each input."""

    def push(self, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
        points = (Interval(form.centre, torch.zeros_like(form.centre)) for form in forms)
        return Pushed(Form(self.interval(*points).centre, self.directions(*(form.errors for form in forms))))


def _each(compute: Callable[[Tensor], Tensor], part_BE: Tensor) -> Tensor:
    """Return what ``compute``, on ``[n, ...]``, makes of ``[batch, errors, ...]``."""
    computed = compute(part_BE.flatten(0, 1))
    return computed.reshape(*part_BE.shape[:2], *computed.shape[1:])


def no_constant(coefficients_BS: Tensor) -> Tensor:
    """Return zeros ``[batch, functions]``."""
    return coefficients_BS.new_zeros(coefficients_BS.shape[:2])


class Identity(Affine):
    """Nothing: dropout in eval mode too."""

    moves_only = True

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0]

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        return Pulled((coefficients_BS,), no_constant(coefficients_BS))

    def directions(self, *parts_BE: Tensor) -> Tensor:
        return parts_BE[0]


@dataclass(frozen=True, eq=False)
class Reshape(Affine):
    """Give each image's features another shape.

    Attributes:
        shape: Of one image's features afterwards.
    """

    shape: tuple[int, ...]
    moves_only = True

    def interval(self, *inputs: Interval) -> Interval:
        batch = len(inputs[0].centre)
        centre, radius = inputs[0].centre, inputs[0].radius
        return Interval(centre.reshape(batch, *self.shape), radius.reshape(batch, *self.shape))

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        shape = inputs[0].centre.shape[1:]
        return Pulled(
            (coefficients_BS.reshape(*coefficients_BS.shape[:2], *shape),), no_constant(coefficients_BS)
        )

    def directions(self, *parts_BE: Tensor) -> Tensor:
        return parts_BE[0].reshape(*parts_BE[0].shape[:2], *self.shape)


@dataclass(frozen=True, eq=False)
class Concatenate(Affine):
    """Join the inputs along ``dim``, which counts the batch as 0."""

    dim: int
    moves_only = True

    def interval(self, *inputs: Interval) -> Interval:
        centres, radii = [each.centre for each in inputs], [each.radius for each in inputs]
        return Interval(torch.cat(centres, self.dim), torch.cat(radii, self.dim))

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        sizes = [each.centre.shape[self.dim] for each in inputs]
        return Pulled(coefficients_BS.split(sizes, self.dim + 1), no_constant(coefficients_BS))

    def directions(self, *parts_BE: Tensor) -> Tensor:
        return torch.cat(parts_BE, self.dim + 1)


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """Add the inputs, each times 1 or -1."""

    signs: tuple[int, ...]

    def interval(self, *inputs: Interval) -> Interval:
        centre = sum(
            (sign * each.centre for sign, each in zip(self.signs, inputs, strict=True)),
            start=torch.zeros_like(inputs[0].centre),
        )
        return Interval(centre, sum((each.radius for each in inputs), start=torch.zeros_like(centre)))

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        return Pulled(tuple(sign * coefficients_BS for sign in self.signs), no_constant(coefficients_BS))

    def directions(self, *parts_BE: Tensor) -> Tensor:
        return sum(
            (sign * part for sign, part in zip(self.signs, parts_BE, strict=True)),
            start=torch.zeros_like(parts_BE[0]),
        )


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """Entry by entry ``scale * x + shift``: batch normalisation in eval mode, normalised pixels.

    Attributes:
        scale: Broadcasts to the input's shape ``[batch, ...]``.
        shift: Likewise.
    """

    scale: Tensor
    shift: Tensor

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(inputs[0].centre * self.scale + self.shift, inputs[0].radius * self.scale.abs())

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        shape = inputs[0].centre.shape
        shift_BN1 = self.shift.expand(shape).flatten(1)[..., None]
        constant = (coefficients_BS.flatten(2) @ shift_BN1).squeeze(2)
        return Pulled((coefficients_BS * self.scale.expand(shape).unsqueeze(1),), constant)

    def directions(self, *parts_BE: Tensor) -> Tensor:
        shape = parts_BE[0].shape
        return parts_BE[0] * self.scale.expand(shape[0], *shape[2:]).unsqueeze(1)


def _scaled_bias(bias: Tensor | None, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    return shift_C if bias is None else bias * scale_C + shift_C


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """A matrix on features ``[batch, inputs]``."""

    weight: Tensor
    bias: Tensor | None

    def scaled(self, scale_C: Tensor, shift_C: Tensor) -> "Linear":
        """Return this and then ``scale * y + shift``, output by output, as one matrix."""
        return Linear(self.weight * scale_C[:, None], _scaled_bias(self.bias, scale_C, shift_C))

    def interval(self, *inputs: Interval) -> Interval:
        centre = F.linear(inputs[0].centre, self.weight, self.bias)
        return Interval(centre, F.linear(inputs[0].radius, self.weight.abs()))

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        constant = no_constant(coefficients_BS) if self.bias is None else coefficients_BS @ self.bias
        return Pulled((coefficients_BS @ self.weight,), constant)

    def directions(self, *parts_BE: Tensor) -> Tensor:
        return F.linear(parts_BE[0], self.weight)


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """A two-dimensional convolution with zero padding."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def scaled(self, scale_C: Tensor, shift_C: Tensor) -> "Convolution":
        """Return this and then ``scale * y + shift``, channel by channel, as one convolution."""
        weight = self.weight * scale_C[:, None, None, None]
        return replace(self, weight=weight, bias=_scaled_bias(self.bias, scale_C, shift_C))

    def interval(self, *inputs: Interval) -> Interval:
        rest = (self.stride, self.padding, self.dilation, self.groups)
        centre = F.conv2d(inputs[0].centre, self.weight, self.bias, *rest)
        return Interval(centre, F.conv2d(inputs[0].radius, self.weight.abs(), None, *rest))

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        sides = zip(
            inputs[0].centre.shape[2:],
            coefficients_BS.shape[3:],
            self.weight.shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        # Rows and columns at the end that the kernel, with its stride, never reached.
        unseen = [
            before - ((after - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for before, after, kernel, stride, padding, dilation in sides
        ]
        pulled = F.conv_transpose2d(
            coefficients_BS.flatten(0, 1),
            self.weight,
            None,
            self.stride,
            self.padding,
            unseen,
            self.groups,
            self.dilation,
        )
        constant = no_constant(coefficients_BS)
        if self.bias is not None:
            constant = coefficients_BS.sum((3, 4)) @ self.bias
        return Pulled((pulled.unflatten(0, coefficients_BS.shape[:2]),), constant)

    def directions(self, *parts_BE: Tensor) -> Tensor:
        rest = (self.stride, self.padding, self.dilation, self.groups)
        return _each(lambda part: F.conv2d(part, self.weight, None, *rest), parts_BE[0])


@dataclass(frozen=True, eq=False)
class Average(Affine):
    """Averages of entries: pooling, or a mean over dimensions.

    Attributes:
        average: Of features ``[n, ...]``; linear, with weights that are never negative.
        spread: Its transpose: from coefficients ``[n, ...]`` of the averages, and the shape ``[n, ...]`` of
            what was averaged, to coefficients of that.
    """

    average: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor, torch.Size], Tensor]

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.average(inputs[0].centre), self.average(inputs[0].radius))

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        flat = coefficients_BS.flatten(0, 1)
        pulled = self.spread(flat, torch.Size((len(flat), *inputs[0].centre.shape[1:])))
        return Pulled((pulled.unflatten(0, coefficients_BS.shape[:2]),), no_constant(coefficients_BS))

    def directions(self, *parts_BE: Tensor) -> Tensor:
        return _each(self.average, parts_BE[0])
