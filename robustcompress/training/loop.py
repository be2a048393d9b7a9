"""The one training loop: pretrain, prune and finetune differ in what learns."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import InterruptedRunError, TrainingError
from robustcompress.events import EpochDone, Events, StageStarted, StepDone
from robustcompress.robustness.evaluation import robust_accuracy
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import borrowed_generators, derive_seed
from robustcompress.storage.state import (
    flatten_optimizer,
    has_state,
    load_state,
    restore_optimizer,
    save_state,
)
from robustcompress.training.batches import Batch, Source
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.schedule import learning_rate
from robustcompress.training.settings import StageSettings, ValidationSettings
from robustcompress.training.step import Overrides, Precision, Stepper, autocast, shared_copy


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch brought; accuracies are fractions of the validation images, ``None`` if not judged."""

    epoch: int
    loss: float
    lr: float
    validation_clean: float | None
    validation_robust: float | None
    best: bool


@dataclass(frozen=True)
class Trained:
    """How a stage went. The model holds the selected epoch's weights."""

    history: tuple[EpochRecord, ...]
    selected: EpochRecord | None
    seconds: float


@dataclass
class _Position:
    """Where the loop stands; everything a resumed run needs besides tensors."""

    step: int = 0
    history: list[EpochRecord] = field(default_factory=list[EpochRecord])
    losses: list[float] = field(default_factory=list[float])
    best: tuple[float, float] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Training:
    """One training stage.

    Attributes:
        stage: Its name, for events and seeds.
        model: On ``device``; parameters that require gradients learn.
        overrides: Masks or other learned state beside the model, or ``None``.
        source: Training images.
        validation: Batches that select the epoch; iterated once an epoch.
        objective: What to minimise.
        threat: What the adversary may do in training.
        validation_threat: What it may do when an epoch is judged.
        settings: Epochs, optimizer, schedule.
        judging: How epochs are judged.
        seed: Of the run.
        device: Where to train.
        precision: Of the forward passes.
        events: Where progress goes.
        checkpoint: Folder for the state to resume from, or ``None``.
        checkpoint_seconds: Save at least that often; also at each epoch's end.
        stop: Asked after each step; ``True`` saves the state and ends the run.
    """

    stage: str
    model: nn.Module
    overrides: Overrides | None
    source: Source
    validation: Iterable[Batch]
    objective: Objective
    threat: Threat
    validation_threat: Threat
    settings: StageSettings
    judging: ValidationSettings
    seed: int
    device: torch.device
    precision: Precision
    events: Events
    checkpoint: Path | None = None
    checkpoint_seconds: float = 300.0
    stop: Callable[[], bool] = lambda: False

    def run(self) -> Trained:
        """Train, and leave the selected epoch's weights in the model.

        Raises:
            TrainingError: If the loss or the weights are no longer finite; the last checkpoint stays.
            InterruptedRunError: If ``stop`` said so; the state is saved first.
        """
        with borrowed_generators(), float32_math(self.precision):
            return _Loop(self).run()


class float32_math:  # noqa: N801  # used as a context manager, like torch's own
    """Allow or forbid TF32 in float32 matrix products and convolutions on CUDA, and restore after."""

    def __init__(self, precision: Precision) -> None:
        self._allow = precision == "tf32"

    def __enter__(self) -> None:
        self._before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._allow

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


