"""Adversarial weight perturbation: the loss is taken where nearby weights are worst."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from robustcompress.training.distributed import Workers
from robustcompress.training.objectives import Moment


class WeightPerturbation(BaseModel):
    """How far weights are moved against the network before a step's loss is taken, with any objective.

    A step computes the gradient of its loss, moves the weight of every layer by ``gamma`` times the weight's
    own Euclidean length along that layer's gradient, takes the loss and its gradient there, at the same
    adversarial images, puts the weights back bit for bit, and only then lets the optimizer move them.

    What learns is what is perturbed, if it has two dimensions or more: biases and normalisation layers stay.
    Where masks are on, the masked weights are: a weight that is exactly zero, such as a removed one, is not
    moved, and its layer's lengths are those of the others. In the prune stage the effective weights are
    perturbed and the scores receive the gradient. Batch statistics move in the second pass alone.

    Attributes:
        gamma: Length of the perturbation, as a multiple of the weight's; 0 perturbs nothing.
        warmup: Fraction of the stage that goes by before weights are perturbed.

    Source:
        Wu et al. 2020, https://arxiv.org/abs/2004.05884, eq. 8 to 10 and Algorithm 1, with one step for the
        weights (K2 = 1), where the constraint is met with equality, as in the authors' code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    gamma: float = Field(default=0.005, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=0.0, ge=0, lt=1)

    def is_due(self, moment: Moment) -> bool:
        """Return whether a step perturbs weights."""
        return self.gamma > 0 and moment.step >= self.warmup * moment.steps


class WeightAdversary:
    """Moves the weights of one network against it, and back.

    Args:
        settings: How far.
        network: Whose parameters are moved, in place.
        workers: The processes that share each batch; their gradients are summed.
    """

    def __init__(self, settings: WeightPerturbation, network: nn.Module, workers: Workers) -> None:
        self.settings = settings
        self._network = network
        self._workers = workers

    @contextmanager
    def perturbed(self, losses: Callable[[], Iterator[Tensor]]) -> Generator[None]:
        """Perturb the weights within the context.

        Args:
            losses: Gives the parts of this process's loss; their sum over all processes is the loss.
        """
        weights = [
            weight for weight in self._network.parameters() if weight.requires_grad and weight.ndim > 1
        ]
        moves = self._moves(weights, losses)
        before = [weight.detach().clone() for weight in weights]
        try:
            with torch.no_grad():
                for weight, move in zip(weights, moves, strict=True):
                    weight.add_(move)
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)

    def _moves(self, weights: list[nn.Parameter], losses: Callable[[], Iterator[Tensor]]) -> list[Tensor]:
        gradients = [torch.zeros_like(weight) for weight in weights]
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        for loss in losses():
            if not weights or not loss.requires_grad:
                continue
            # What the loss does not depend on gets zeros.
            found = torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)
            for gradient, part in zip(gradients, found, strict=True):
                gradient += part
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            if self._workers.size > 1 and gradients:
                self._workers.sum_(gradients)
            return [
                _of_length(gradient * (weight != 0), self.settings.gamma * weight.norm())
                for gradient, weight in zip(gradients, weights, strict=True)
            ]


def _of_length(direction: Tensor, length: Tensor) -> Tensor:
    """Return ``direction`` scaled to a Euclidean length; zero stays zero, as does what is not finite."""
    # Squares of small numbers underflow: bring the largest entry to 1 before taking the length.
    scaled = direction / direction.abs().max().clamp_min(torch.finfo(direction.dtype).tiny)
    moved = scaled * (length / scaled.norm().clamp_min(1e-12))
    return torch.where(torch.isfinite(moved), moved, 0)
