"""CROWN: a linear function of the logits, pulled back through the network to the images.

Shapes: B batch, C classes, S linear functions, N entries of one image's features.
"""

import torch
from torch import Tensor

from robustcompress.errors import ConfigError
from robustcompress.robustness.bounds.activations import Rectifier
from robustcompress.robustness.bounds.interval import Propagation, margin_coefficients
from robustcompress.robustness.bounds.operations import Interval


def least(propagation: Propagation, coefficients_BS: Tensor, index: int) -> Tensor:
    """Return a lower bound of linear functions of one intermediate result.

    Each operation that is not affine is replaced by a line below or above it, whichever the sign of its
    coefficient asks for; the lines come from the interval of its input.

    Args:
        propagation: Gives the intervals.
        coefficients_BS: ``[batch, functions, ...]``.
        index: Of the result in ``propagation.intervals``.

    Returns:
        float ``[batch, functions]``.
    """
    pending = {index: coefficients_BS}
    constant = coefficients_BS.new_zeros(coefficients_BS.shape[:2])
    for at in range(index, 0, -1):
        if at not in pending:
            continue
        pulled = propagation.pull_back(pending.pop(at), at)
        constant = constant + pulled.constant
        for source, part in zip(propagation.steps[at - 1].sources, pulled.coefficients, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    return propagation.intervals[0].least(pending[0]) + constant


def crown_ibp_margins(propagation: Propagation, labels: Tensor) -> Tensor:
    """Return lower bounds of the margins ``f_y - f_j``: intervals inside, one linear pass back.

    Neither these nor those of :func:`~robustcompress.robustness.bounds.interval.interval_margins` are always
    the larger; both hold, and so does their maximum.

    Args:
        propagation: Of the images' box.
        labels: int64 ``[batch]``.

    Returns:
        float ``[batch, classes]``; 0 at the label itself.

    Source:
        Zhang et al. 2020, https://arxiv.org/abs/1906.06316, section 3.2; lines of CROWN, Zhang et al. 2018,
        https://arxiv.org/abs/1811.00866.
    """
    coefficients_BCC = margin_coefficients(labels, propagation.logits)
    batch, classes = coefficients_BCC.shape[:2]
    others_BC = torch.arange(classes - 1, device=labels.device).repeat(batch, 1)
    others_BC = others_BC + (others_BC >= labels[:, None])  # the label's own margin is 0 and costs nothing
    rows_B1 = torch.arange(batch, device=labels.device)[:, None]
    found = least(propagation, coefficients_BCC[rows_B1, others_BC], len(propagation.steps))
    return coefficients_BCC.new_zeros(batch, classes).scatter(1, others_BC, found)


def tightened(propagation: Propagation, *, at_once: int = 64) -> Propagation:
    """Return smaller intervals: before each operation that is not affine, by a pass back from there.

    The smaller of both is taken, entry by entry, and sent on. This takes one pass for every entry whose
    bounds matter (before a rectifier, those that may be on either side of 0): for small networks.
    ``crown_ibp_margins`` of what is returned are the bounds of CROWN.

    Args:
        propagation: Of the images' box.
        at_once: Entries whose passes run together: memory against speed.

    Raises:
        ConfigError: If ``at_once`` is below 1.

    Source:
        Zhang et al. 2018, https://arxiv.org/abs/1811.00866, theorem 3.2.
        Differs: intersected with the intervals, which are sent on.
    """
    if at_once < 1:
        raise ConfigError(f"at_once must be at least 1; got {at_once}.")
    intervals = list(propagation.intervals)
    done: set[tuple[int, bool]] = {(0, False), (0, True)}  # the images' box is exact
    for index, step in enumerate(propagation.steps, start=1):
        known = Propagation(tuple(intervals[:index]), propagation.steps[: index - 1])
        if not step.operation.affine:
            rectifies = isinstance(step.operation, Rectifier)
            for source in step.sources:
                if (source, rectifies) not in done:
                    intervals[source] = _tighter(known, source, at_once, only_unstable=rectifies)
                    done.add((source, rectifies))
        intervals[index] = step.operation.interval(*(intervals[source] for source in step.sources))
    return Propagation(tuple(intervals), propagation.steps)


def _tighter(propagation: Propagation, index: int, at_once: int, *, only_unstable: bool) -> Interval:
    interval = propagation.intervals[index]
    lower_BN, upper_BN = interval.lower.flatten(1), interval.upper.flatten(1)
    # A point cannot get smaller, and the lines of a stable rectifier are exact already.
    open_BN = (lower_BN < 0) & (upper_BN > 0) if only_unstable else interval.radius.flatten(1) > 0
    matters = open_BN.any(0).nonzero().flatten()
    below, above = lower_BN.clone(), upper_BN.clone()
    for chosen in matters.split(at_once):
        unit_SN = torch.zeros(len(chosen), lower_BN.shape[1], dtype=lower_BN.dtype, device=lower_BN.device)
        unit_SN[torch.arange(len(chosen), device=chosen.device), chosen] = 1
        shape = (len(lower_BN), len(chosen), *interval.centre.shape[1:])
        functions = unit_SN.expand(len(lower_BN), -1, -1).reshape(shape)
        below = below.index_copy(1, chosen, least(propagation, functions, index))
        above = above.index_copy(1, chosen, -least(propagation, -functions, index))
    found = Interval.between(lower_BN.maximum(below), upper_BN.minimum(above))
    # Rounding may put the ends of a tiny interval past each other.
    return Interval(
        found.centre.reshape_as(interval.centre), found.radius.clamp_min(0).reshape_as(interval.centre)
    )
