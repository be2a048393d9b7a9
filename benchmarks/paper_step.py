"""One step of HYDRA's published procedure under TRADES, written plainly: the baseline of ``step.py``.

It does what the published code does, operation by operation (counted in ``tests/test_benchmarks_step.py``):

- every forward pass of every convolution and linear layer sorts the magnitudes of its scores anew;
- the clean batch goes through the network before the attack, in every inner step, and twice for the loss;
- the four passes of the last kind are in train mode, those of the attack in eval mode, all with a graph;
- the attack asks for the gradient by the images alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Selected(torch.autograd.Function):
    """Ones at the largest magnitudes, zeros at the ``removed`` smallest; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, magnitudes: Tensor, removed: int) -> Tensor:
        order = magnitudes.flatten().sort().indices
        mask = torch.empty_like(magnitudes)
        flat = mask.view(-1)
        flat[order[:removed]] = 0
        flat[order[removed:]] = 1
        return mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class PaperStep:
    """A network whose layers mask themselves in every forward pass, and its optimizer.

    Args:
        network: Taken over and changed; parameters that require gradients learn.
        scores: By layer name; they learn if they require gradients.
        removed: How many weights each of those layers loses.
        eps, steps, step_size, beta: Of TRADES, under Linf.
        lr: Of SGD with momentum 0.9.
    """

    def __init__(
        self,
        network: nn.Module,
        scores: dict[str, nn.Parameter],
        removed: dict[str, int],
        *,
        eps: float,
        steps: int,
        step_size: float,
        beta: float,
        lr: float,
    ) -> None:
        self.network = network
        self.scores = scores
        self._eps, self._steps, self._step_size, self._beta = eps, steps, step_size, beta
        for name, score in scores.items():
            _mask_in_forward(network.get_submodule(name), score, removed[name])
        learnt = [p for p in self._parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learnt, lr=lr, momentum=0.9)

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self.scores.values()
        yield from self.network.parameters()

    def step(self, images: Tensor, labels: Tensor, noise: Tensor) -> float:
        """Update once; ``noise`` is standard normal, shaped like the images."""
        network = self.network
        network.train()
        network(images)  # whose logits give the training accuracy
        network.eval()
        points = images + 1e-3 * noise
        for _ in range(self._steps):
            points.requires_grad_()
            divergence = F.kl_div(
                F.log_softmax(network(points), dim=1), F.softmax(network(images), dim=1), reduction="sum"
            )
            (gradient,) = torch.autograd.grad(divergence, [points])
            points = points.detach() + self._step_size * gradient.sign()
            points = torch.min(torch.max(points, images - self._eps), images + self._eps)
            points = points.clamp(0, 1)
        network.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        adversarial = F.log_softmax(network(points), dim=1)
        divergence = F.kl_div(adversarial, F.softmax(network(images), dim=1), reduction="sum")
        loss = loss + self._beta / len(images) * divergence
        value = loss.item()
        loss.backward()
        self.optimizer.step()
        return value


def _mask_in_forward(layer: nn.Module, score: nn.Parameter, removed: int) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)

    def forward(images: Tensor) -> Tensor:
        mask: Tensor = _Selected.apply(score.abs(), removed)  # type: ignore[no-untyped-call]
        weight = layer.weight * mask
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(
                images, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        return F.linear(images, weight, layer.bias)

    layer.forward = forward  # type: ignore[method-assign, assignment]
