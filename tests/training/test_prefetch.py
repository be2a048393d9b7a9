"""Batches on their way to the device, and the time that training waits for them."""

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustcompress.data import ImageSet
from robustcompress.errors import DataError, InterruptedRunError
from robustcompress.events import EpochDone, Event, Events, Notice
from robustcompress.training import prefetch
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import Batch, Source
from robustcompress.training.prefetch import Prefetch
from robustcompress.training.sources import as_source
from tests.training.test_loop import assert_same, network, tensors, train

CPU = torch.device("cpu")


class Bars(Dataset[tuple[Tensor, int]]):
    """Noise that is brightest in one of three bands; ``seconds`` an item, and one may be broken."""

    def __init__(self, count: int = 40, *, seconds: float = 0.0, broken: int = -1) -> None:
        self._count = count
        self._seconds = seconds
        self._broken = broken

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self._broken:
            raise ValueError("no such picture")
        time.sleep(self._seconds)
        image = 0.5 * torch.rand(1, 8, 8)
        image[:, :, 2 * (index % 3)] += 0.4
        return image, index % 3


def bars(workers: int = 0, **changes: float) -> Source:
    return as_source(Bars(**changes), batch_size=8, seed=2, loader_workers=workers)  # type: ignore[arg-type]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("robustcompress.training.prefetch.time.monotonic", lambda: self.now)


def test_the_share_is_the_time_waited_over_the_time_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def slow() -> Iterator[Batch]:
        for _ in range(4):
            clock.now += 3.0
            yield torch.zeros(2, 1), torch.zeros(2)

    with Prefetch(slow(), CPU, ahead=False) as batches:
        assert batches.input_share == 0.0
        for _ in batches:
            clock.now += 1.0
    assert (batches.waited, batches.seconds, batches.input_share) == (12.0, 16.0, 0.75)


def test_batches_are_those_of_the_source_and_the_iterator_is_closed() -> None:
    closed: list[bool] = []

    def endless() -> Iterator[Batch]:
        try:
            while True:
                yield torch.rand(2, 1), torch.zeros(2)
        finally:
            closed.append(True)

    with Prefetch(bars().epoch(3), CPU, ahead=True) as batches:
        assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, bars().epoch(3), strict=True))
    source = endless()
    with Prefetch(source, CPU, ahead=True) as batches:
        for _ in batches:
            break
    assert closed == [True]
    with Prefetch(iter([(torch.zeros(1, 1), torch.zeros(1))]), CPU, ahead=False) as batches:
        assert len(list(batches)) == 1  # a list's iterator cannot be closed, and need not


# ---- in the loop -------------------------------------------------------------------------------------------


def test_training_tells_each_epochs_share_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "NOTICEABLE", 0.0)
    said: list[Event] = []
    trained = train(
        network(), source=bars(seconds=0.02), events=Events([said.append]), settings={"epochs": 2}
    )
    shares = [event.metrics["input_share"] for event in said if isinstance(event, EpochDone)]
    assert len(shares) == 2
    assert all(0.3 < share <= 1.0 for share in shares)
    assert min(shares) <= trained.input_share <= max(shares)
    warnings = [event.message for event in said if isinstance(event, Notice)]
    assert len(warnings) == 1
    assert warnings[0].startswith("pretrain, epoch 1: ")
    assert "went into waiting for data; set loader_workers above 0" in warnings[0]


@pytest.mark.parametrize(("noticeable", "seconds"), [(1e9, 0.02), (0.0, None)])
def test_short_waits_and_images_in_memory_bring_no_warning(
    monkeypatch: pytest.MonkeyPatch, noticeable: float, seconds: float | None
) -> None:
    monkeypatch.setattr(prefetch, "NOTICEABLE", noticeable)
    monkeypatch.setattr(prefetch, "MUCH", 0.0)
    said: list[Event] = []
    source = None if seconds is None else bars(seconds=seconds)
    train(network(), source=source, events=Events([said.append]), settings={"epochs": 1})
    assert not any(isinstance(event, Notice) for event in said)


def test_workers_and_a_break_in_the_middle_of_an_epoch_change_no_weight(tmp_path: Path) -> None:
    whole = network()
    train(whole, source=bars(), settings={"epochs": 2})
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 7

    with pytest.raises(InterruptedRunError, match="epoch 2, step 7"):
        train(network(), source=bars(2), settings={"epochs": 2}, checkpoint=tmp_path, stop=stop)
    assert multiprocessing.active_children() == []
    resumed = network()
    train(resumed, source=bars(1), settings={"epochs": 2}, checkpoint=tmp_path)
    assert_same(tensors(whole), tensors(resumed))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_loaded_stops_the_training(workers: int) -> None:
    with pytest.raises(DataError, match=r"^image 30 of Bars cannot be loaded: ValueError: no such picture$"):
        train(network(), source=bars(workers, broken=30))
    assert multiprocessing.active_children() == []


# ---- on a GPU ----------------------------------------------------------------------------------------------


def sources(device: str) -> list[Source]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=generator)
    memory = ImageSet(images, torch.arange(40) % 3, ("a", "b", "c"), "noise")
    flip = Augmentation(flip=True)
    return [
        as_source(memory, batch_size=8, seed=2, augmentation=flip, device=device),
        as_source(Bars(), batch_size=8, seed=2, device=device, loader_workers=0),
        as_source(Bars(), batch_size=8, seed=2, device=device, loader_workers=2),
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("which", range(3))
def test_fetching_ahead_on_a_gpu_changes_no_batch(which: int) -> None:
    device = torch.device("cuda")
    source = sources("cuda")[which]
    plain = [(images.to(device), labels.to(device)) for images, labels in source.epoch(1)]
    with Prefetch(source.epoch(1), device, ahead=True) as batches:
        for (images, labels), (wanted, classes) in zip(batches, plain, strict=True):
            assert images.device.type == labels.device.type == "cuda"
            busy = torch.randn(2000, 2000, device=device)
            for _ in range(20):
                busy = busy @ busy / 2000  # the copy of the next batch runs beside this
            assert torch.equal(images, wanted)
            assert torch.equal(labels, classes)
    source.close()


@pytest.mark.gpu
def test_batches_of_a_dataset_are_pinned_for_a_gpu() -> None:
    source = sources("cuda")[2]
    assert all(images.is_pinned() for images, _ in source.epoch(0))
    source.close()
