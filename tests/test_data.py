import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcompress.data import ImageSet, as_pixels, check_batch, check_logits, stratified_split
from robustcompress.errors import DataError


def image_set(count: int = 4, classes: int = 2) -> ImageSet:
    return ImageSet(
        images=torch.arange(count * 6, dtype=torch.uint8).reshape(count, 1, 2, 3),
        labels=torch.arange(count) % classes,
        classes=tuple(str(label) for label in range(classes)),
        name="numbers",
    )


def test_select_gives_images_and_labels_in_the_order_asked_for() -> None:
    whole = image_set()
    for indices in ([3, 0, 0], torch.tensor([3, 0, 0])):
        part = whole.select(indices)
        assert len(part) == 3
        assert torch.equal(part.images, whole.images[[3, 0, 0]])
        assert part.labels.tolist() == [1, 0, 0]
        assert (part.classes, part.name) == (whole.classes, whole.name)


def test_batches_cover_the_set_in_order_as_pixels_between_zero_and_one() -> None:
    whole = image_set(5)
    batches = list(whole.batches(2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert torch.equal(images, whole.images.float() / 255)
    assert torch.equal(torch.cat([labels for _, labels in batches]), whole.labels)


def test_every_byte_becomes_its_255th_part_and_the_bytes_stay_as_they_were() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    pixels = as_pixels(levels)
    assert pixels.dtype == torch.float32
    assert pixels.tolist() == pytest.approx([level / 255 for level in range(256)], abs=1e-7)
    assert pixels[255] == 1.0
    assert torch.equal((pixels * 255).round().to(torch.uint8), levels)
    assert levels.tolist() == list(range(256))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")],
        ),
    ],
)
def test_to_keeps_the_set_and_moves_its_tensors(device: str) -> None:
    moved = image_set().to(device)
    assert moved.images.device.type == moved.labels.device.type == device
    assert moved.fingerprint() == image_set().fingerprint()
    assert moved.select([1, 0]).labels.tolist() == [1, 0]


def test_the_fingerprint_is_the_hash_of_shape_pixels_and_labels() -> None:
    whole = image_set()
    text = b"(4, 1, 2, 3)" + bytes(range(24)) + b"".join(i.to_bytes(8, "little") for i in (0, 1, 0, 1))
    assert whole.fingerprint() == hashlib.sha256(text).hexdigest()


def test_the_fingerprint_sees_every_pixel_label_and_dimension_but_not_strides() -> None:
    whole = image_set()
    pixels, labels = whole.images.clone(), whole.labels.clone()
    pixels[3, 0, 1, 2] += 1
    labels[3] = 0
    others = [
        ImageSet(pixels, whole.labels, whole.classes, whole.name),
        ImageSet(whole.images, labels, whole.classes, whole.name),
        ImageSet(whole.images.reshape(4, 1, 3, 2), whole.labels, whole.classes, whole.name),
    ]
    assert len({whole.fingerprint(), *(other.fingerprint() for other in others)}) == 4
    strided = whole.images.transpose(2, 3).contiguous().transpose(2, 3)
    assert not strided.is_contiguous()
    assert ImageSet(strided, whole.labels, whole.classes, "other name").fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 2, 2), torch.zeros(2, 4, dtype=torch.uint8)], ids=["float", "flat"]
)
def test_images_must_be_bytes_of_four_dimensions(images: Tensor) -> None:
    with pytest.raises(
        DataError, match=r"numbers: images must be uint8 \[count, channels, height, width\]; got"
    ):
        ImageSet(images, torch.zeros(2, dtype=torch.int64), ("a",), "numbers")


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, 1, dtype=torch.int64),
    ],
)
def test_labels_must_be_one_int64_for_each_image(labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"numbers: labels must be int64 \[2\]; got"):
        ImageSet(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels, ("a",), "numbers")


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="numbers: holds no images"):
        ImageSet(
            torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "numbers"
        )


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_must_name_a_class(label: int) -> None:
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"numbers: labels must be 0 to 1; found"):
        ImageSet(images, torch.tensor([0, label]), ("a", "b"), "numbers")


