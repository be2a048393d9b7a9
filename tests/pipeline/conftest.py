from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcompress import Compressor, ImageSet, Recipe


class Residual(nn.Module):
    """A user's own network: a stem, one residual block, a classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width, width, 1, stride=2, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.stem(images)))
        inner = torch.relu(self.first_norm(self.first(hidden)))
        outer = self.second_norm(self.second(inner)) + self.shortcut_norm(self.shortcut(hidden))
        pooled: Tensor = self.classifier(torch.relu(outer).mean((2, 3)))
        return pooled


def bars(count: int, seed: int) -> ImageSet:
    """Three classes that differ in which third of the image is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(60, (count, 1, 9, 9), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, :, 3 * label : 3 * label + 3] += 160
    return ImageSet(images, labels, ("left", "middle", "right"), "bars")


def recipe(**changes: Any) -> Recipe:
    """Settings that finish in seconds."""
    stage = {"epochs": 2, "lr": 0.1, "batch_size": 16}
    values: dict[str, Any] = {
        "name": "bars",
        "threat": {"eps": 0.05},
        "objective": {"kind": "trades", "steps": 2},
        "sparsity": 0.5,
        "pretrain": stage,
        "prune": stage,
        "finetune": stage,
        "validation": {"attack": {"kind": "pgd", "steps": 2}},
        "evaluation": {
            "attacks": [{"kind": "pgd", "steps": 3}, {"kind": "apgd", "steps": 3}],
            "curve": [0.5, 1.0],
            "examples": 2,
        },
    }
    values.update(changes)
    return Recipe.from_values(values)


def compressor(run_dir: Path, **changes: Any) -> Compressor:
    """A compressor of a user's own network on in-memory images; keyword arguments go to the constructor."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "model": Residual(),
        "train": bars(60, 0),
        "test": bars(30, 1),
        "recipe": recipe(),
        "progress": False,
    }
    settings.update(changes)
    return Compressor(settings.pop("model"), run_dir=run_dir, **settings)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through every stage."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    compressor(folder).compress()
    return folder
