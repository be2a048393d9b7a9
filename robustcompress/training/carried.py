"""A perturbation that an objective carries from step to step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustcompress.training.distributed import Workers


class Carried:
    """One perturbation for each row of a batch; it begins at zero.

    A smaller batch uses the first rows, a larger one adds rows of zeros. Images of another shape begin anew.
    Every process holds all rows, so that the result does not depend on how batches are divided.
    """

    def __init__(self) -> None:
        self._all: Tensor | None = None

    def fit(self, images: Tensor, whole: int) -> None:
        """Make sure that there are rows for a batch.

        Args:
            images: Float ``[rows, ...]``, any rows of the batch, or none.
            whole: Rows of the whole batch.
        """
        held = self._all
        if held is not None and held.shape[1:] == images.shape[1:] and len(held) >= whole:
            return
        grown = images.new_zeros(whole, *images.shape[1:])
        if held is not None and held.shape[1:] == images.shape[1:]:
            grown[: len(held)] = held
        self._all = grown

    def rows(self, rows: slice) -> Tensor:
        """Return those rows, to be changed in place."""
        assert self._all is not None
        return self._all[rows]

    @torch.no_grad()
    def share(self, workers: Workers, whole: int) -> None:
        """Give every process the rows that the others changed.

        Args:
            workers: The processes that share each batch.
            whole: Rows of the whole batch.
        """
        if workers.size == 1 or self._all is None:
            return
        own = workers.rows(whole)
        self._all[: own.start] = 0
        self._all[own.stop : whole] = 0
        workers.sum_([self._all[:whole]])

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {} if self._all is None else {"perturbation": self._all}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        held = state.get("perturbation")
        self._all = None if held is None else held.clone()
