"""Give every value a place in one workspace, where values that never live together may share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT = 16
"""Floats that places begin at multiples of: a line of the cache."""


@dataclass(frozen=True)
class Life:
    """When a value is needed.

    Attributes:
        length: Floats.
        first: Step that makes it.
        last: Step that reads it last.
    """

    length: int
    first: int
    last: int


def lives(
    lengths: Mapping[str, int], writes: Sequence[Sequence[str]], reads: Sequence[Sequence[str]]
) -> dict[str, Life]:
    """Return when each value is needed.

    Args:
        lengths: Floats of each value.
        writes: Values that each step makes, in order.
        reads: Values that each step reads.
    """
    found: dict[str, Life] = {}
    for name, length in lengths.items():
        steps = [
            step for step, pair in enumerate(zip(writes, reads, strict=True)) if name in (*pair[0], *pair[1])
        ]
        found[name] = Life(length, min(steps), max(steps))
    return found


def place(values: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Return where each value begins, and how long the workspace is, in floats.

    The largest come first, each at the lowest place that is free for as long as it is needed.
    """
    placed: list[tuple[int, int, Life]] = []
    starts: dict[str, int] = {}
    for name, life in sorted(values.items(), key=lambda item: (-item[1].length, item[1].first, item[0])):
        length = -(-life.length // ALIGNMENT) * ALIGNMENT
        start = 0
        for taken, end, other in sorted(placed, key=lambda item: item[0]):
            if life.first <= other.last and other.first <= life.last and start < end:
                if start + length <= taken:
                    break
                start = end
        starts[name] = start
        placed.append((start, start + length, life))
    return starts, max((end for _, end, _ in placed), default=0)
