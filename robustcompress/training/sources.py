"""From whatever a user passed to the source that gives its batches."""

from collections.abc import Iterable, Sized
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from robustcompress.data import ImageFiles, ImageSet, check_batch
from robustcompress.errors import DataError
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import Batch, DatasetSource, IterableSource, MemorySource, Source
from robustcompress.training.loading import usual_workers

Data: TypeAlias = ImageSet | Dataset[Any] | Iterable[Batch]
"""What users may pass: images in memory, a map-style Dataset, a DataLoader, or any iterable of batches."""


def as_source(
    data: Data,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation | None = None,
    device: torch.device | str = "cpu",
    loader_workers: int | None = None,
    name: str = "train",
) -> Source:
    """Return the source for whatever a user passed.

    A DataLoader over a map-style Dataset with torch's own samplers is taken apart and rebuilt, so that its
    order can be resumed; its batch size, workers and collation stay. Any other loader is used as it is.

    Args:
        data: Images in memory or in files, a map-style Dataset, a DataLoader, or any iterable of batches.
        batch_size: Of data that are not in batches yet.
        seed: Of order, augmentation and items.
        augmentation: Of images in memory and in files.
        device: Where training runs.
        loader_workers: Processes that load a Dataset's items; ``None`` takes a DataLoader's own number, a
            suitable one for files, and none for any other Dataset.
        name: For messages.

    Raises:
        DataError: If there are no images, or the first batch is not (images in [0, 1], labels).
    """
    source: Source
    if isinstance(data, ImageSet):
        source = MemorySource(
            data, batch_size=batch_size, seed=seed, augmentation=augmentation, device=device
        )
    elif isinstance(data, DataLoader):
        source = _from_loader(data, seed=seed, device=device, loader_workers=loader_workers)
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        if loader_workers is None:
            loader_workers = usual_workers(device) if isinstance(data, ImageFiles) else 0
        loader = {"num_workers": loader_workers, "pin_memory": torch.device(device).type == "cuda"}
        source = DatasetSource(
            data, batch_size=batch_size, seed=seed, loader=loader, augmentation=augmentation, device=device
        )
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


def _from_loader(
    loader: "DataLoader[Any]", *, seed: int, device: torch.device | str, loader_workers: int | None
) -> Source:
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
    if loader_workers is not None:
        kept["num_workers"] = loader_workers
        if loader_workers == 0:  # torch refuses these without workers
            kept |= {"timeout": 0, "multiprocessing_context": None}
    if torch.device(device).type == "cuda":
        kept["pin_memory"] = True
    return DatasetSource(
        loader.dataset,
        batch_size=loader.batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=loader.drop_last,
        loader=kept,
        own_batch_size=True,
        device=device,
    )
