"""Which wrong classes targeted attacks aim at, and how many of them at once."""

from collections.abc import Iterator, Sequence

from torch import Tensor

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
