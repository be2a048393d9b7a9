"""Operations that are not affine: rectifiers and max-pooling.

Shapes: B batch, S linear functions; ``...`` is the shape of one image's features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustcompress.robustness.bounds.operations import Form, Interval, Operation, Pulled, Pushed


@dataclass(frozen=True, eq=False)
class Rectifier(Operation):
    """``max(x, slope * x)``: ReLU with slope 0, leaky ReLU above it.

    Over an interval ``[l, u]`` that holds 0 inside, the line from ``(l, slope * l)`` to ``(u, u)`` lies above
    it; ``x`` and ``slope * x`` both lie below. Of these two the one of the smaller area between the lines is
    taken: ``x`` where ``u > -l``. A form takes the line above and its parallel through 0, and lies between.

    Attributes:
        slope: Left of zero, in [0, 1].

    Source:
        Zhang et al. 2018, https://arxiv.org/abs/1811.00866 (the adaptive lower slope is CROWN-Ada's).
        Parallel lines: Weng et al. 2018, https://arxiv.org/abs/1804.09699 (Fast-Lin), and the symbolic
        intervals of Wang et al. 2018, https://arxiv.org/abs/1811.02625.
    """

    slope: float = 0.0

    def interval(self, *inputs: Interval) -> Interval:
        lower, upper = (F.leaky_relu(end, self.slope) for end in (inputs[0].lower, inputs[0].upper))
        return Interval.between(lower, upper)

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        below, above, shift = self._lines(inputs[0])
        # ``c+ below + c- above`` and ``c- shift``, by ``c- = (c - |c|) / 2``: few passes over what is large.
        size_BS = coefficients_BS.abs()
        mean, half = (above + below).unsqueeze(1) / 2, (above - below).unsqueeze(1) / 2
        pulled = torch.addcmul(coefficients_BS * mean, size_BS, half, value=-1)
        shift_BN1 = shift.flatten(1)[..., None]
        constant = (coefficients_BS - size_BS).flatten(2) @ shift_BN1
        return Pulled((pulled,), constant.squeeze(2) / 2)

    def push(self, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
        _, above, shift = self._lines(inputs[0])
        form = forms[0]
        pushed = Form(form.centre * above + shift / 2, form.errors * above.unsqueeze(1))
        return Pushed(pushed, shift / 2)

    def _lines(self, inputs: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slope of the line below, through 0, the slope of the line above, and its value at 0."""
        lower, upper = inputs.lower, inputs.upper
        unstable = (lower < 0) & (upper > 0)
        # Made in the input's type: of two plain numbers ``torch.where`` would make float32.
        one, slope = torch.ones_like(lower), torch.full_like(lower, self.slope)
        stable_slope = torch.where(lower >= 0, one, slope)
        # Stable entries take another branch; without the 1 their zero width would poison the gradient.
        width = torch.where(unstable, upper - lower, 1.0)
        above = torch.where(unstable, (upper - self.slope * lower) / width, stable_slope)
        shift = torch.where(unstable, (self.slope - 1) * upper * lower / width, 0.0)
        below = torch.where(unstable, torch.where(upper > -lower, one, slope), stable_slope)
        return below, above, shift


@dataclass(frozen=True, eq=False)
class MaxPool(Operation):
    """The largest entry of each window.

    The largest is at least the entry whose own lower bound is highest, and at most the highest upper bound.
    Of a form only the box goes on: what the windows' entries have in common is lost.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def interval(self, *inputs: Interval) -> Interval:
        return Interval.between(self._pool(inputs[0].lower)[0], self._pool(inputs[0].upper)[0])

    def pull_back(self, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
        lower, upper = inputs[0].lower, inputs[0].upper
        where = self._pool(lower)[1].flatten(2).unsqueeze(1)
        highest = self._pool(upper)[0].unsqueeze(1)
        positive, negative = coefficients_BS.clamp_min(0), coefficients_BS.clamp_max(0)
        channels, height, width = lower.shape[1:]
        pulled = coefficients_BS.new_zeros(*coefficients_BS.shape[:2], channels, height * width)
        flat = positive.flatten(3)
        pulled = pulled.scatter_add(3, where.expand_as(flat), flat).unflatten(3, (height, width))
        return Pulled((pulled,), (negative * highest).flatten(2).sum(2))

    def push(self, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
        box, errors_BE = self.interval(inputs[0]), forms[0].errors
        zeros = errors_BE.new_zeros(*errors_BE.shape[:2], *box.centre.shape[1:])
        return Pushed(Form(box.centre, zeros), box.radius)

    def _pool(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d_with_indices(
            entries, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
