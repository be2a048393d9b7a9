"""What each process of ``test_distributed_edges.py`` runs, under torchrun.

Findings go to ``FOLDER/RANK.json``.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from robustcompress import Compressor, Recipe
from robustcompress.errors import ConfigError, DataError, InterruptedRunError
from robustcompress.storage.state import save_state
from robustcompress.training import checkpoints
from robustcompress.training.batches import Batch, IterableSource
from robustcompress.training.distributed import Workers, join_workers
from robustcompress.training.sources import Data
from tests.training import distributed_worker as worker

PIXELS = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


class Bounded(worker.Net):
    """Holds an infinity and a constant that no step changes."""

    floor: Tensor
    scale: Tensor

    def __init__(self, *, norm: bool) -> None:
        super().__init__(norm=norm)
        self.register_buffer("floor", torch.full((3,), -torch.inf))
        self.register_buffer("scale", torch.tensor([0.4914, 0.2435, 0.2616]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.maximum(super().forward(images), self.floor)


def constants() -> Mapping[str, object]:
    """Train with a batch that has fewer images than there are processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "Net", Bounded)
        found = worker.train(join_workers(worker.CPU), norm=True, prune=False)
    return {"floor": found["floor"].tolist(), "scale": found["scale"].tolist()}


def interrupted(folder: Path) -> bool:
    """Return whether, when this process is told to stop, the state is on the disk already."""

    def slow(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        time.sleep(0.5)
        save_state(path, tensors, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save_state", slow)
        try:
            worker.train(join_workers(worker.CPU), norm=False, prune=True, checkpoint=folder, stop_at=1)
        except InterruptedRunError:
            return (folder / "state-000000001.safetensors").exists()
    return False


def compressor(folder: Path, train: Data) -> Compressor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    stage = {"epochs": 2, "lr": 0.1, "batch_size": 8}
    recipe = Recipe.from_values(
        {
            "threat": {"eps": 0.1},
            "objective": {"kind": "trades", "steps": 1},
            "pretrain": stage,
            "validation": {"attack": {"kind": "pgd", "steps": 1}},
        }
    )
    validation = [(PIXELS[:8], LABELS[:8])]
    return Compressor(
        model, recipe=recipe, train=train, validation=validation, run_dir=folder, progress=False
    )


class Watched:
    """A loader that draws its order from the global generator, and remembers what it gave."""

    def __init__(self) -> None:
        sampler = WeightedRandomSampler([1.0] * 24, 24)
        self._loader = DataLoader(TensorDataset(PIXELS, LABELS), batch_size=8, sampler=sampler)
        self.given: list[list[int]] = []

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self._loader:
            self.given.append(labels.tolist())
            yield images, labels


def random_order(folder: Path) -> list[list[int]]:
    """Return the labels of the batches of two epochs."""
    loader = Watched()
    made = compressor(folder, loader)
    loader.given = []
    made.pretrain()
    return loader.given


def other_batches(workers: Workers) -> str:
    own = [(PIXELS[:4], LABELS[:4]), (PIXELS[:4], LABELS[:4] + workers.rank)]
    try:
        list(IterableSource(own).epoch(0, workers=workers))
    except DataError as error:
        return str(error)
    return ""


def fewer_batches(workers: Workers) -> str:
    try:
        list(IterableSource([(PIXELS[:4], LABELS[:4])] * (2 + workers.rank)).epoch(0, workers=workers))
    except DataError as error:
        return str(error)
    return ""


def other_images(folder: Path, workers: Workers) -> str:
    try:
        compressor(folder, TensorDataset(PIXELS, (LABELS + workers.rank) % 3))
    except ConfigError as error:
        return str(error)
    return ""


def afterwards(folder: Path) -> str:
    """Return what evaluate says; the first process evaluates."""
    made = compressor(folder, TensorDataset(PIXELS, LABELS))
    try:
        made.evaluate()
    except ConfigError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    workers = join_workers(worker.CPU)
    found = {
        "constants": constants(),
        "saved": interrupted(folder / "checkpoint"),
        "order": random_order(folder / "order"),
        "other batches": other_batches(workers),
        "fewer batches": fewer_batches(workers),
        "other images": other_images(folder / "images", workers),
        "evaluate": afterwards(folder / "evaluate"),
    }
    (folder / f"{workers.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
