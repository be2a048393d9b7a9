import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.data import ImageSet
from robustcompress.errors import ConfigError, DataError
from robustcompress.zoo.balanced_subset import balanced_subset


def numbered(labels: list[int], classes: int) -> ImageSet:
    """Return a set whose image i has the pixels (i // 256, i % 256)."""
    index = torch.arange(len(labels))
    pixels = torch.stack([index // 256, index % 256], dim=1).to(torch.uint8)
    return ImageSet(
        images=pixels.reshape(-1, 1, 1, 2),
        labels=torch.tensor(labels),
        classes=tuple(f"class {i}" for i in range(classes)),
        name="numbered",
    )


def identities(images: ImageSet) -> list[int]:
    return [int(p[0]) * 256 + int(p[1]) for p in images.images.flatten(1)]


@settings(deadline=None, max_examples=50)
@given(each=st.integers(1, 8), extra=st.integers(0, 40), seed=st.integers(0, 2**40), data=st.data())
def test_a_subset_is_balanced_nested_and_without_repetition(
    each: int, extra: int, seed: int, data: st.DataObject
) -> None:
    labels = [0, 1, 2] * each + data.draw(st.lists(st.integers(0, 2), min_size=extra, max_size=extra))
    labels = data.draw(st.permutations(labels))
    whole = numbered(labels, 3)
    subset = balanced_subset(whole, 3 * each, seed=seed)
    chosen = identities(subset)
    assert len(set(chosen)) == len(chosen) == 3 * each
    assert subset.labels.tolist() == [0, 1, 2] * each == [labels[i] for i in chosen]
    for fewer in range(1, each):
        assert identities(balanced_subset(whole, 3 * fewer, seed=seed)) == chosen[: 3 * fewer]


def test_another_seed_chooses_other_images() -> None:
    whole = numbered([0, 1] * 100, 2)
    assert identities(balanced_subset(whole, 20, seed=0)) != identities(balanced_subset(whole, 20, seed=1))


def test_the_choice_does_not_favour_the_beginning_of_the_set() -> None:
    whole = numbered([0] * 2000, 1)
    means = [sum(identities(balanced_subset(whole, 200, seed=s))) / 200 for s in range(20)]
    # The mean of 20 * 200 uniform draws from 0 to 1999 has standard deviation 577 / 63 = 9.1.
    assert sum(means) / 20 == pytest.approx(999.5, abs=4 * 9.1)


@pytest.mark.parametrize(("size", "nearest"), [(0, 3), (1, 3), (-3, 3), (7, 6), (8, 9)])
def test_a_size_that_is_no_multiple_of_the_classes_is_refused(size: int, nearest: int) -> None:
    whole = numbered([0, 1, 2] * 10, 3)
    with pytest.raises(ConfigError, match=rf"multiple of 3 classes; got {size}\. Try {nearest}\."):
        balanced_subset(whole, size, seed=0)


def test_a_class_with_too_few_images_is_named() -> None:
    whole = numbered([0, 0, 0, 1, 1, 2, 2, 2], 3)
    with pytest.raises(DataError, match=r"need 3 of each class; 'class 1' has 2\. Ask for at most 6\."):
        balanced_subset(whole, 9, seed=0)
