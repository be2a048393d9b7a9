from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from robustcompress.errors import ConfigError, DataError
from robustcompress.robustness.batches import checked_batches

IMAGES = torch.linspace(0, 1, 10).reshape(10, 1, 1, 1)
LABELS = torch.arange(10) % 3
PAIRS = list(zip(IMAGES.split(4), LABELS.split(4), strict=True))


def _read(batches: Any, limit: int | None = None) -> tuple[Tensor, list[int], list[int]]:
    found = list(checked_batches(batches, device="cpu", limit=limit))
    return torch.cat([b.images for b in found]), [len(b.labels) for b in found], [b.total for b in found]


def test_batches_come_in_order_and_tell_how_many_there_will_be() -> None:
    images, sizes, totals = _read(PAIRS)
    assert torch.equal(images, IMAGES)
    assert sizes == [4, 4, 2]
    assert totals == [3, 3, 3]
    assert [b.index for b in checked_batches(PAIRS, device="cpu", limit=None)] == [0, 1, 2]


def test_a_generator_does_not_tell_how_many_batches_there_are() -> None:
    assert _read(pair for pair in PAIRS)[2] == [0, 0, 0]


def test_a_data_loader_is_taken_as_it_is() -> None:
    images, sizes, totals = _read(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5))
    assert torch.equal(images, IMAGES)
    assert sizes == [5, 5]
    assert totals == [2, 2]


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (10, [4, 4, 2]), (99, [4, 4, 2])]
)
def test_the_limit_counts_images(limit: int, sizes: list[int]) -> None:
    images, found, totals = _read(PAIRS, limit)
    assert found == sizes
    assert totals == [len(sizes)] * len(sizes)
    assert torch.equal(images, IMAGES[:limit])
    assert _read(iter(PAIRS), limit)[1] == sizes


def test_no_more_is_read_than_the_limit_needs() -> None:
    source = iter(PAIRS)
    _read(source, 4)
    assert len(list(source)) == 2


def test_half_precision_images_become_float32_and_doubles_stay() -> None:
    halves = [(images.half(), labels) for images, labels in PAIRS]
    doubles = [(images.double(), labels) for images, labels in PAIRS]
    assert _read(halves)[0].dtype == torch.float32
    assert _read(doubles)[0].dtype == torch.float64


def test_no_batches_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected batches of \(images, labels\) to judge; got none"):
        _read([])


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"limit must be 1 or more, or None for all images; got {limit}"):
        _read(PAIRS, limit)


@pytest.mark.parametrize(
    ("pair", "got"),
    [
        (IMAGES, "got Tensor"),
        ((IMAGES,), r"got tuple of \(Tensor\)"),
        ([IMAGES, [1, 2]], r"got list of \(Tensor, list\)"),
        ({"image": IMAGES}, "got dict"),
    ],
)
def test_what_is_no_pair_of_tensors_is_refused(pair: object, got: str) -> None:
    with pytest.raises(DataError, match=r"batch 1: expected a pair of tensors \(images, labels\); " + got):
        _read([PAIRS[0], pair])


def test_wrong_pixels_and_labels_are_refused_with_the_batch() -> None:
    with pytest.raises(DataError, match=r"batch 1: pixels must be in \[0, 1\]; found 0 to 255"):
        _read([PAIRS[0], (IMAGES * 255, LABELS)])
    with pytest.raises(DataError, match="batch 0: labels must be int64"):
        _read([(IMAGES, LABELS.int())])
    with pytest.raises(DataError, match="batch 0: images must be floating point"):
        _read([(IMAGES[:0], LABELS[:0])])
