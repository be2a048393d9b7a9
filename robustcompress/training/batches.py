"""Where training images come from: memory, a Dataset, or any iterable of batches.

A source gives the batches of an epoch. The first two kinds are *exact*: the order, the augmentation and
every random number inside a Dataset's ``__getitem__`` follow from (seed, epoch, image), so that an epoch
can be taken up in its middle bit for bit.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from robustcompress.data import ImageFiles, ImageSet, as_pixels, stratified_split
from robustcompress.errors import DataError
from robustcompress.seeding import derive_seed, generator_for
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.distributed import SOLO, Workers
from robustcompress.training.loading import Loading, SeededItems

Batch: TypeAlias = tuple[Tensor, Tensor]
_IN_ORDER = -1  # in place of an epoch's number: for evaluation


class Source(ABC):
    """Batches of training images, epoch by epoch, and the same images in order for evaluation."""

    exact: bool
    """Whether an epoch can be continued from its middle."""

    advice: str | None = None
    """What to change if training waits for these data; ``None`` if nothing helps."""

    @abstractmethod
    def steps(self) -> int:
        """Return the number of batches of an epoch."""

    @abstractmethod
    def epoch(self, number: int, *, skip: int = 0, workers: Workers = SOLO) -> Iterator[Batch]:
        """Yield the batches of epoch ``number`` from batch ``skip`` on; of each, the rows of this process.

        Together the processes get what one would get alone, image for image.
        """

    @abstractmethod
    def in_order(self) -> Iterable[Batch]:
        """Return the batches in a fixed order, without augmentation; may be iterated again."""

    @abstractmethod
    def split(self, fraction: float, *, seed: int) -> tuple["Source", "Source"]:
        """Return (training part, held-out part).

        Raises:
            DataError: If the source cannot be split.
        """

    @abstractmethod
    def rebatched(self, batch_size: int) -> "Source":
        """Return the same images in batches of another size; a user's own loader keeps its size."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return text that changes when the data change, as far as that can be told cheaply."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of images, if known."""

    def close(self) -> None:  # noqa: B027  # most sources have nothing to end
        """End processes that were kept for the next epoch; one may follow nevertheless."""


class MemorySource(Source):
    """Images held as bytes on the training device and augmented there."""

    exact = True

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images.to(device)
        self._batch_size = batch_size
        self._seed = seed
        self._augmentation = augmentation or Augmentation()

    def steps(self) -> int:
        return -(-len(self.images) // self._batch_size)

    def epoch(self, number: int, *, skip: int = 0, workers: Workers = SOLO) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator_for("cpu", self._seed, "order", number))
        order = order.to(self.images.images.device)
        for step in range(skip, self.steps()):
            index = order[step * self._batch_size : (step + 1) * self._batch_size]
            images = self.images.images[index]
            generator = generator_for(images.device, self._seed, "augment", number, step)
            rows = workers.rows(len(index))
            # Augmented as a whole: an image gets the same random numbers whichever process it goes to.
            whole = self._augmentation.apply(images, generator)
            yield as_pixels(whole[rows]), self.images.labels[index][rows]

    def in_order(self) -> Iterable[Batch]:
        return _Reiterable(lambda: self.images.batches(max(256, self._batch_size)))

    def split(self, fraction: float, *, seed: int) -> tuple[Source, Source]:
        kept, held_out = stratified_split(self.images.labels, fraction, seed=seed)
        return self._with(self.images.select(kept)), self._with(self.images.select(held_out))

    def rebatched(self, batch_size: int) -> Source:
        return self._with(self.images, batch_size)

    def _with(self, images: ImageSet, batch_size: int | None = None) -> "MemorySource":
        return MemorySource(
            images,
            batch_size=batch_size or self._batch_size,
            seed=self._seed,
            augmentation=self._augmentation,
            device=images.images.device,
        )

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    @property
    def count(self) -> int:
        return len(self.images)


