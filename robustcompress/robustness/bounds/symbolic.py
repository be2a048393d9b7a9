"""Symbolic intervals: every intermediate result as a form in the pixels, and in what was lost on the way.

Shapes: B batch, C classes, E errors; ``...`` is the shape of one image's features.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustcompress.errors import ConfigError
from robustcompress.robustness.bounds.interval import Propagation, interval_margins, propagate
from robustcompress.robustness.bounds.operations import Form, Interval, Pushed
from robustcompress.robustness.bounds.tracing import TracedNetwork


def symbolic_form(propagation: Propagation) -> tuple[Form, Propagation]:
    """Return the logits as a form, and the intervals that were found on the way.

    The images' box is a form with one error for each pixel that can change. Affine operations lose nothing; a
    rectifier that may be on either side of 0 adds an error of its own. Before each operation that is not
    affine a result lies in the box of its form and in its interval, and so in both: their intersection
    decides which rectifiers are stable and how wide the others' lines are, and is sent on as the interval.

    Memory grows with the number of pixels and unstable rectifiers times that of features: all errors of a
    result are held at once.

    Args:
        propagation: Of the images' box.

    Returns:
        The form of the logits, and a propagation whose intervals are nowhere larger than those given.

    Source:
        Wang et al. 2018, https://arxiv.org/abs/1811.02625 and https://arxiv.org/abs/1809.08098 (symbolic
        linear relaxation).
        Differs: one form with parallel lines and errors, not a lower and an upper expression; intersected
        with the intervals; max-pooling sends on its interval alone.
    """
    images = propagation.intervals[0]
    forms = [_with_errors(Form(images.centre, images.radius.unsqueeze(1)[:, :0]), images.radius, 0)]
    intervals = list(propagation.intervals)
    count = forms[0].errors.shape[1]
    for index, step in enumerate(propagation.steps, start=1):
        if not step.operation.affine:
            for source in step.sources:
                intervals[source] = _intersection(intervals[source], forms[source].interval)
        inputs = [intervals[source] for source in step.sources]
        intervals[index] = step.operation.interval(*inputs)
        # Errors are numbered as they come up: an older form just lacks the later ones.
        most = max(forms[source].errors.shape[1] for source in step.sources)
        pushed = step.operation.push([_widened(forms[source], most) for source in step.sources], inputs)
        forms.append(_closed(pushed, count))
        count = max(count, forms[-1].errors.shape[1])
    return forms[-1], Propagation(tuple(intervals), propagation.steps)


def form_margins(logits: Form, labels: Tensor) -> Tensor:
    """Return the smallest ``f_y - f_j`` of a form, exactly: what two logits share cancels.

    Args:
        logits: Of ``[batch, classes]``.
        labels: int64 ``[batch]``.

    Returns:
        float ``[batch, classes]``; 0 at the label itself.
    """
    own_B1, classes = labels[:, None], logits.centre.shape[1]
    centre_BC = logits.centre.gather(1, own_B1) - logits.centre
    own_BE1 = own_B1[:, None].expand(-1, logits.errors.shape[1], 1)
    errors_BEC = logits.errors.gather(2, own_BE1) - logits.errors
    assert errors_BEC.shape[2] == classes
    return centre_BC - errors_BEC.abs().sum(1)


def symbolic_margins(propagation: Propagation, labels: Tensor) -> Tensor:
    """Return lower bounds of the margins ``f_y - f_j`` by symbolic intervals.

    The larger of the form's bound and of the interval bound with the intervals found on the way: never
    smaller than :func:`~robustcompress.robustness.bounds.interval.interval_margins`.

    Args:
        propagation: Of the images' box.
        labels: int64 ``[batch]``.

    Returns:
        float ``[batch, classes]``; 0 at the label itself.
    """
    logits, tightened = symbolic_form(propagation)
    return form_margins(logits, labels).maximum(interval_margins(tightened, labels))


def symbolic_margins_of(
    network: TracedNetwork,
    tensors: Mapping[str, Tensor],
    lower: Tensor,
    upper: Tensor,
    labels: Tensor,
    *,
    memory: int = 2**30,
) -> Tensor:
    """Return :func:`symbolic_margins` of boxes, as many images at once as ``memory`` allows.

    Where that is not all of them each group is computed again for the backward pass, so that autograd, too,
    holds the errors of one group only.

    Args:
        network: The graph.
        tensors: Parameters or buffers that replace the network's own, by name.
        lower: float ``[batch, ...]``.
        upper: Of the same shape.
        labels: int64 ``[batch]``.
        memory: Bytes for the errors of a group; one image is always taken, however much it needs.

    Raises:
        ConfigError: If ``memory`` is not positive.
        ModelError: If an operation has no bounds.
    """
    if memory < 1:
        raise ConfigError(f"memory must be at least 1 byte; got {memory}.")

    def margins(lower: Tensor, upper: Tensor, labels: Tensor) -> Tensor:
        return symbolic_margins(propagate(network, tensors, lower, upper), labels)

    with torch.no_grad():
        size = _bytes_of_one(propagate(network, tensors, lower, upper))
    at_once = max(1, int(memory // size))
    if at_once >= len(labels):
        return margins(lower, upper, labels)
    groups = zip(lower.split(at_once), upper.split(at_once), labels.split(at_once), strict=True)
    found: list[Tensor] = [
        checkpoint(margins, *group, use_reentrant=False, preserve_rng_state=False) for group in groups
    ]
    return torch.cat(found)


def _with_errors(form: Form, radius: Tensor, before: int) -> Form:
    """Return ``form`` with an error of its own for each entry whose ``radius`` is not 0 in every image.

    Args:
        form: With at most ``before`` errors.
        radius: At least 0, of the form's shape.
        before: Errors that exist already.
    """
    radius_BN = radius.flatten(1)
    entries = (radius_BN > 0).any(0).nonzero().flatten()
    fresh_BEN = radius_BN.new_zeros(len(radius_BN), len(entries), radius_BN.shape[1])
    rows = torch.arange(len(entries), device=entries.device)
    fresh_BEN[:, rows, entries] = radius_BN[:, entries]
    fresh_BE = fresh_BEN.reshape(*fresh_BEN.shape[:2], *radius.shape[1:])
    return Form(form.centre, torch.cat([_widened(form, before).errors, fresh_BE], 1))


def _closed(pushed: Pushed, count: int) -> Form:
    """Return what was pushed as one form, its fresh errors numbered from ``count`` on."""
    if pushed.fresh is None or not bool((pushed.fresh > 0).any()):
        return pushed.form
    return _with_errors(pushed.form, pushed.fresh, count)


def _widened(form: Form, count: int) -> Form:
    """Return ``form`` with ``count`` errors, the later ones 0."""
    have = form.errors.shape[1]
    if have == count:
        return form
    zeros = form.errors.new_zeros(len(form.centre), count - have, *form.centre.shape[1:])
    return Form(form.centre, torch.cat([form.errors, zeros], 1))


def _intersection(one: Interval, other: Interval) -> Interval:
    both = Interval.between(one.lower.maximum(other.lower), one.upper.minimum(other.upper))
    # Rounding may put the ends of a tiny interval past each other.
    return Interval(both.centre, both.radius.clamp_min(0))


def _bytes_of_one(propagation: Propagation) -> float:
    """Return an upper estimate of what the errors of one image need, with autograd's copies."""
    images = propagation.intervals[0]
    counts_B = (images.radius.flatten(1) > 0).sum(1).double()
    numbers_B = counts_B * images.centre[0].numel()
    for index, step in enumerate(propagation.steps, start=1):
        if not step.operation.affine:
            inputs = propagation.intervals[step.sources[0]]
            unstable = (inputs.lower < 0) & (inputs.upper > 0)
            counts_B = counts_B + unstable.flatten(1).sum(1)
        numbers_B = numbers_B + 2 * counts_B * propagation.intervals[index].centre[0].numel()
    return max(1.0, float(numbers_B.max()) * images.centre.element_size())
