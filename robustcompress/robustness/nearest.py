"""The nearest point of a hyperplane within a box: what FAB solves at each step."""

import torch
from torch import Tensor

from robustcompress.robustness.threat import Norm

_MOST_STEPS = 600
_STEPS_BETWEEN_LOOKS = 4


def shortest_step(
    points: Tensor, normals: Tensor, values: Tensor, *, norm: Norm, lower: float, upper: float
) -> Tensor:
    """Return the shortest step from each point to where a linear function is zero, within the box.

    The function is ``values`` at the point and grows along ``normals``. If it has the same sign in the whole
    box, the step leads to the corner where it is nearest to zero; features that it does not depend on stay.

    Of the features that still have room, each moves towards zero at the same speed (Linf), or at a speed
    proportional to its normal (L2), until it meets the side of the box. So the function's fall is a concave,
    piecewise linear function of the time, and the time at which it reaches ``values`` is found by Newton's
    method from time 0: every tangent lies above the fall, so no iterate goes too far. In each iteration the
    missing rest times the slope shrinks at least four times; three to eight are usual, whatever the size.

    Args:
        points: float ``[..., features]`` in the box.
        normals: float, broadcast against ``points``.
        values: float ``[...]``.
        norm: What is short: the largest entry, or the Euclidean length.
        lower: Lower side of the box.
        upper: Upper side of the box.

    Returns:
        Steps, float ``[..., features]``; ``points`` plus step lies in the box up to rounding.

    Source:
        Croce & Hein 2019, https://arxiv.org/abs/1907.02044, the projection of Algorithm 1.
        Differs: the paper sorts the times at which features meet the box and searches among them; this finds
        the same step without sorting, up to rounding. A normal is used however small it is.
    """
    values = values.unsqueeze(-1)
    slopes = normals.abs()
    room = torch.where((normals > 0) == (values > 0), points - lower, upper - points).clamp_min_(0)
    missing = values.abs()
    if norm == "l2":
        # Squares of small numbers underflow: bring the largest normal to 1 first.
        largest = slopes.amax(-1, keepdim=True).clamp_min(torch.finfo(slopes.dtype).tiny)
        slopes = slopes / largest
        missing = missing / largest
        time = _time_to_fall(missing, slopes * slopes, _times_to_meet(room, slopes))
        length = slopes.mul(time)
    else:
        time = _time_to_fall(missing, slopes, room)
        length = time.expand_as(room)
    return torch.minimum(length, room).mul_(normals.sign()).mul_(-values.sign())


def _times_to_meet(room: Tensor, speeds: Tensor) -> Tensor:
    """Return when each feature meets the box; 0 for those that do not move."""
    return (room / speeds).nan_to_num_(nan=0.0).masked_fill_(speeds == 0, 0.0)


def _time_to_fall(missing: Tensor, slopes: Tensor, stops: Tensor) -> Tensor:
    """Return the time at which ``sum(slopes * min(time, stops))`` is ``missing``; very large if it never is.

    ``missing`` and the result are ``[..., 1]``, the others ``[..., features]``.
    """
    never = torch.finfo(missing.dtype).max
    enough = missing * (4 * torch.finfo(missing.dtype).eps)
    time, rest = torch.zeros_like(missing), missing
    part = torch.empty_like(stops)
    # A look at the answer makes the processor wait for a GPU; an iteration too many changes nothing.
    looks = _STEPS_BETWEEN_LOOKS if missing.is_cuda else 1
    for step in range(1, _MOST_STEPS + 1):
        slope = torch.gt(stops, time, out=part).mul_(slopes).sum(-1, keepdim=True)
        time = torch.where(rest > enough, torch.where(slope > 0, time + rest / slope, never), time)
        rest = missing - torch.minimum(stops, time, out=part).mul_(slopes).sum(-1, keepdim=True)
        if step % looks == 0 and not bool(((rest > enough) & (time < never)).any()):
            break
    return time
