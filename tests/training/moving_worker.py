"""What each process of ``test_moving_distributed.py`` runs; its argument is a folder for what it finds."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from robustcompress.events import Events
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.moving import MovingMasks
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores.flying_bird import FlyingBird
from robustcompress.robustness.attacks import Attack
from robustcompress.training.distributed import Workers, join_workers
from robustcompress.training.gate_gradients import GateMeasurement
from robustcompress.training.loop import Training
from robustcompress.training.objectives import Objective
from robustcompress.training.settings import StageSettings, ValidationSettings
from tests.training import distributed_worker as plain


def move(workers: Workers) -> dict[str, Tensor]:
    """Train under masks that move; return weights and masks."""
    model = plain.network(norm=False)
    parameters = dict(model.named_parameters())
    sites = Pattern.find("unstructured").plan(model, torch.rand(2, 1, 8, 8), ()).sites
    score = FlyingBird(update_steps=2, start="magnitude")
    masking = Masking(sites, score=score, budget=Budget.find("erk"), sparsity=0.5, parameters=parameters)
    steps = plain.source().steps() * plain.EPOCHS
    moving = MovingMasks(masking, score, parameters=parameters, steps=steps, training_robust=lambda: 0.0)
    Training(
        stage="prune",
        model=model,
        overrides=moving,
        source=plain.source(),
        validation=[(plain.images(6).images / 255, plain.images(6).labels)],
        objective=Objective.find({"kind": "trades", "steps": 2}),
        threat=plain.THREAT,
        validation_threat=plain.THREAT,
        settings=StageSettings(epochs=plain.EPOCHS, lr=0.05, batch_size=plain.BATCH, select="last"),
        judging=ValidationSettings(attack=Attack.find({"kind": "pgd", "steps": 2})),
        seed=0,
        device=plain.CPU,
        precision="fp32",
        events=Events(),
        workers=workers,
    ).run()
    found = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return found | {name: tensor.detach().clone() for name, tensor in moving.state().items()}


def measure(workers: Workers) -> dict[str, Tensor]:
    """Return the gradients of gates."""
    model = plain.network(norm=False)
    sites = Pattern.find("unstructured").plan(model, torch.rand(2, 1, 8, 8), ()).sites
    found = GateMeasurement(
        source=plain.source(),
        objective=Objective.find({"kind": "trades", "steps": 2}),
        threat=plain.THREAT,
        seed=0,
        device=plain.CPU,
        precision="fp32",
        warn=Events().warning,
        workers=workers,
    ).run(model, sites, 4)
    means = {f"mean.{site.name}": gradients.mean for site, gradients in zip(sites, found, strict=True)}
    return means | {f"square.{s.name}": g.mean_square for s, g in zip(sites, found, strict=True)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    workers = join_workers(plain.CPU)
    torch.save(move(workers), folder / f"move-{workers.rank}.pt")
    torch.save(measure(workers), folder / f"measure-{workers.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