@settings(deadline=None, max_examples=100)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(lambda c: max(c) > 1),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_a_partition_that_takes_the_same_share_of_each_class(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    first, second = stratified_split(labels, fraction, seed=seed)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    assert first.tolist() == sorted(first.tolist())
    assert second.tolist() == sorted(second.tolist())
    for label, count in enumerate(counts):
        held_out = int((labels[second] == label).sum())
        assert held_out == 0 if count < 2 else 1 <= held_out < count
        if count > 1:
            assert abs(held_out - fraction * count) < 1


def test_a_split_depends_on_its_seed_and_on_nothing_else() -> None:
    labels = torch.arange(10).repeat(30)
    torch.manual_seed(1)
    first = stratified_split(labels, 0.2, seed=4)[1]
    torch.manual_seed(2)
    assert torch.equal(stratified_split(labels, 0.2, seed=4)[1], first)
    assert not torch.equal(stratified_split(labels, 0.2, seed=5)[1], first)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_zero_and_one_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match=r"the validation fraction must be in \(0, 1\); got"):
        stratified_split(torch.tensor([0, 0, 1, 1]), fraction, seed=0)


def test_a_set_with_one_image_of_each_class_cannot_be_split() -> None:
    with pytest.raises(DataError, match="too few images to hold any out for validation"):
        stratified_split(torch.tensor([0, 1, 2]), 0.5, seed=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_good_batch_passes(dtype: torch.dtype) -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).to(dtype)
    check_batch(images, torch.tensor([0, 5, 1]), where="train")


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), torch.zeros(0, 1, 2, 2)],
    ids=["bytes", "flat", "empty"],
)
def test_a_batch_of_another_type_or_shape_is_refused(images: Tensor) -> None:
    with pytest.raises(DataError, match="train: images must be floating point"):
        check_batch(images, torch.zeros(len(images), dtype=torch.int64), where="train")


@pytest.mark.parametrize("pixel", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_a_pixel_outside_zero_and_one_is_refused_with_the_way_out(pixel: float) -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    images[1, 0, 1, 0] = pixel
    with pytest.raises(
        DataError, match=r"train: pixels must be in \[0, 1\]; found .*robustcompress\.Normalized"
    ):
        check_batch(images, torch.zeros(2, dtype=torch.int64), where="train")


@pytest.mark.parametrize(
    "labels", [torch.zeros(2), torch.zeros(3, dtype=torch.int64)], ids=["float", "length"]
)
def test_labels_of_a_batch_must_be_one_int64_for_each_image(labels: Tensor) -> None:
    with pytest.raises(DataError, match=r"train: labels must be int64 \[2\]; got"):
        check_batch(torch.zeros(2, 1, 2, 2), labels, where="train")


def test_a_negative_label_in_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match="train: labels must be 0 or more; found -1"):
        check_batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, -1]), where="train")


def test_good_logits_come_back_as_they_are() -> None:
    logits = torch.zeros(2, 3)
    assert check_logits(logits, torch.tensor([0, 2]), where="test") is logits


@pytest.mark.parametrize(
    ("logits", "got"),
    [
        (torch.zeros(2, 3, 1), r"\[2, 3, 1\]"),
        (torch.zeros(2), r"\[2\]"),
        (torch.zeros(3, 3), r"\[3, 3\]"),
        ((torch.zeros(2, 3),), "tuple"),
    ],
)
def test_an_output_that_is_not_batch_by_classes_is_refused(logits: object, got: str) -> None:
    with pytest.raises(
        DataError, match=rf"test: the network must return logits \[batch, classes\]; got {got}"
    ):
        check_logits(logits, torch.tensor([0, 0]), where="test")


def test_a_label_that_the_network_has_no_class_for_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"test: label 3 is out of range: the network has 3 classes \(0 to 2\)"
    ):
        check_logits(torch.zeros(2, 3), torch.tensor([0, 3]), where="test")
