"""Extra images, mostly labelled by a network, at a set share of each training batch."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustcompress.data import ImageSet, as_pixels
from robustcompress.errors import DataError
from robustcompress.seeding import generator_for
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import Batch, DatasetSource, MemorySource, Source
from robustcompress.training.distributed import SOLO, Workers


class ExtraData(BaseModel):
    """Extra training images, such as ``robustcompress pseudo-label`` writes.

    Attributes:
        path: An .npz file with ``images``, uint8, and ``labels``.
        share: Of each batch, above 0 and below 1.

    Source:
        Carmon et al. 2019, https://arxiv.org/abs/1905.13736, and Sehwag et al. 2020 (HYDRA),
        https://arxiv.org/abs/2002.10509: half of each batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: Path
    share: float = Field(default=0.5, gt=0, lt=1)


class MixedSource(Source):
    """The training images in smaller batches, each filled up with extra ones.

    An epoch still goes over every training image once. The extra images have an order of their own that goes
    on from epoch to epoch: each comes once before any comes again. What is held out or evaluated in order is
    training images alone.

    Args:
        labelled: The training images: in memory, or a Dataset.
        extra: Of the same size and classes.
        share: Extra images of each batch, as a fraction of it.
        batch_size: Of both together.
        seed: Of the order and the augmentation of the extra images.
        augmentation: Of the extra images.
        device: Where training runs.

    Raises:
        DataError: If ``labelled`` comes in batches of the user's own, the images are of other sizes, or a
            batch would have none of one kind.
    """

    def __init__(
        self,
        labelled: Source,
        extra: ImageSet,
        *,
        share: float,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        own = isinstance(labelled, DatasetSource) and labelled.own_batch_size
        if own or not isinstance(labelled, MemorySource | DatasetSource):
            raise DataError(
                "extra_data fills up batches that are made here; a loader's own batches stay as they are. "
                "Pass the training images as a Dataset, and batch_size in the recipe."
            )
        self._filled = round(share * batch_size)
        self._plain = batch_size - self._filled
        if not (self._filled and self._plain):
            raise DataError(
                f"a share of {share} of batches of {batch_size} leaves {self._plain} training and "
                f"{self._filled} extra images in each; both must be 1 or more. Set another batch_size or "
                "share."
            )
        shape = next(iter(labelled.in_order()))[0].shape[1:]
        if tuple(shape) != extra.shape:
            raise DataError(
                f"{extra.name}: extra images must be {list(shape)} as the training images are; got "
                f"{list(extra.shape)}."
            )
        self._labelled = labelled.rebatched(self._plain)
        self._extra = extra.to(device)
        self._share, self._seed = share, seed
        self._augmentation = augmentation or Augmentation()
        self._device = device
        self.exact = labelled.exact
        self.advice = labelled.advice

    def steps(self) -> int:
        return self._labelled.steps()

    def epoch(self, number: int, *, skip: int = 0, workers: Workers = SOLO) -> Iterator[Batch]:
        count = self._labelled.count or 0
        last = self._filled_of(count - (self.steps() - 1) * self._plain)
        begin = number * ((self.steps() - 1) * self._filled + last)
        # Whole batches, of which each process takes its rows: as alone, image for image.
        for step, (images, labels) in enumerate(self._labelled.epoch(number, skip=skip), start=skip):
            index = self._indices(begin + step * self._filled, self._filled_of(len(labels)))
            generator = generator_for(self._extra.images.device, self._seed, "augment extra", number, step)
            more = as_pixels(self._augmentation.apply(self._extra.images[index], generator))
            rows = workers.rows(len(labels) + len(index))
            all_images = torch.cat([images.to(more), more])
            all_labels = torch.cat([labels.to(self._extra.labels.device), self._extra.labels[index]])
            yield all_images[rows], all_labels[rows]

    def in_order(self) -> Iterable[Batch]:
        return self._labelled.in_order()

    def split(self, fraction: float, *, seed: int) -> tuple[Source, Source]:
        kept, held_out = self._labelled.split(fraction, seed=seed)
        return self._with(kept, self._plain + self._filled), held_out

    def rebatched(self, batch_size: int) -> Source:
        return self._with(self._labelled, batch_size)

    def fingerprint(self) -> str:
        parts = f"{self._labelled.fingerprint()} {self._extra.fingerprint()} {self._share!r}"
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def count(self) -> int | None:
        return self._labelled.count

    def close(self) -> None:
        self._labelled.close()

    def _filled_of(self, plain: int) -> int:
        """Return how many extra images fill up a batch of ``plain`` training images."""
        return round(self._filled * plain / self._plain)

    def _indices(self, begin: int, count: int) -> Tensor:
        """Return places ``begin`` to ``begin + count`` of the endless order of the extra images."""
        size = len(self._extra)
        parts: list[Tensor] = []
        while count:
            turn, place = divmod(begin, size)
            order = torch.randperm(size, generator=generator_for("cpu", self._seed, "order extra", turn))
            part = order[place : place + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        found = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
        return found.to(self._extra.images.device)

    def _with(self, labelled: Source, batch_size: int) -> "MixedSource":
        return MixedSource(
            labelled,
            self._extra,
            share=self._share,
            batch_size=batch_size,
            seed=self._seed,
            augmentation=self._augmentation,
            device=self._device,
        )