class DatasetSource(Source):
    """A map-style Dataset, loaded with torch's DataLoader in an order that follows from the seed.

    Args:
        dataset: Map-style; :class:`ImageFiles` become pixels on ``device``.
        batch_size: Images a batch.
        seed: Of the order and of each item's random numbers.
        shuffle: Whether epochs differ in their order.
        drop_last: Whether an incomplete last batch is left out.
        loader: Further arguments of the DataLoader; ``num_workers`` changes no number.
        own_batch_size: Whether ``batch_size`` is the user's own and stays.
        augmentation: Of :class:`ImageFiles`, each image by itself as it is loaded.
        device: Where training runs.
    """

    exact = True

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        loader: dict[str, Any] | None = None,
        own_batch_size: bool = False,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._loader = loader or {}
        self._own_batch_size = own_batch_size
        self._augmentation = augmentation
        self._device = device
        changed = augmentation if isinstance(dataset, ImageFiles) else None
        self._training = Loading(SeededItems(dataset, changed), self._loader, persistent=True)
        self._plain = Loading(SeededItems(dataset), self._loader, persistent=False)
        self.advice = f"set loader_workers above {self._loader.get('num_workers', 0)}."

    @property
    def count(self) -> int:
        return len(cast(Sized, self.dataset))

    @property
    def own_batch_size(self) -> bool:
        """Whether the batches' size is the user's own and stays."""
        return self._own_batch_size

    def steps(self) -> int:
        whole, rest = divmod(self.count, self._batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def _batches(
        self, order: list[int], epoch: int, skip: int, steps: int, workers: Workers = SOLO
    ) -> Iterator[Batch]:
        keys = [(index, derive_seed(self._seed, "item", epoch, index)) for index in order]
        size = self._batch_size
        plan = [keys[step * size : (step + 1) * size] for step in range(skip, steps)]
        loading = self._plain if epoch == _IN_ORDER else self._training
        rows = [workers.rows(len(batch)) for batch in plan]
        # A process without rows loads one image for its shape, and gives none of it.
        loaded = [batch[own] or batch[:1] for batch, own in zip(plan, rows, strict=True)]
        with closing(loading.batches(loaded)) as batches:
            for batch, own in zip(batches, rows, strict=True):
                if workers.size > 1 and own.start == own.stop:
                    batch = _none_of(batch)
                if not isinstance(self.dataset, ImageFiles):
                    yield batch
                    continue
                images, labels = batch
                yield as_pixels(images.to(self._device, non_blocking=True)), labels

    def epoch(self, number: int, *, skip: int = 0, workers: Workers = SOLO) -> Iterator[Batch]:
        generator = generator_for("cpu", self._seed, "order", number)
        order = (
            torch.randperm(self.count, generator=generator).tolist() if self._shuffle else range(self.count)
        )
        return self._batches(list(order), number, skip, self.steps(), workers)

    def in_order(self) -> Iterable[Batch]:
        steps = -(-self.count // self._batch_size)
        return _Reiterable(lambda: self._batches(list(range(self.count)), _IN_ORDER, 0, steps))

    def close(self) -> None:
        self._training.close()

    def split(self, fraction: float, *, seed: int) -> tuple[Source, Source]:
        if isinstance(self.dataset, ImageFiles):
            parts = stratified_split(self.dataset.labels, fraction, seed=seed)
            kept, held_out = (self._with(self.dataset.select(part), self._batch_size) for part in parts)
            return kept, held_out
        held = max(1, round(fraction * self.count))
        if held >= self.count:
            raise DataError(
                f"{self.count} images are too few to hold {fraction:.0%} out; pass validation= yourself."
            )
        order = torch.randperm(self.count, generator=generator_for("cpu", seed, "split")).tolist()
        first, second = (Subset(self.dataset, sorted(part)) for part in (order[held:], order[:held]))
        return self._with(first, self._batch_size), self._with(second, self._batch_size)

    def rebatched(self, batch_size: int) -> Source:
        return self if self._own_batch_size else self._with(self.dataset, batch_size)

    def _with(self, dataset: Dataset[Any], batch_size: int) -> "DatasetSource":
        return DatasetSource(
            dataset,
            batch_size=batch_size,
            seed=self._seed,
            shuffle=self._shuffle,
            drop_last=self._drop_last,
            loader=self._loader,
            own_batch_size=self._own_batch_size,
            augmentation=self._augmentation,
            device=self._device,
        )

    def fingerprint(self) -> str:
        """Hash the number of images and up to 16 of them, as they come in order; of files, names and sizes.

        Raises:
            DataError: If a file is missing.
        """
        if isinstance(self.dataset, ImageFiles):
            return self.dataset.fingerprint()
        digest = hashlib.sha256(f"{type(self.dataset).__qualname__} {self.count}".encode())
        step = max(1, self.count // 16)
        for index in range(0, self.count, step):
            item = cast(tuple[object, object], SeededItems(self.dataset)[index, derive_seed(0, index)])
            image = item[0]
            if isinstance(image, Tensor):
                digest.update(image.detach().cpu().contiguous().numpy().tobytes())
            digest.update(str(item[1]).encode())
        return digest.hexdigest()


class IterableSource(Source):
    """Any iterable of (images, labels); its order and its random numbers are its own affair."""

    exact = False
    advice = "load batches in the background, or pass a Dataset and set loader_workers."

    def __init__(self, iterable: Iterable[Batch]) -> None:
        if iter(iterable) is iterable:
            raise DataError(
                "the data is an iterator, which can be read only once; pass something that can be iterated "
                "again: a list of batches, a DataLoader, a Dataset, or an object with __iter__."
            )
        self.iterable = iterable
        self._steps: int | None = None

    @property
    def count(self) -> int | None:
        return None

    def steps(self) -> int:
        if self._steps is None:
            sized = isinstance(self.iterable, Sized)
            self._steps = len(cast(Sized, self.iterable)) if sized else sum(1 for _ in self.iterable)
        return self._steps

    def epoch(self, number: int, *, skip: int = 0, workers: Workers = SOLO) -> Iterator[Batch]:
        if skip:
            raise DataError("this data cannot be taken up in the middle of an epoch.")
        if workers.size == 1:
            return iter(self.iterable)
        return self._rows(workers)

    def _rows(self, workers: Workers) -> Iterator[Batch]:
        """Read all of it in every process, which must get the same, and yield this one's rows."""
        place, batches = 0, iter(self.iterable)
        while True:
            batch = next(batches, None)
            content = b"" if batch is None else repr((tuple(batch[0].shape), batch[1].tolist())).encode()
            if not workers.same(content):
                raise DataError(
                    f"batch {place} of {type(self.iterable).__name__} is not the same in every process; all "
                    "must read the same batches in the same order. Pass a Dataset, or a DataLoader over one "
                    "with torch's own samplers: those are divided over the processes."
                )
            if batch is None:
                return
            place += 1
            rows = workers.rows(len(batch[0]))
            yield batch[0][rows], batch[1][rows]

    def in_order(self) -> Iterable[Batch]:
        return self.iterable

    def split(self, fraction: float, *, seed: int) -> tuple[Source, Source]:
        raise DataError(
            f"no validation data was given and {type(self.iterable).__name__} cannot be split; pass "
            "validation=, or training data as a Dataset or a DataLoader over one."
        )

    def rebatched(self, batch_size: int) -> Source:
        return self

    def fingerprint(self) -> str:
        """Hash the first batch."""
        digest = hashlib.sha256(type(self.iterable).__qualname__.encode())
        for images, labels in self.iterable:
            for part in (images, labels):
                digest.update(part.detach().cpu().contiguous().numpy().tobytes())
            break
        return digest.hexdigest()


def _none_of(batch: Batch) -> Batch:
    images, labels = batch
    return images[:0], labels[:0]


class _Reiterable:
    """Calls for a new iterator each time it is iterated."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return cast(Iterator[Batch], self._make())
