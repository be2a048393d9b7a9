"""Items of a Dataset, loaded by worker processes in an order and with seeds that are given from outside."""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from robustcompress.errors import DataError
from robustcompress.seeding import borrowed_generators, seed_globals
from robustcompress.training.augmentation import Augmentation

Key: TypeAlias = tuple[int, int]
"""An item's index and the seed that it is loaded with."""

_MOST_WORKERS = 16  # more rarely pay: each holds batches, and disks have their limit too


def usual_workers(device: torch.device | str) -> int:
    """Return how many processes decode images beside a training on ``device``.

    On a GPU all cores but one are free for that. On a CPU one process keeps up, as a robust training step
    costs far more than decoding its images, and the cores are wanted elsewhere.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return 0
    return 1 if torch.device(device).type == "cpu" else min(cores - 1, _MOST_WORKERS)


class SeededItems(Dataset[Any]):
    """A Dataset asked for (index, seed): the item is made with the global generators seeded.

    Args:
        dataset: Map-style.
        augmentation: Of images that come as bytes, each by itself.
    """

    def __init__(self, dataset: Dataset[Any], augmentation: Augmentation | None = None) -> None:
        self._dataset = dataset
        self._augmentation = augmentation

    def __getitem__(self, key: Key) -> object:
        """Return one item.

        Raises:
            DataError: If the dataset fails; names the index.
        """
        index, seed = key
        with borrowed_generators():
            seed_globals(seed)
            try:
                item = self._dataset[index]
            except DataError:
                raise
            except Exception as error:  # whatever the user's own code raises
                raise DataError(
                    f"image {index} of {type(self._dataset).__name__} cannot be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if self._augmentation is None:
                return item
            image, label = item
            return self._augmentation.apply(image[None], torch.default_generator)[0], label


class _Plan:
    """A batch sampler whose batches are set before each iteration."""

    def __init__(self) -> None:
        self.batches: Iterable[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


class Loading:
    """Loads batches as planned. Worker processes go on from one plan to the next, until ``close``.

    Args:
        items: What to load from.
        options: Further arguments of :class:`torch.utils.data.DataLoader`, such as ``num_workers``.
        persistent: Whether workers outlive a plan.
    """

    def __init__(self, items: SeededItems, options: Mapping[str, Any], *, persistent: bool) -> None:
        self._items = items
        self._options = dict(options)
        self._persistent = persistent and self._options.get("num_workers", 0) > 0
        self._idle: tuple[DataLoader[Any], _Plan] | None = None

    def batches(self, plan: Iterable[list[Key]]) -> Generator[Any]:
        """Yield what ``plan`` asks for, collated.

        Workers are kept for the next plan if this one is gone through to its end; else they are ended.

        Raises:
            DataError: If an item cannot be loaded or a batch not be put together, here or in a worker.
        """
        loader, current = self._idle or self._make()
        self._idle = None
        current.batches = plan
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except Exception as error:
                # Workers end with the last reference to their loader, and frames of a traceback hold some.
                # Those of torch tell nothing: a worker's own traceback is text in the message.
                del loader, iterator
                error.with_traceback(None)
                raise _in_short(error) from error
            yield batch
        if self._persistent:
            self._idle = loader, current

    def close(self) -> None:
        """End the worker processes, if there are any."""
        self._idle = None  # they end with the last reference to their loader

    def _make(self) -> tuple["DataLoader[Any]", _Plan]:
        plan = _Plan()
        loader: DataLoader[Any] = DataLoader(
            self._items,
            batch_sampler=plan,
            persistent_workers=self._persistent,
            generator=torch.Generator().manual_seed(0),  # else each iteration draws from the global one
            **self._options,
        )
        return loader, plan


def _in_short(error: Exception) -> DataError:
    """Return what a loader raised as one sentence; of a worker's error torch makes a whole traceback."""
    text = str(error).strip()
    if isinstance(error, DataError):
        return DataError(text.rpartition("errors.DataError: ")[2])
    if "DataLoader worker (pid" in text:
        return DataError(
            f"a process that loads images died: {text} Mostly that is for want of memory: set a lower "
            "loader_workers."
        )
    last = text.rpartition("\n")[2]
    return DataError(f"images cannot be put together into a batch: {type(error).__name__}: {last}")