class _Loop:
    def __init__(self, training: Training) -> None:
        self.t = training
        self.steps_per_epoch = training.source.steps()
        own = [p for p in training.model.parameters() if p.requires_grad]
        beside = list(training.overrides.learnable()) if training.overrides else []
        self.optimizer = make_optimizer([group for group in (beside, own) if group], training.settings)
        # Each group's learning rate over the schedule's.
        network = (training.settings.network_lr or training.settings.lr) / training.settings.lr
        self.rates = [rate for group, rate in ((beside, 1.0), (own, network if beside else 1.0)) if group]
        self.position = _Position()
        self.snapshot: dict[str, Tensor] = {}
        self.judged = shared_copy(training.model)
        self.stepper = Stepper(
            training.model,
            training.overrides,
            objective=training.objective,
            threat=training.threat,
            optimizer=self.optimizer,
            device=training.device,
            precision=training.precision,
            clip_gradient=training.settings.clip_gradient,
            seed=derive_seed(training.seed, training.stage),
        )

    def run(self) -> Trained:
        t = self.t
        epochs = t.settings.epochs
        started = time.monotonic()
        resumed = self._resume()
        t.events(StageStarted(t.stage, epochs, epochs * self.steps_per_epoch, resumed_at=resumed))
        t.model.train()
        earlier = self.position.seconds
        self.saved_at = time.monotonic()
        while len(self.position.history) < epochs:
            epoch_started = time.monotonic()
            epoch = len(self.position.history)
            self._epoch(epoch)
            record = self._judge(epoch)
            self.position.history.append(record)
            self.position.losses = []
            self.position.seconds = earlier + time.monotonic() - started
            shown = {"loss": record.loss, "lr": record.lr}
            if record.validation_clean is not None and record.validation_robust is not None:
                shown["validation_clean"] = record.validation_clean
                shown["validation_robust"] = record.validation_robust
            t.events(
                EpochDone(t.stage, epoch + 1, epochs, shown, record.best, time.monotonic() - epoch_started)
            )
            self._save()
        t.model.eval()
        self._load_tensors(self.snapshot)
        selected = next((record for record in reversed(self.position.history) if record.best), None)
        return Trained(tuple(self.position.history), selected, earlier + time.monotonic() - started)

    def _epoch(self, epoch: int) -> None:
        t, position = self.t, self.position
        skip = position.step - epoch * self.steps_per_epoch
        for images, labels in t.source.epoch(epoch, skip=skip):
            moment = Moment(epoch, t.settings.epochs, position.step, t.settings.epochs * self.steps_per_epoch)
            lr = learning_rate(t.settings, position.step, self.steps_per_epoch)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = lr * rate
            loss = self.stepper.step(images.to(t.device), labels.to(t.device), moment)
            position.step += 1
            position.losses.append(loss)
            t.events(StepDone(t.stage, epoch + 1, position.step, loss, lr))
            if t.stop():
                if t.source.exact:
                    self._save()
                saved = f"; its state is in {t.checkpoint}" if t.checkpoint else ""
                raise InterruptedRunError(
                    f"stopped in {t.stage}, epoch {epoch + 1}, step {position.step}{saved}."
                )
            if t.source.exact and time.monotonic() - self.saved_at > t.checkpoint_seconds:
                self._save()
        expected = (epoch + 1) * self.steps_per_epoch
        if position.step != expected:
            # A loader whose length is a guess: go on with the count that the schedule was made for.
            position.step = expected

    def _judge(self, epoch: int) -> EpochRecord:
        t = self.t
        losses = self.position.losses
        loss = sum(losses) / max(1, len(losses))
        lr = float(self.optimizer.param_groups[0]["lr"])
        last = epoch + 1 == t.settings.epochs
        if not last and (t.settings.select == "last" or (epoch + 1) % t.judging.every):
            return EpochRecord(epoch + 1, loss, lr, None, None, best=False)
        parameters = dict(t.model.named_parameters())
        with torch.no_grad():
            effective = {**parameters, **(t.overrides.tensors(parameters) if t.overrides else {})}
        constant = {name: tensor.detach() for name, tensor in effective.items()}

        def logits_of(images: Tensor) -> Tensor:
            with autocast(t.precision, t.device):
                return cast(Tensor, functional_call(self.judged, constant, (images,))).float()

        clean, robust = robust_accuracy(
            logits_of,
            t.validation,
            threat=t.validation_threat,
            attack=t.judging.attack,
            seed=derive_seed(t.seed, "validation"),
            device=t.device,
            limit=t.judging.limit,
        )
        key = (clean, robust) if t.settings.select == "clean" else (robust, clean)
        best = t.settings.select == "last" or self.position.best is None or key > self.position.best
        if best:
            self.position.best = key
            self.snapshot = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        return EpochRecord(epoch + 1, loss, lr, clean, robust, best=best)

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; tensors are the live ones."""
        found = {f"model.{name}": tensor for name, tensor in self.t.model.state_dict().items()}
        if self.t.overrides:
            found |= {f"overrides.{name}": tensor for name, tensor in self.t.overrides.state().items()}
        return found

    def _load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        self.t.model.load_state_dict(_with_prefix(tensors, "model."))
        if self.t.overrides:
            self.t.overrides.restore(_with_prefix(tensors, "overrides."))

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.t.checkpoint is None:
            return
        tensors = self._tensors()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise TrainingError(
                    f"{name} is no longer finite after step {self.position.step} of {self.t.stage}. Lower "
                    "the learning rate or set clip_gradient; the last good state is kept in "
                    f"{self.t.checkpoint}."
                )
        tensors |= {f"best.{name}": tensor for name, tensor in self.snapshot.items()}
        optimizer_tensors, optimizer_values = flatten_optimizer(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors.items()}
        values = {"position": asdict(self.position), "optimizer": optimizer_values}
        save_state(self.t.checkpoint, tensors, values)

    def _resume(self) -> int:
        """Take up the saved state, if there is one; return the step that it stands at."""
        if self.t.checkpoint is None or not has_state(self.t.checkpoint):
            return 0
        tensors, values = load_state(self.t.checkpoint)
        tensors = {name: tensor.to(self.t.device) for name, tensor in tensors.items()}
        self._load_tensors({k: v for k, v in tensors.items() if k.startswith(("model.", "overrides."))})
        self.snapshot = _with_prefix(tensors, "best.")
        restore_optimizer(self.optimizer, _with_prefix(tensors, "optimizer."), cast(Any, values["optimizer"]))
        saved = cast(dict[str, Any], values["position"])
        history = [EpochRecord(**record) for record in saved.pop("history")]
        best = saved.pop("best")
        self.position = _Position(**saved, history=history, best=tuple(best) if best else None)
        done = len(history) * self.steps_per_epoch
        if self.position.step > done and not self.t.source.exact:
            self.position.step, self.position.losses = done, []
        if not self.t.source.exact:
            self.t.events.warning(
                f"{self.t.stage} goes on from the start of epoch {len(history) + 1}: this data cannot be "
                "taken up in its middle, so the result is not that of an unbroken run bit for bit."
            )
        return self.position.step


def make_optimizer(groups: list[list[nn.Parameter]], settings: StageSettings) -> torch.optim.Optimizer:
    """Return the optimizer that ``settings`` ask for, with a parameter group for each of ``groups``.

    Raises:
        TrainingError: If nothing learns.
    """
    parameters = [{"params": group} for group in groups]
    if not parameters:
        raise TrainingError("nothing learns in this stage: no parameter and no score requires a gradient.")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
