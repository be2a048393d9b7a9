"""Where training images come from: memory, a Dataset, or any iterable of batches.

A source gives the batches of an epoch. The first two kinds are *exact*: the order, the augmentation and
every random number inside a Dataset's ``__getitem__`` follow from (seed, epoch, image), so that an epoch
can be taken up in its middle bit for bit.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset

from robustcompress.data import ImageSet, as_pixels, check_batch, stratified_split
from robustcompress.errors import DataError
from robustcompress.seeding import borrowed_generators, derive_seed, generator_for, seed_globals
from robustcompress.training.augmentation import Augmentation

Batch: TypeAlias = tuple[Tensor, Tensor]
Data: TypeAlias = ImageSet | Dataset[Any] | Iterable[Batch]
"""What users may pass: images in memory, a map-style Dataset, a DataLoader, or any iterable of batches."""


class Source(ABC):
    """Batches of training images, epoch by epoch, and the same images in order for evaluation."""

    exact: bool
    """Whether an epoch can be continued from its middle."""

    @abstractmethod
    def steps(self) -> int:
        """Return the number of batches of an epoch."""

    @abstractmethod
    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number`` from batch ``skip`` on."""

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

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator_for("cpu", self._seed, "order", number))
        order = order.to(self.images.images.device)
        for step in range(skip, self.steps()):
            index = order[step * self._batch_size : (step + 1) * self._batch_size]
            images = self.images.images[index]
            generator = generator_for(images.device, self._seed, "augment", number, step)
            yield as_pixels(self._augmentation.apply(images, generator)), self.images.labels[index]

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


class _SeededItems(Dataset[Any]):
    """A Dataset asked for (index, seed): the item is made with the global generators seeded."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> object:
        index, seed = key
        with borrowed_generators():
            seed_globals(seed)
            return self._dataset[index]


class DatasetSource(Source):
    """A map-style Dataset, loaded with torch's DataLoader in an order that follows from the seed."""

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
    ) -> None:
        self.dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._loader = loader or {}
        self._own_batch_size = own_batch_size

    @property
    def count(self) -> int:
        return len(cast(Sized, self.dataset))

    def steps(self) -> int:
        whole, rest = divmod(self.count, self._batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def _batches(self, order: list[int], epoch: int, skip: int, steps: int) -> Iterator[Batch]:
        keys = [(index, derive_seed(self._seed, "item", epoch, index)) for index in order]
        size = self._batch_size
        sampler = [keys[step * size : (step + 1) * size] for step in range(skip, steps)]
        yield from DataLoader(_SeededItems(self.dataset), batch_sampler=sampler, **self._loader)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        generator = generator_for("cpu", self._seed, "order", number)
        order = (
            torch.randperm(self.count, generator=generator).tolist() if self._shuffle else range(self.count)
        )
        return self._batches(list(order), number, skip, self.steps())

    def in_order(self) -> Iterable[Batch]:
        steps = -(-self.count // self._batch_size)
        return _Reiterable(lambda: self._batches(list(range(self.count)), -1, 0, steps))

    def split(self, fraction: float, *, seed: int) -> tuple[Source, Source]:
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
        )

    def fingerprint(self) -> str:
        """Hash the number of images and up to 16 of them, as they come in order."""
        digest = hashlib.sha256(f"{type(self.dataset).__qualname__} {self.count}".encode())
        step = max(1, self.count // 16)
        for index in range(0, self.count, step):
            item = cast(tuple[object, object], _SeededItems(self.dataset)[index, derive_seed(0, index)])
            image = item[0]
            if isinstance(image, Tensor):
                digest.update(image.detach().cpu().contiguous().numpy().tobytes())
            digest.update(str(item[1]).encode())
        return digest.hexdigest()


class IterableSource(Source):
    """Any iterable of (images, labels); its order and its random numbers are its own affair."""

    exact = False

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

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        if skip:
            raise DataError("this data cannot be taken up in the middle of an epoch.")
        return iter(self.iterable)

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


class _Reiterable:
    """Calls for a new iterator each time it is iterated."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return cast(Iterator[Batch], self._make())


def as_source(
    data: Data,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation | None = None,
    device: torch.device | str = "cpu",
    name: str = "train",
) -> Source:
    """Return the source for whatever a user passed.

    A DataLoader over a map-style Dataset with torch's own samplers is taken apart and rebuilt, so that its
    order can be resumed; its batch size, workers and collation stay. Any other loader is used as it is.

    Raises:
        DataError: If there are no images, or the first batch is not (images in [0, 1], labels).
    """
    source: Source
    if isinstance(data, ImageSet):
        source = MemorySource(
            data, batch_size=batch_size, seed=seed, augmentation=augmentation, device=device
        )
    elif isinstance(data, DataLoader):
        source = _from_loader(data, seed=seed)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        source = DatasetSource(data, batch_size=batch_size, seed=seed)
    else:
        source = IterableSource(cast("Iterable[Batch]", data))
    if source.count == 0 or source.steps() == 0:
        raise DataError(f"{name}: there are no images in it.")
    images, labels = first_batch(source, name=name)
    check_batch(images, labels, where=f"{name}, first batch")
    return source


def first_batch(source: Source, *, name: str = "train") -> Batch:
    """Return the first batch in order.

    Raises:
        DataError: If there is none, or it is not a pair of tensors.
    """
    for batch in source.in_order():
        pair = cast(object, batch)
        if (
            not isinstance(pair, tuple | list)
            or len(pair) != 2
            or not all(isinstance(part, Tensor) for part in pair)
        ):
            raise DataError(f"{name}: batches must be (images, labels) tensors; got {type(pair).__name__}.")
        return batch[0], batch[1]
    raise DataError(f"{name}: there are no images in it.")


def _from_loader(loader: "DataLoader[Any]", *, seed: int) -> Source:
    sampler = loader.sampler
    shuffle = isinstance(sampler, RandomSampler)
    plain = type(sampler) is SequentialSampler
    if isinstance(sampler, RandomSampler):
        plain = not sampler.replacement and sampler.num_samples == len(cast(Sized, loader.dataset))
    if loader.batch_size is None or not plain:
        return IterableSource(loader)
    if isinstance(loader.dataset, IterableDataset):
        return IterableSource(loader)
    kept = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }
    return DatasetSource(
        loader.dataset,
        batch_size=loader.batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=loader.drop_last,
        loader=kept,
        own_batch_size=True,
    )
