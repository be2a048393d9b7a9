"""What attacks found within one training step, for a loss that is computed more than once."""

from collections.abc import Callable

import torch
from torch import Tensor


class Findings:
    """Results in the order in which they were asked for; after :meth:`rewind` they are given again."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._next = 0

    def rewind(self) -> None:
        """Give the results again from the first on."""
        self._next = 0

    def get(self, find: Callable[[], Tensor], generator: torch.Generator) -> Tensor:
        """Return what ``find`` returns, or returned before the rewind.

        Either way ``generator`` is left where ``find`` left it, so that later draws are the same.
        """
        if self._next == len(self._kept):
            found = find()
            self._kept.append((found, generator.get_state()))
        found, state = self._kept[self._next]
        self._next += 1
        generator.set_state(state)
        return found
