"""What each process of ``test_distributed.py`` runs: ``python -m tests.training.distributed_worker FOLDER``.

Alone it does the same in one process. Results go to ``FOLDER/NAME-RANK.pt``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from robustcompress.data import ImageSet
from robustcompress.errors import InterruptedRunError, RobustCompressError
from robustcompress.events import Events
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Score
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.threat import Threat
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.batches import MemorySource
from robustcompress.training.distributed import Workers, join_workers
from robustcompress.training.loop import Training
from robustcompress.training.objectives import Objective
from robustcompress.training.settings import StageSettings, ValidationSettings

CPU = torch.device("cpu")
THREAT = Threat(norm="linf", eps=0.1)
IMAGES, BATCH, EPOCHS = 17, 8, 3  # the last batch of each epoch has one image: fewer than processes

TECHNIQUES: dict[str, Any] = {
    "objective": "{kind: free, replays: 2}",
    "awp": {"gamma": 0.01},
    "averaging": {"decay": 0.8},
    "epochs": 4,
}


class Net(nn.Module):
    """Computes in float64, so that no sign of an attack hangs on the order of a sum."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 16, 3),
        ).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images.double())
        return logits


def images(count: int = IMAGES) -> ImageSet:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(0, 3, (count,), generator=generator), ("a", "b", "c"), "noise")


def source() -> MemorySource:
    augmentation = Augmentation(flip=True, shift=1)
    return MemorySource(images(), batch_size=BATCH, seed=0, augmentation=augmentation)


def network(*, norm: bool) -> Net:
    torch.manual_seed(0)
    return Net(norm=norm)


def train(
    workers: Workers,
    *,
    norm: bool,
    prune: bool,
    checkpoint: Path | None = None,
    stop_at: int | None = None,
    die_at: int | None = None,
    objective: str = "{kind: trades, steps: 2}",
    **settings: object,
) -> dict[str, Tensor]:
    """Train a little and return everything that was learnt, and the history."""
    model = network(norm=norm)
    if not workers.is_main:  # the first process's weights are to be taken
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    masking = Masking(
        Pattern.find("unstructured").plan(model, torch.rand(2, 1, 8, 8), ()).sites,
        score=Score.find("learned"),
        budget=Budget.find("uniform"),
        sparsity=0.5,
        parameters=dict(model.named_parameters()),
    )
    if prune:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.1." in name)
    else:
        masking.freeze()
    done = 0

    def stop() -> bool:
        nonlocal done
        done += 1
        if done == die_at and not workers.is_main:
            os._exit(1)
        return done == stop_at and workers.rank == workers.size - 1

    trained = Training(
        stage="prune",
        model=model,
        overrides=masking,
        source=source(),
        validation=[(images(10).images[i : i + 3] / 255, images(10).labels[i : i + 3]) for i in (0, 3, 6)],
        objective=Objective.find(yaml.safe_load(objective)),
        threat=THREAT,
        validation_threat=THREAT,
        settings=StageSettings.model_validate(
            {"epochs": EPOCHS, "lr": 0.05, "batch_size": BATCH, **settings}
        ),
        judging=ValidationSettings(attack=Attack.find({"kind": "pgd", "steps": 2})),
        seed=0,
        device=CPU,
        precision="fp32",
        events=Events(),
        workers=workers,
        checkpoint=checkpoint if workers.is_main else None,
        checkpoint_seconds=1e9,
        stop=stop,
    ).run()
    found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    found |= {name: tensor.detach().clone() for name, tensor in masking.state().items()}
    losses = [[r.loss, r.validation_clean or 0.0, r.validation_robust or 0.0] for r in trained.history]
    found["history"] = torch.tensor(losses, dtype=torch.float64)
    return found


def main(folder: Path, scenario: str) -> None:
    torch.set_num_threads(1)
    workers = join_workers(CPU)

    def keep(name: str, found: dict[str, Tensor]) -> None:
        torch.save(found, folder / f"{name}-{workers.rank}.pt")

    if scenario == "die":
        train(workers, norm=False, prune=True, checkpoint=folder / "checkpoint", die_at=4)
        return
    for norm in (False, True):
        for prune in (False, True):
            keep(f"norm{norm:d}-prune{prune:d}", train(workers, norm=norm, prune=prune))
    for prune in (False, True):
        keep(f"techniques-prune{prune:d}", train(workers, norm=False, prune=prune, **TECHNIQUES))
    try:
        train(workers, norm=True, prune=True, checkpoint=folder / "checkpoint", stop_at=5)
    except InterruptedRunError:
        keep("resumed", train(workers, norm=True, prune=True, checkpoint=folder / "checkpoint"))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except RobustCompressError as error:
        sys.exit(f"{type(error).__name__}: {error}")
