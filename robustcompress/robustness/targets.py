"""Which wrong classes targeted attacks aim at, and how many of them at once."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from robustcompress.robustness.auto_pgd import Findings

_ROWS_AT_ONCE = 64
"""On a CPU more rows at once are no faster; fewer leave it waiting for Python."""


def ranked_targets(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the wrong classes of the highest logits, the highest first; int64 ``[batch, targets]``.

    Args:
        logits: float ``[batch, classes]``.
        labels: The right classes, int64 ``[batch]``.
        count: How many; fewer if there are fewer wrong classes.
    """
    wrong = logits.scatter(1, labels[:, None], float("inf"))
    return wrong.sort(dim=1, descending=True, stable=True).indices[:, 1 : count + 1]


def target_groups(aimed: Tensor, *, together: bool | None) -> Iterator[Sequence[int]]:
    """Yield ranks of targets to attack at once, in their order; what is found does not depend on it.

    Args:
        aimed: Which images are attacked at which rank, bool ``[batch, targets]``; read anew for each group,
            so that a caller may take out images that were broken meanwhile.
        together: All at once, or one after the other; ``None``: all at once on a GPU, and on a CPU as many as
            make a batch of some size.
    """
    count = aimed.shape[1]
    if together is None:
        together = True if aimed.is_cuda else None
    if together is not None:
        yield from ([list(range(count))] if together else [[place] for place in range(count)])
        return
    start = 0
    while start < count:
        sizes = aimed.sum(0).tolist()
        end = start + 1
        while end < count and sum(sizes[start : end + 1]) <= _ROWS_AT_ONCE:
            end += 1
        yield list(range(start, end))
        start = end


def attack_targets(
    logits_of: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    count: int,
    restarts: int,
    together: bool | None,
    reachable: Tensor | None,
    start: Callable[[int], Tensor],
    search: Callable[[Tensor, Tensor, Tensor, Findings], None],
) -> Tensor:
    """Return one image per input, after attempts at the likeliest wrong classes of those still standing.

    Args:
        logits_of: The network.
        images: float ``[batch, ...]``, without a gradient.
        labels: The right classes, int64 ``[batch]``.
        count: How many classes to aim at.
        restarts: Attempts at each.
        together: As for :func:`target_groups`.
        reachable: Which classes may be aimed at, bool ``[batch, classes]``; ``None`` means all.
        start: Called with the number of the attempt; returns where it starts, for the whole batch.
        search: Called with the rows to attack, where they start, their targets, and what was found so far,
            in which it notes what it finds.
    """
    with torch.no_grad():
        logits = logits_of(images)
    findings = Findings.begin(images, logits.argmax(1) == labels)
    targets = ranked_targets(logits, labels, count)
    allowed = torch.ones_like(targets, dtype=torch.bool)
    if reachable is not None:
        allowed = reachable.gather(1, targets)
    for number in range(restarts):
        aimed = allowed & findings.standing[:, None]
        for group in target_groups(aimed, together=together):
            # Drawn for the whole batch and every target: what is skipped changes nothing for the others.
            starts = [start(number) for _ in group]
            rows = [aimed[:, place].nonzero().flatten() for place in group]
            every = torch.cat(rows)
            if len(every) == 0:
                continue
            search(
                every,
                torch.cat([points[some] for points, some in zip(starts, rows, strict=True)]),
                torch.cat([targets[some, place] for place, some in zip(group, rows, strict=True)]),
                findings,
            )
            aimed &= findings.standing[:, None]
    return findings.images
