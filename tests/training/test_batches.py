from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import Batch, DatasetSource, IterableSource, MemorySource, Source
from robustcompress.training.sources import as_source


def images(count: int = 50) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 6, 6), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 5, tuple("abcde"), "made up")


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws from the global generators in ``__getitem__``, as torchvision's transforms do."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 4, 4), index % 3


def sources() -> list[Source]:
    return [
        as_source(images(), batch_size=16, seed=3, augmentation=Augmentation(flip=True, shift=1)),
        as_source(Noisy(), batch_size=4, seed=3),
        as_source(DataLoader(Noisy(), batch_size=4, shuffle=True), batch_size=99, seed=3),
    ]


def flat(batches: Iterator[Batch]) -> list[list[float]]:
    return [[*pixels.flatten().tolist(), *labels.tolist()] for pixels, labels in batches]


@pytest.mark.parametrize("which", range(3))
def test_an_epoch_can_be_taken_up_in_its_middle_bit_for_bit(which: int) -> None:
    source = sources()[which]
    assert source.exact
    whole = flat(source.epoch(1))
    assert len(whole) == source.steps()
    torch.rand(3)  # whatever happened to the global generator in between
    assert flat(source.epoch(1, skip=2)) == whole[2:]


@pytest.mark.parametrize("which", range(3))
def test_epochs_differ_and_cover_every_image_once(which: int) -> None:
    source = sources()[which]
    assert flat(source.epoch(0)) != flat(source.epoch(1))
    assert sum(len(labels) for _, labels in source.epoch(0)) == source.count


def test_in_order_is_not_augmented_and_can_be_iterated_again() -> None:
    data = images()
    source = as_source(data, batch_size=16, seed=0, augmentation=Augmentation(flip=True, shift=2))
    batches = source.in_order()
    for _ in range(2):
        pixels = torch.cat([pixels for pixels, _ in batches])
        assert torch.equal((pixels * 255).round().to(torch.uint8), data.images)


def test_shift_moves_whole_images_and_fills_with_black() -> None:
    pixels = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(200, 1, 1, 1)
    moved = Augmentation(shift=1).apply(pixels, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels[0, 0], [1, 1, 1, 1])
    allowed = {
        tuple(padded[row : row + 4, column : column + 4].flatten().tolist())
        for row in range(3)
        for column in range(3)
    }
    assert {tuple(image.flatten().tolist()) for image in moved} == allowed


def test_flip_mirrors_about_half() -> None:
    pixels = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat(400, 1, 1, 1)
    changed = Augmentation(flip=True).apply(pixels, torch.Generator().manual_seed(0))
    mirrored = int((changed == pixels.flip(3)).all(dim=(1, 2, 3)).sum())
    kept = int((changed == pixels).all(dim=(1, 2, 3)).sum())
    assert mirrored + kept == 400
    assert 150 < mirrored < 250


def test_a_split_is_stratified_and_disjoint() -> None:
    kept, held_out = as_source(images(), batch_size=8, seed=0).split(0.2, seed=1)
    labels = torch.cat([labels for _, labels in held_out.in_order()])
    assert torch.bincount(labels).tolist() == [2] * 5
    assert kept.count == 40
    rows = {
        tuple(image.flatten().tolist())
        for source in (kept, held_out)
        for batch in source.in_order()
        for image in batch[0]
    }
    assert len(rows) == 50


def test_a_dataset_is_split_without_overlap() -> None:
    dataset = TensorDataset(torch.linspace(0, 1, 20).reshape(20, 1, 1, 1), torch.arange(20))
    kept, held_out = as_source(dataset, batch_size=3, seed=0).split(0.25, seed=1)
    parts = [torch.cat([labels for _, labels in part.in_order()]).tolist() for part in (kept, held_out)]
    assert sorted(parts[0] + parts[1]) == list(range(20))
    assert len(parts[1]) == 5


def test_too_few_images_cannot_be_split() -> None:
    dataset = TensorDataset(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match="too few to hold 50% out"):
        as_source(dataset, batch_size=3, seed=0).split(0.5, seed=1)


def test_a_loader_keeps_its_own_batch_size() -> None:
    loader = DataLoader(Noisy(), batch_size=5, drop_last=True)
    source = as_source(loader, batch_size=99, seed=0)
    assert isinstance(source, DatasetSource)
    assert source.steps() == 4
    assert source.rebatched(7) is source
    assert as_source(Noisy(), batch_size=99, seed=0).rebatched(7).steps() == 4


def test_a_loader_without_shuffling_stays_in_order() -> None:
    dataset = TensorDataset(torch.rand(9, 1, 2, 2), torch.arange(9))
    source = as_source(DataLoader(dataset, batch_size=4), batch_size=1, seed=0)
    assert torch.cat([labels for _, labels in source.epoch(3)]).tolist() == list(range(9))


def test_a_loader_with_its_own_sampler_is_used_as_it_is() -> None:
    sampler = WeightedRandomSampler([1.0] * 23, 10)
    source = as_source(DataLoader(Noisy(), batch_size=5, sampler=sampler), batch_size=1, seed=0)
    assert isinstance(source, IterableSource)
    assert not source.exact
    assert source.steps() == 2


def test_a_plain_list_of_batches_is_a_source_that_cannot_be_split_or_skipped() -> None:
    source = as_source([(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))], batch_size=1, seed=0)
    assert source.steps() == 1
    assert source.rebatched(5) is source
    with pytest.raises(DataError, match="no validation data was given and list cannot be split"):
        source.split(0.1, seed=0)
    with pytest.raises(DataError, match="cannot be taken up in the middle"):
        source.epoch(0, skip=1)


def test_an_iterable_without_length_is_counted() -> None:
    class Stream:
        def __iter__(self) -> Iterator[Batch]:
            return iter([(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))] * 3)

    assert as_source(Stream(), batch_size=1, seed=0).steps() == 3


def test_an_iterator_is_refused() -> None:
    with pytest.raises(DataError, match="an iterator, which can be read only once"):
        as_source(iter([]), batch_size=1, seed=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "there are no images"),
        ([torch.rand(2, 1, 3, 3)], r"batches must be \(images, labels\) tensors"),
        ([(torch.rand(2, 1, 3, 3) * 3, torch.tensor([0, 1]))], r"pixels must be in \[0, 1\]"),
        ([(torch.rand(2, 1, 3, 3), torch.tensor([0, -1]))], "labels must be 0 or more"),
        ([(torch.rand(2, 1, 3, 3), torch.tensor([0.0, 1.0]))], "labels must be int64"),
        ([(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1]))], "must be floating point"),
    ],
)
def test_data_that_are_not_images_and_labels_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(data, batch_size=1, seed=0)


def test_fingerprints_follow_the_data() -> None:
    data = images()
    changed = data.select(torch.arange(len(data)).flip(0))
    assert as_source(data, batch_size=1, seed=0).fingerprint() == data.fingerprint()
    assert data.fingerprint() != changed.fingerprint()
    first, second = ([(torch.full((1, 1, 2, 2), v), torch.tensor([0]))] for v in (0.1, 0.2))
    prints = {as_source(part, batch_size=1, seed=0).fingerprint() for part in (first, second)}
    assert len(prints) == 2


def test_rebatching_changes_the_size_alone() -> None:
    source = as_source(images(), batch_size=16, seed=0)
    assert isinstance(source, MemorySource)
    assert [len(labels) for _, labels in source.rebatched(20).epoch(0)] == [20, 20, 10]
