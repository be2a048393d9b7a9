"""A fall of robust accuracy from one epoch to the next: catastrophic overfitting."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseWatch:
    """What counts as a collapse, and what follows.

    Attributes:
        drop: How far accuracy under attack must be below the best so far, 0 to 1.
        stop: Whether the stage ends there; otherwise a warning says so.
    """

    drop: float
    stop: bool

    def first(self, robust: Sequence[float | None]) -> int | None:
        """Return the index of the first epoch that collapsed, or ``None``.

        Args:
            robust: Accuracy under attack of each epoch, in order; ``None`` where it was not measured.
        """
        best = 0.0
        for index, accuracy in enumerate(robust):
            if accuracy is None:
                continue
            if accuracy < best - self.drop:
                return index
            best = max(best, accuracy)
        return None

    def message(self, robust: Sequence[float | None]) -> str:
        """Return what to say if the last epoch is the first that collapsed; otherwise nothing."""
        if not robust or self.first(robust) != len(robust) - 1:
            return ""
        before, after = max(accuracy or 0.0 for accuracy in robust), robust[-1] or 0.0
        follows = "The stage ends with the epoch selected before." if self.stop else "Training goes on."
        return (
            f"catastrophic overfitting: accuracy under the validation attack fell from {before:.1%} to "
            f"{after:.1%}. {follows} Lower the learning rate or the threat's eps, or train with pgd."
        )
