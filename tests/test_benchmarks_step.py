"""The baseline of ``benchmarks/step.py`` does what the published procedure does, and computes what we do."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.paper_step import PaperStep

LAYERS = 4
WEIGHT = (4, 4, 3, 3)


class Operations(TorchDispatchMode):
    """Counts matrix products by what they compute, and sorts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._overloadpacket.__name__
        if name == "convolution_backward":
            images, weights, _ = args[-1]
            self.seen["backward by weights"] += int(weights)
            self.seen["backward by images"] += int(images)
        elif name == "native_batch_norm":
            self.seen["forward, train mode" if args[5] else "forward, eval mode"] += 1
        elif name == "mul" and isinstance(args[0], Tensor) and args[0].shape == WEIGHT:
            self.seen["products of a weight's shape"] += 1
        elif name in ("convolution", "sort"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prune", [True, False], ids=["prune", "finetune"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_baseline_counts_as_the_published_code_does(steps: int, prune: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(layer for _ in range(LAYERS) for layer in (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())),
        nn.Flatten(),
    )
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    scores = {n: nn.Parameter(torch.randn_like(network.get_parameter(f"{n}.weight"))) for n in names}
    for name in names:
        scores[name].requires_grad_(prune)
        network.get_submodule(name).requires_grad_(not prune)
    removed = {name: scores[name].numel() // 2 for name in names}
    baseline = PaperStep(network, scores, removed, eps=0.1, steps=steps, step_size=0.05, beta=6.0, lr=0.1)
    images, labels = torch.rand(3, 4, 10, 10), torch.tensor([0, 1, 2])
    with Operations() as operations:
        baseline.step(images, labels, torch.randn_like(images))
    # Forward passes in the published order: one for the training accuracy; an adversarial and a clean one in
    # each inner step; clean, adversarial and clean again for the loss.
    forward = 1 + 2 * steps + 3
    # Each forward pass multiplies weights by a mask, and each of the loss that is differentiated goes back
    # through that product; to scores it also goes back through their magnitude, a product with the sign.
    assert operations.seen == {
        "sort": LAYERS * forward,
        "convolution": LAYERS * forward,
        "backward by weights": LAYERS * 3,
        # The attack's, and all but the first layer's of the three passes that the loss differentiates.
        "backward by images": LAYERS * steps + (LAYERS - 1) * 3,
        "forward, train mode": LAYERS * 4,
        "forward, eval mode": LAYERS * 2 * steps,
        "products of a weight's shape": LAYERS * (forward + 3 * (2 if prune else 1)),
    }
