"""Peak memory of a training step of ResNet-50 on 224x224 images, and what the settings for memory save.

    python benchmarks/memory.py [--quick] [--json]

Counts every tensor alive during one prune step (masks, scores, optimizer state and images included) for
batches of 8 and 16, and extends the straight line between them: where activations rule, a peak is a constant
plus so much an image, and does not depend on the number of inner steps. (With smaller batches the selection
of masks can be the peak.) Scratch space of cuDNN and the allocator's reserve come on top, so the batch for a
12 GiB GPU is given for 10 GiB of tensors.
"""

import argparse
import json
import sys
from typing import Any

import torch
from common import commit
from torch import Tensor, nn

from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Score
from robustcompress.robustness.threat import Threat
from robustcompress.training.memory import PeakMemory
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.settings import StepSettings
from robustcompress.training.step import Stepper

GIB = 2**30
ROOM = 10 * GIB

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "recompute: learner": {"recompute": "learner"},
    "recompute: everywhere": {"recompute": "everywhere"},
    "micro_batches: 2": {"micro_batches": 2},
    "micro_batches: 4, recompute: everywhere": {"micro_batches": 4, "recompute": "everywhere"},
}


class Bottleneck(nn.Module):
    """He et al. 2016, https://arxiv.org/abs/1512.03385, figure 5 right; the stride is in the 3x3 layer."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.layers(images) + self.shortcut(images))


def resnet50() -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(count):
            stride = 2 if index == 0 and width > 64 else 1
            blocks.append(Bottleneck(inputs, width, stride))
            inputs = 4 * width
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(*blocks),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)),
    )


def peak(objective: str, settings: dict[str, Any], batch: int) -> int:
    """Return the bytes alive at once in the second step; the first one makes the optimizer's state."""
    torch.manual_seed(0)
    network, images = resnet50(), torch.rand(batch, 3, 224, 224)
    labels = torch.randint(1000, (batch,))
    masking = Masking(
        Pattern.find("unstructured").plan(network, images[:1], ()).sites,
        score=Score.find("learned"),
        budget=Budget.find("uniform"),
        sparsity=0.9,
        parameters=dict(network.named_parameters()),
    )
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    learnt = [*masking.learnable(), *(p for p in network.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(learnt, lr=0.1, momentum=0.9)
    stepper = Stepper(
        network.train(),
        masking,
        objective=Objective.find({"kind": objective, "steps": 1}),
        threat=Threat(norm="linf", eps=4 / 255),
        optimizer=optimizer,
        device=torch.device("cpu"),
        precision="fp32",
        clip_gradient=None,
        seed=0,
        settings=StepSettings(**settings),
    )
    stepper.step(images[:2], labels[:2], Moment(0, 1, 0, 2))
    optimizer.zero_grad(set_to_none=True)
    networks = stepper.networks
    held = [
        *(*network.parameters(), *network.buffers(), *masking.parameters(), *masking.masks, images, labels),
        *(*networks.learner.parameters(), *networks.attacked.parameters()),
        *(
            tensor
            for state in optimizer.state.values()
            for tensor in state.values()
            if torch.is_tensor(tensor)
        ),
    ]
    with PeakMemory(held) as memory:
        stepper.step(images, labels, Moment(0, 1, 1, 2))
    return memory.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two settings, under a minute")
    parser.add_argument("--json", action="store_true", help="only the last line on stdout")
    args = parser.parse_args()
    names = ["default", "recompute: everywhere"] if args.quick else list(SETTINGS)
    lines = [
        "| objective | settings | constant, GiB | MiB an image | largest batch in 10 GiB |",
        "|---|---|---|---|---|",
    ]
    figures: list[dict[str, Any]] = []
    for objective in ("pgd",) if args.quick else ("pgd", "trades"):
        for name in names:
            few, many = (2, 4) if args.quick else (8, 16)
            small, large = (peak(objective, SETTINGS[name], batch) for batch in (few, many))
            image = (large - small) // (many - few)
            constant = small - few * image
            batch = int((ROOM - constant) // image)
            lines.append(f"| {objective} | {name} | {constant / GIB:.2f} | {image / 2**20:.0f} | {batch} |")
            figures.append(
                {
                    "name": f"ResNet-50 at 224, {objective}, {name}: batch in 10 GiB",
                    "value": batch,
                    "target": 32 if objective == "pgd" and name == "default" and not args.quick else None,
                    "higher_is_better": True,
                }
            )
    if not args.json:
        print("\n".join(lines))
    print(json.dumps({"figures": figures, "device": "cpu", "commit": commit()}))


if __name__ == "__main__":
    sys.exit(main())
