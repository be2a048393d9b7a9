"""One optimizer step: masked weights made once, shared by the attack and the loss."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from robustcompress.data import check_batch, check_classes
from robustcompress.errors import TrainingError
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import derive_seed, generator_for, seed_globals
from robustcompress.training.carried import Carried
from robustcompress.training.compiling import Compiled
from robustcompress.training.distillation import Teacher
from robustcompress.training.distributed import SOLO, Workers
from robustcompress.training.findings import Findings
from robustcompress.training.objectives import Forward, Moment, Objective, StepView
from robustcompress.training.quantisation import round_inputs
from robustcompress.training.settings import StepSettings
from robustcompress.training.weight_perturbation import WeightAdversary, WeightPerturbation
from robustcompress.training.working import WorkingNetworks

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

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Run before each step of ``optimizer``, when gradients are complete."""
        ...

    def after_step(self) -> None:
        """Run after each optimizer step."""
        ...

    def after_epoch(self, validation_robust: float | None) -> None:
        """Run at the end of each epoch, with its accuracy on validation images if that was judged."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that a resumed run needs, by name."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` returned."""
        ...


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the forward passes run."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Stepper:
    """Turns a batch into one update of whatever learns.

    Masked weights are made once a step and shared by the attack and the loss; no weight gradient is
    computed in the attack; the loss's gradient goes to the effective weights first and from there through
    the masks once, however many forward passes there were.

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
        settings: How the step is computed.
        workers: The processes that share each batch.
        warn: Called with a sentence where a setting cannot be followed.
        teacher: Whom the objective learns from, if anybody.
        awp: How far weights are perturbed before the loss is taken; ``None`` leaves them.
        rounds_inputs: Whether attack and loss see inputs of layers in bytes.
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
        settings: StepSettings = StepSettings(),  # noqa: B008  # frozen
        workers: Workers = SOLO,
        warn: Callable[[str], None] = warnings.warn,
        teacher: Teacher | None = None,
        awp: WeightPerturbation | None = None,
        rounds_inputs: bool = False,
    ) -> None:
        self._model = model
        self._overrides = overrides
        self._objective = objective
        self._threat = threat
        self._optimizer = optimizer
        self._device = device
        self._precision: Precision = precision
        self._attack_precision: Precision = "bf16" if settings.attack_precision == "bf16" else precision
        self._clip = clip_gradient
        self._seed = seed
        self._settings = settings
        self._workers = workers
        self._carried = Carried() if objective.carries else None
        self._networks = WorkingNetworks(model, self._effective(), settings, apart=awp is not None)
        if rounds_inputs:
            round_inputs(self._networks.learner)
            round_inputs(self._networks.attacked)
        self._adversary = WeightAdversary(awp, self._networks.learner, workers) if awp else None
        self._learner: Forward = self._networks.learner
        self._attacked: Forward = self._networks.attacked
        layout = torch.channels_last if settings.memory_format == "channels_last" else torch.contiguous_format
        self._teacher = teacher.constant_copy(device, layout) if teacher else None
        if settings.compile:
            self._learner = Compiled(self._networks.learner, warn=warn)
            self._attacked = Compiled(self._networks.attacked, warn=warn, cuda_graphs=True)
        if settings.fold_norms and self._networks.unfolded_reason:
            warn(f"fold_norms does nothing: {self._networks.unfolded_reason}")

    @property
    def networks(self) -> WorkingNetworks:
        """The copies of the network that steps run."""
        return self._networks

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs besides the network, what learns beside it and the optimizer."""
        return {} if self._carried is None else self._carried.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        if self._carried is not None:
            self._carried.restore(state)

    def step(self, images: Tensor, labels: Tensor, moment: Moment, *, batch: int | None = None) -> float:
        """Update once and return the loss before the update.

        Args:
            images: Those of the whole batch, or this process's rows of it.
            labels: Their classes.
            moment: Position within the stage.
            batch: Images of the whole batch, over all processes; ``None`` if they are all here.

        Raises:
            DataError: If images or labels are not what they must be.
            TrainingError: If the loss is not finite, or memory does not suffice; nothing is updated then.
        """
        whole = len(images) if batch is None else batch
        if len(images):
            check_batch(images, labels, where=f"training step {moment.step + 1}")
        self._optimizer.zero_grad(set_to_none=True)
        before = self._statistics()
        effective = self._effective()
        self._networks.refresh(effective)
        try:
            value = self._backward(images, labels, moment, whole)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(error) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # the CPU's allocator has no exception of its own
                raise _out_of_memory(error) from error
            raise
        value = value + self._through_masks(effective)
        self._reduce(value, before, share=len(images) / whole)
        loss = float(value)
        if not math.isfinite(loss):
            self._optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"the loss is {loss} at step {moment.step + 1} (epoch {moment.epoch + 1}). Lower the "
                "learning rate, set clip_gradient, or use precision fp32."
            )
        if self._overrides:
            self._overrides.before_step(self._optimizer)
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._learnt(), self._clip)
        self._optimizer.step()
        if self._overrides:
            self._overrides.after_step()
        return loss

    def _backward(self, images: Tensor, labels: Tensor, moment: Moment, whole: int) -> Tensor:
        """Run the objective on each part, leave gradients behind and return this process's loss."""
        value = torch.zeros((), device=self._device, dtype=torch.float64)
        if self._carried is not None:
            self._carried.fit(images, whole)
        perturbing: AbstractContextManager[object] = nullcontext()
        findings: list[Findings] | None = None
        if self._adversary is not None and self._adversary.settings.is_due(moment):
            kept = findings = [Findings() for _ in range(self._parts(images))]
            perturbing = self._adversary.perturbed(
                lambda: self._losses(images, labels, moment, whole, findings=kept)
            )
        with perturbing:
            for loss in self._losses(images, labels, moment, whole, findings=findings):
                loss.backward()
                value += loss.detach()
        if self._carried is not None:
            self._carried.share(self._workers, whole)
        return value

    def _parts(self, images: Tensor) -> int:
        return min(self._settings.micro_batches, len(images))

    def _losses(
        self, images: Tensor, labels: Tensor, moment: Moment, whole: int, *, findings: list[Findings] | None
    ) -> Iterator[Tensor]:
        """Yield the loss of each part, weighted by its share of the batch's images.

        Args:
            images: This process's rows of the batch.
            labels: Their classes.
            moment: Position within the stage.
            whole: Images of the whole batch.
            findings: One for each part, if the losses are computed more than once.
        """
        # The same dropout whenever the losses of a step are computed.
        seed_globals(derive_seed(self._seed, "dropout", moment.step, *self._own_place()))
        first = self._workers.rows(whole).start
        # Asked for once a step: on a GPU every question waits for all that is queued.
        highest = int(labels.max()) if len(labels) else 0
        parts = self._parts(images)
        for part in range(parts):
            start, stop = (len(images) * edge // parts for edge in (part, part + 1))
            rows = slice(first + start, first + stop)
            kept = None
            if findings is not None:
                kept = findings[part]
                kept.rewind()
            view = self._view(highest, moment, rows, whole, kept)
            loss = self._objective.loss(view, images[start:stop], labels[start:stop])
            yield loss if stop - start == whole else loss * ((stop - start) / whole)

    def _view(
        self, highest: int, moment: Moment, rows: slice, whole: int, findings: Findings | None
    ) -> StepView:
        where = f"training step {moment.step + 1}"

        def learning(inputs: Tensor) -> Tensor:
            with autocast(self._precision, self._device):
                logits = self._learner(self._networks.arranged(inputs))
            return _exact(check_classes(logits, len(inputs), highest, where=where))

        def frozen(inputs: Tensor) -> Tensor:
            with autocast(self._attack_precision, self._device):
                logits = self._attacked(self._networks.arranged(inputs))
            return _exact(check_classes(logits, len(inputs), highest, where=where))

        def taught(inputs: Tensor) -> Tensor:
            assert self._teacher is not None
            with torch.no_grad(), autocast(self._precision, self._device):
                logits = self._teacher(self._networks.arranged(inputs))
            return _exact(check_classes(logits, len(inputs), highest, where=f"{where}, teacher"))

        return StepView(
            learning=learning,
            frozen=frozen,
            model=self._model,
            tensors={**dict(self._model.named_parameters()), **self._networks.leaves},
            threat=self._threat,
            generator=generator_for(self._device, self._seed, "step", moment.step),
            moment=moment,
            rows=None if rows.stop - rows.start == whole else rows,
            batch=whole,
            bn_updates=self._settings.bn_updates,
            teacher=taught if self._teacher is not None else None,
            carried=None if self._carried is None else self._carried.rows(rows),
            findings=findings,
        )

    def _effective(self) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters())
        replaced = self._overrides.tensors(parameters) if self._overrides else {}
        if self._settings.memory_format == "channels_last":
            return {**{name: tensor for name, tensor in parameters.items() if tensor.ndim == 4}, **replaced}
        return replaced

    def _through_masks(self, effective: dict[str, Tensor]) -> Tensor:
        """Send the gradient at the effective weights on to weights and scores; add the penalty.

        Returns:
            This process's share of the penalty.
        """
        roots: list[Tensor] = []
        gradients: list[Tensor | None] = []
        for name, leaf in self._networks.leaves.items():
            if leaf.grad is not None:
                roots.append(effective[name])
                gradients.append(leaf.grad)
                leaf.grad = None
        penalty = self._overrides.penalty() if self._overrides else None
        if penalty is not None:
            # Every process has the whole penalty: each adds its share.
            penalty = penalty / self._workers.size
            roots.append(penalty)
            gradients.append(None)
        if roots:
            torch.autograd.backward(roots, gradients)
        return (
            torch.zeros((), device=self._device, dtype=torch.float64) if penalty is None else penalty.detach()
        )

    @torch.no_grad()
    def _reduce(self, value: Tensor, before: Mapping[str, Tensor], *, share: float) -> None:
        """Bring gradients, loss and batch statistics of all processes together, in place.

        Args:
            value: This process's part of the loss.
            before: Batch statistics before the step, by name.
            share: This process's part of the batch's images.
        """
        if self._workers.size == 1:
            return
        learnt = self._learnt()
        # A process without images has no gradients, but must not turn others' into none.
        present = torch.tensor([float(p.grad is not None) for p in learnt], device=self._device)
        for parameter in learnt:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        buffers = list(self._model.buffers())
        counts = [b for b in buffers if not b.is_floating_point() and b.dtype != torch.bool]
        # Moves are averaged, not values: what does not move keeps its bits, infinities included.
        named = dict(self._model.named_buffers())
        moves = [
            torch.where(named[name] == old, 0, named[name] - old) * share for name, old in before.items()
        ]
        last = self._workers.rank == self._workers.size - 1  # it has rows of every batch
        for buffer in counts:
            buffer.mul_(int(last))
        gradients = [cast(Tensor, parameter.grad) for parameter in learnt]
        self._workers.sum_([*gradients, *moves, *counts, value, present])
        for (name, old), move in zip(before.items(), moves, strict=True):
            named[name].copy_(old + move)
        for parameter, anywhere in zip(learnt, present.tolist(), strict=True):
            if not anywhere:
                parameter.grad = None

    def _statistics(self) -> dict[str, Tensor]:
        """Return copies of the buffers that processes average after a step; none in a process alone."""
        if self._workers.size == 1:
            return {}
        named = self._model.named_buffers()
        return {name: buffer.clone() for name, buffer in named if buffer.is_floating_point()}

    def _learnt(self) -> list[nn.Parameter]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _own_place(self) -> tuple[str | int, ...]:
        """Return what tells this process's random layers from those of others."""
        return () if self._workers.size == 1 else ("rank", self._workers.rank)


def _exact(logits: Tensor) -> Tensor:
    """Return ``logits`` in float32 at least: losses are too fine for bfloat16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _out_of_memory(error: BaseException) -> TrainingError:
    return TrainingError(
        "memory does not suffice for a training step. Set step.micro_batches to 2 or more (same gradients, "
        "less memory; batch normalisation then sees each part by itself), step.recompute to learner or "
        "everywhere, precision to bf16 (on a GPU), or lower batch_size."
        f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    )
