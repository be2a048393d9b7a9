"""One optimizer step: masked weights made once, shared by the attack and the loss."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.data import check_batch, check_logits
from robustcompress.errors import TrainingError
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import derive_seed, generator_for, seed_globals
from robustcompress.training.objectives import Moment, Objective, StepView

Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]


class Overrides(Protocol):
    """Learned state beside the network that replaces some of its parameters, such as masks."""

    def tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the effective values of the parameters that are replaced, by name."""
        ...

    def learnable(self) -> Iterator[nn.Parameter]:
        """Yield what the optimizer trains besides the network's own parameters."""
        ...

    def penalty(self) -> Tensor | None:
        """Return a term to add to the loss, if any."""
        ...

    def after_step(self) -> None:
        """Run after each optimizer step."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that a resumed run needs, by name."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` returned."""
        ...


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares every parameter and buffer, in eval mode.

    Attacks run on it: its mode never has to be switched, and statistics that ``model`` updates in place
    are seen here too.
    """
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo=shared).eval()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the forward passes run."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Stepper:
    """Turns a batch into one update of whatever learns.

    Args:
        model: In train mode; only parameters with ``requires_grad`` learn.
        overrides: Masks or other learned state; ``None`` trains the plain network.
        objective: What to minimise.
        threat: What the adversary may do.
        optimizer: Over everything that learns.
        device: Where the model is.
        precision: ``fp32``, ``tf32`` or ``bf16`` (autocast in every forward pass).
        clip_gradient: Largest length of the gradient, or ``None``.
        seed: Of the stage; each step's random numbers derive from it and from the step's number.
    """

    def __init__(
        self,
        model: nn.Module,
        overrides: Overrides | None,
        *,
        objective: Objective,
        threat: Threat,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: Precision,
        clip_gradient: float | None,
        seed: int,
    ) -> None:
        self._model = model
        self._frozen_model = shared_copy(model)
        self._overrides = overrides
        self._objective = objective
        self._threat = threat
        self._optimizer = optimizer
        self._device = device
        self._precision: Precision = precision
        self._clip = clip_gradient
        self._seed = seed

    def step(self, images: Tensor, labels: Tensor, moment: Moment) -> float:
        """Update once and return the loss before the update.

        Raises:
            DataError: If images or labels are not what they must be.
            TrainingError: If the loss is not finite; nothing is updated then.
        """
        where = f"training step {moment.step + 1}"
        check_batch(images, labels, where=where)
        seed_globals(derive_seed(self._seed, "dropout", moment.step))
        parameters = dict(self._model.named_parameters())
        replaced = self._overrides.tensors(parameters) if self._overrides else {}
        constant = {name: tensor.detach() for name, tensor in {**parameters, **replaced}.items()}

        def learning(inputs: Tensor) -> Tensor:
            with autocast(self._precision, self._device):
                logits = functional_call(self._model, replaced, (inputs,))
            return check_logits(logits, labels, where=where).float()

        def frozen(inputs: Tensor) -> Tensor:
            with autocast(self._precision, self._device):
                logits = functional_call(self._frozen_model, constant, (inputs,))
            return check_logits(logits, labels, where=where).float()

        view = StepView(
            learning=learning,
            frozen=frozen,
            model=self._model,
            tensors={**parameters, **replaced},
            threat=self._threat,
            generator=generator_for(self._device, self._seed, "step", moment.step),
            moment=moment,
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._objective.loss(view, images, labels)
        penalty = self._overrides.penalty() if self._overrides else None
        if penalty is not None:
            loss = loss + penalty
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is {value} at step {moment.step + 1} (epoch {moment.epoch + 1}). Lower the "
                "learning rate, set clip_gradient, or use precision fp32."
            )
        loss.backward()
        if self._clip is not None:
            learnt = [p for group in self._optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(learnt, self._clip)
        self._optimizer.step()
        if self._overrides:
            self._overrides.after_step()
        return value
