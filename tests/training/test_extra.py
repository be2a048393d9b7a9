from collections import Counter
from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from robustcompress.data import ImageSet
from robustcompress.errors import DataError
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import Batch, Source
from robustcompress.training.distributed import Workers
from robustcompress.training.extra import MixedSource
from robustcompress.training.sources import as_source

# Pixels 0 to 99 are training images, 100 and more extra ones: each image is one pixel.


def pixels(first: int, count: int) -> ImageSet:
    images = torch.arange(first, first + count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return ImageSet(images, torch.arange(count) % 5, tuple("abcde"), "pixels")


class Items(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 1, 1), index / 255), index % 5


def mixed(
    labelled: object = None, *, share: float = 0.5, batch_size: int = 16, extra: int = 30
) -> MixedSource:
    source = as_source(pixels(0, 50) if labelled is None else labelled, batch_size=99, seed=3)  # type: ignore[arg-type]  # tests pass all kinds
    return MixedSource(source, pixels(100, extra), share=share, batch_size=batch_size, seed=3)


def values(batches: Sequence[Batch]) -> list[list[int]]:
    return [(images * 255).round().flatten().int().tolist() for images, _ in batches]


@pytest.mark.parametrize("items", [True, False])
@pytest.mark.parametrize(("share", "plain", "filled"), [(0.5, 8, 8), (0.25, 12, 4), (0.9, 2, 14)])
def test_each_batch_has_its_share_and_an_epoch_each_training_image_once(
    items: bool, share: float, plain: int, filled: int
) -> None:
    source = mixed(Items() if items else None, share=share)
    batches = values(list(source.epoch(0)))
    assert len(batches) == source.steps() == -(-50 // plain)
    for batch in batches[:-1]:
        assert sum(value < 100 for value in batch) == plain
        assert sum(value >= 100 for value in batch) == filled
    rest = 50 - (len(batches) - 1) * plain
    assert len(batches[-1]) == rest + round(filled * rest / plain)
    assert sorted(value for batch in batches for value in batch if value < 100) == list(range(50))


def test_labels_stay_with_their_images() -> None:
    for images, labels in mixed().epoch(2):
        numbers = (images * 255).round().flatten().int() % 100
        assert torch.equal(numbers % 5, labels.int())


def test_each_extra_image_comes_once_before_any_comes_again_also_over_epochs() -> None:
    source = mixed(extra=30)
    stream = [value for epoch in range(6) for batch in values(list(source.epoch(epoch))) for value in batch]
    extra = [value for value in stream if value >= 100]
    assert len(extra) == 6 * 50
    for turn in range(10):
        assert sorted(extra[30 * turn : 30 * turn + 30]) == list(range(100, 130))
    assert extra[:30] != extra[30:60]


def test_an_epoch_is_taken_up_in_its_middle_bit_for_bit() -> None:
    source = mixed()
    assert source.exact
    assert values(list(source.epoch(3, skip=4))) == values(list(source.epoch(3)))[4:]


def test_processes_get_together_what_one_gets_alone() -> None:
    class Third(Workers):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank, self.size = rank, 3

    alone = values(list(mixed().epoch(1)))
    shared = [values(list(mixed().epoch(1, workers=Third(rank)))) for rank in range(3)]
    assert [list(chain.from_iterable(parts)) for parts in zip(*shared, strict=True)] == alone


def test_extra_images_are_augmented_as_the_others() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2).repeat(200, 1, 1, 1)
    extra = ImageSet(images, torch.zeros(200, dtype=torch.int64), ("a",), "halves")
    labelled = as_source(extra, batch_size=9, seed=0)
    augmentation = Augmentation(flip=True)
    source = MixedSource(labelled, extra, share=0.5, batch_size=40, seed=0, augmentation=augmentation)
    filled = torch.cat([images[20:] for images, _ in source.epoch(0)])
    assert 60 < int((filled[:, 0, 0, 0] == 1).sum()) < 140


def test_what_is_held_out_or_read_in_order_is_never_extra() -> None:
    kept, held_out = mixed().split(0.2, seed=0)
    assert Counter(value < 100 for batch in values(list(held_out.in_order())) for value in batch) == {
        True: 10
    }
    assert kept.count == 40
    assert all(value < 100 for batch in values(list(kept.in_order())) for value in batch)
    assert any(value >= 100 for batch in values(list(kept.epoch(0))) for value in batch)


def test_other_batches_keep_the_share_and_the_fingerprint_knows_the_extra_images() -> None:
    again: Source = mixed().rebatched(4)
    assert Counter(value < 100 for value in values(list(again.epoch(0)))[0]) == {True: 2, False: 2}
    assert again.fingerprint() == mixed().fingerprint()
    assert len({mixed().fingerprint(), mixed(extra=31).fingerprint(), mixed(share=0.25).fingerprint()}) == 3
    again.close()


def test_what_cannot_be_filled_up_is_refused() -> None:
    own = DataLoader(TensorDataset(torch.rand(8, 1, 1, 1), torch.zeros(8, dtype=torch.int64)), batch_size=4)
    for labelled in (own, [(torch.rand(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64))]):
        with pytest.raises(DataError, match="Pass the training images as a Dataset"):
            mixed(labelled)
    with pytest.raises(DataError, match="leaves 16 training and 0 extra images in each"):
        mixed(share=0.01)
    larger = ImageSet(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([0]), ("a",), "larger")
    with pytest.raises(DataError, match=r"larger: extra images must be \[1, 1, 1\] .* got \[3, 2, 2\]"):
        MixedSource(as_source(pixels(0, 9), batch_size=4, seed=0), larger, share=0.5, batch_size=4, seed=0)
