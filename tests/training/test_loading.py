"""Items loaded by worker processes: the same numbers however many, clear errors, no process left."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustcompress.errors import DataError
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import Batch, DatasetSource, Source
from robustcompress.training.loading import usual_workers
from robustcompress.training.sources import as_source
from robustcompress.zoo.datasets.image_folder import ImageFolder


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws from all three global generators, and says which process it runs in."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(1, 4, 4) * float(np.random.rand())
        return noise, os.getpid()


class Failing(Dataset[tuple[Tensor, int]]):
    def __init__(self, *, dies: bool = False) -> None:
        self._dies = dies

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7:
            if self._dies:
                os._exit(1)
            raise ValueError("no such picture\nand more")
        return torch.zeros(1, 2, 2), 0


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def pixels(batches: Iterator[Batch]) -> list[Tensor]:
    return [images for images, _ in batches]


def assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def noisy(workers: int) -> Source:
    return as_source(Noisy(), batch_size=4, seed=3, loader_workers=workers)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    alone, shared = noisy(0), noisy(2)
    for epoch in (0, 1):
        assert_equal(pixels(alone.epoch(epoch)), pixels(shared.epoch(epoch)))
    assert_equal(pixels(alone.epoch(1, skip=4)), pixels(shared.epoch(1, skip=4)))
    shared.close()
    assert_equal(pixels(iter(alone.in_order())), pixels(iter(shared.in_order())))


def test_workers_live_on_from_epoch_to_epoch_until_closed() -> None:
    source = noisy(2)
    makers = [set(torch.cat([labels for _, labels in source.epoch(number)]).tolist()) for number in (0, 1)]
    assert os.getpid() not in makers[0]
    assert len(makers[0]) == 2
    assert makers[0] == makers[1]
    assert len(multiprocessing.active_children()) == 2
    source.close()
    assert multiprocessing.active_children() == []
    assert pixels(source.epoch(0))  # a closed source can be used again
    source.close()


def test_an_epoch_that_is_broken_off_ends_its_workers() -> None:
    source = noisy(2)
    epoch = source.epoch(0)
    next(epoch)
    assert len(multiprocessing.active_children()) == 2
    epoch.close()  # type: ignore[attr-defined]  # a generator
    assert multiprocessing.active_children() == []
    assert_equal(pixels(source.epoch(0)), pixels(noisy(0).epoch(0)))
    source.close()


def test_two_epochs_at_once_do_not_disturb_each_other() -> None:
    source, alone = noisy(2), noisy(0)
    pairs = list(zip(source.epoch(0), source.epoch(1), strict=True))
    assert_equal([first for (first, _), _ in pairs], pixels(alone.epoch(0)))
    assert_equal([second for _, (second, _) in pairs], pixels(alone.epoch(1)))
    source.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(workers: int) -> None:
    source = noisy(workers)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    pixels(source.epoch(0))
    assert torch.equal(torch.rand(3), expected)
    source.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_loaded_is_named(workers: int) -> None:
    source = DatasetSource(Failing(), batch_size=4, seed=0, shuffle=False, loader={"num_workers": workers})
    with pytest.raises(DataError) as caught:
        list(source.epoch(0))
    assert str(caught.value) == "image 7 of Failing cannot be loaded: ValueError: no such picture\nand more"
    source.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_items_of_different_shapes_cannot_be_put_together(workers: int) -> None:
    class Ragged(Failing):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(1, 2, 2 + index // 5), 0

    source = DatasetSource(Ragged(), batch_size=4, seed=0, shuffle=False, loader={"num_workers": workers})
    with pytest.raises(DataError, match=r"cannot be put together into a batch: RuntimeError: .*stack"):
        list(source.epoch(0))
    source.close()


def test_a_worker_that_dies_is_told_of() -> None:
    source = DatasetSource(Failing(dies=True), batch_size=4, seed=0, shuffle=False, loader={"num_workers": 1})
    with pytest.raises(DataError, match=r"a process that loads images died: .*set a lower loader_workers"):
        list(source.epoch(0))
    source.close()


def test_a_loader_keeps_its_workers_unless_the_recipe_names_others() -> None:
    loader = DataLoader(Noisy(), batch_size=4, num_workers=1, timeout=30, multiprocessing_context="fork")
    for asked, processes in ((None, 1), (0, 0), (2, 2)):
        source = as_source(loader, batch_size=9, seed=3, loader_workers=asked)
        makers = {int(maker) for _, labels in source.epoch(0) for maker in labels}
        assert len(makers - {os.getpid()}) == processes
        source.close()


def test_files_have_workers_by_default_where_there_are_cores_and_datasets_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, on_cpu, on_gpu in ((1, 0, 0), (2, 1, 1), (8, 1, 7), (96, 1, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert (usual_workers("cpu"), usual_workers("cuda")) == (on_cpu, on_gpu)
    source = as_source(Noisy(), batch_size=9, seed=3)
    assert {int(maker) for _, labels in source.epoch(0) for maker in labels} == {os.getpid()}


# ---- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Noise of 3x128x128, too much for the one MiB that is allowed."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 15), ("test", 12)):
        for label, name in enumerate(("cat", "dog", "owl")):
            for number in range(count):
                noise = generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)
                noise[:40] = 80 * label
                path = tmp_path / split / name / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise).save(path)
    return ImageFolder(dir=tmp_path, memory_limit_mb=1)


def in_memory(folder: ImageFolder) -> Any:
    return folder.model_copy(update={"memory_limit_mb": 4096}).load("train")


def test_files_give_the_pixels_that_memory_gives(folder: ImageFolder) -> None:
    files, memory = folder.open("train"), in_memory(folder)
    assert isinstance(files, Dataset)
    assert isinstance(folder.model_copy(update={"memory_limit_mb": 4096}).open("train"), type(memory))
    source = as_source(files, batch_size=16, seed=0, loader_workers=2)
    assert source.count == 45
    batches = list(source.in_order())
    assert torch.equal(torch.cat([images for images, _ in batches]), memory.images.float() / 255)
    assert torch.equal(torch.cat([labels for _, labels in batches]), memory.labels)
    alone = as_source(files, batch_size=16, seed=0, loader_workers=0)
    assert_equal(pixels(source.epoch(2)), pixels(alone.epoch(2)))
    source.close()


def test_files_are_split_as_memory_is(folder: ImageFolder) -> None:
    parts = as_source(folder.open("train"), batch_size=16, seed=0, loader_workers=0).split(0.2, seed=4)
    expected = as_source(in_memory(folder), batch_size=16, seed=0).split(0.2, seed=4)
    for part, wanted in zip(parts, expected, strict=True):
        assert torch.equal(
            torch.cat(pixels(iter(part.in_order()))), torch.cat(pixels(iter(wanted.in_order())))
        )


def test_files_take_the_balanced_subset_that_memory_takes(folder: ImageFolder) -> None:
    chosen = folder.model_copy(update={"train_size": 30})
    files, memory = chosen.open("train"), in_memory(chosen)
    assert torch.equal(files.labels, memory.labels)
    assert files.name == memory.name
    source = as_source(files, batch_size=30, seed=0, loader_workers=0)
    assert torch.equal(next(iter(source.in_order()))[0], memory.images.float() / 255)


def test_files_are_augmented_in_training_only_whatever_loads_them(folder: ImageFolder) -> None:
    files, memory = folder.open("train"), in_memory(folder)
    sources = [
        as_source(files, batch_size=16, seed=1, loader_workers=count, augmentation=Augmentation(flip=True))
        for count in (0, 2)
    ]
    batches = list(sources[0].epoch(0))
    assert_equal([images for images, _ in batches], pixels(sources[1].epoch(0)))
    assert_equal([images for images, _ in batches][1:], pixels(sources[0].epoch(0, skip=1)))
    plain = {image.numpy().tobytes() for image in memory.images.float() / 255}
    mirrored = {image.numpy().tobytes() for image in memory.images.flip(3).float() / 255}
    seen = [image.numpy().tobytes() for images, _ in batches for image in images]
    assert 10 < sum(image in plain for image in seen) < 35
    assert all(image in plain or image in mirrored for image in seen)
    assert all(
        image.numpy().tobytes() in plain for images in pixels(iter(sources[0].in_order())) for image in images
    )
    sources[1].close()


def test_a_damaged_file_is_named_by_the_worker_that_met_it(folder: ImageFolder) -> None:
    assert folder.dir is not None
    source = as_source(folder.open("train"), batch_size=16, seed=1, loader_workers=2)
    path = folder.dir / "train" / "dog" / "03.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"^\S*train/dog/03\.png: expected a PNG or JPEG image; got"):
        list(source.epoch(0))
    source.close()


def test_a_file_of_another_size_is_named_when_it_is_met(folder: ImageFolder) -> None:
    assert folder.dir is not None
    odd: NDArray[np.uint8] = np.zeros((5, 9, 3), dtype=np.uint8)
    Image.fromarray(odd).save(folder.dir / "train" / "owl" / "zz.png")
    source = as_source(folder.open("train"), batch_size=16, seed=1, loader_workers=0)
    with pytest.raises(DataError, match=r"owl/zz\.png is 5x9 but .*cat/00\.png is 128x128\. Set image_size"):
        list(source.epoch(0))


def test_the_fingerprint_of_files_follows_names_and_sizes(folder: ImageFolder) -> None:
    assert folder.dir is not None

    def fingerprint() -> str:
        return as_source(folder.open("train"), batch_size=16, seed=1, loader_workers=0).fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    path = folder.dir / "train" / "dog" / "03.png"
    Image.fromarray(np.zeros((128, 128, 3), dtype=np.uint8)).save(path)
    second = fingerprint()
    path.rename(path.with_name("3.png"))
    assert len({first, second, fingerprint()}) == 3
    source = as_source(folder.open("train"), batch_size=16, seed=1, loader_workers=0)
    path.with_name("3.png").unlink()
    with pytest.raises(DataError, match=r"dog/3\.png: expected an image file; got No such file"):
        source.fingerprint()
