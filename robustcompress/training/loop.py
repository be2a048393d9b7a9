"""The one training loop: pretrain, prune and finetune differ in what learns."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ConfigError, InterruptedRunError, TrainingError
from robustcompress.events import EpochDone, Events, StageStarted, StepDone
from robustcompress.robustness.bounds.counting import certified_counts
from robustcompress.robustness.evaluation import robust_counts
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import borrowed_generators, derive_seed, seed_globals
from robustcompress.storage.state import flatten_optimizer, restore_optimizer
from robustcompress.training.averaging import WeightAverage
from robustcompress.training.batches import Batch, Source
from robustcompress.training.checkpoints import Checkpoints
from robustcompress.training.distillation import Teacher
from robustcompress.training.distributed import SOLO, Workers
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.prefetch import Prefetch, waiting_advice
from robustcompress.training.quantisation import round_inputs
from robustcompress.training.records import EpochRecord, Position, Trained
from robustcompress.training.schedule import learning_rate
from robustcompress.training.settings import StageSettings, StepSettings, ValidationSettings
from robustcompress.training.step import Overrides, Precision, Stepper, autocast
from robustcompress.training.working import shared_copy


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
        step: How a step is computed.
        workers: The processes that share each batch; the first of them alone has a ``checkpoint``.
        events: Where progress goes.
        checkpoint: Folder for the states to resume from, or ``None``.
        checkpoint_steps: Save after so many steps; ``None`` goes by time alone.
        checkpoint_seconds: Save at least that often; also at each epoch's end.
        keep_checkpoints: How many states stay in the folder.
        stop: Asked after each step; ``True`` saves the state and ends the run.
        teacher: Whom the objective learns from, if anybody.
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
    step: StepSettings = field(default_factory=StepSettings)
    workers: Workers = SOLO
    checkpoint: Path | None = None
    checkpoint_steps: int | None = None
    checkpoint_seconds: float = 300.0
    keep_checkpoints: int = 2
    stop: Callable[[], bool] = lambda: False
    teacher: Teacher | None = None

    def run(self) -> Trained:
        """Train, and leave the selected epoch's weights in the model.

        Raises:
            TrainingError: If the loss or the weights are no longer finite; the last checkpoint stays.
            InterruptedRunError: If ``stop`` said so; the state is saved first.
            ConfigError: If the state to resume from was trained with another teacher.
        """
        with borrowed_generators(), float32_math(self.precision):
            return _Loop(self).run()


class float32_math:  # noqa: N801  # used as a context manager, like torch's own
    """Allow or forbid TF32 in float32 products and convolutions on CUDA, and restore after.

    cuDNN tries its algorithms out for each shape meanwhile: a stage runs few shapes, thousands of times.
    """

    def __init__(self, precision: Precision) -> None:
        self._allow = precision == "tf32"

    def __enter__(self) -> None:
        cudnn = torch.backends.cudnn
        self._before = (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark)
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = self._allow
            cudnn.benchmark = True

    def __exit__(self, *_: object) -> None:
        cudnn = torch.backends.cudnn
        if torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = self._before


class _Loop:
    def __init__(self, training: Training) -> None:
        self.t = training
        self.steps_a_batch = training.objective.steps_a_batch
        self.settings = training.settings.divided(self.steps_a_batch)
        self.steps_per_epoch = training.source.steps() * self.steps_a_batch
        own = [p for p in training.model.parameters() if p.requires_grad]
        beside = list(training.overrides.learnable()) if training.overrides else []
        self.optimizer = make_optimizer([group for group in (beside, own) if group], training.settings)
        # Each group's learning rate over the schedule's.
        network = (training.settings.network_lr or training.settings.lr) / training.settings.lr
        self.rates = [rate for group, rate in ((beside, 1.0), (own, network if beside else 1.0)) if group]
        self.position = Position()
        self.snapshot: dict[str, Tensor] = {}
        self.checkpoints: Checkpoints | None = None
        self.waited = self.stepped = self.input_share = 0.0
        self.advised = False
        self.judged = shared_copy(training.model)
        quantise = training.settings.quantise
        rounds_inputs = quantise is not None and quantise.activations
        if rounds_inputs:
            round_inputs(self.judged)
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
            settings=training.step,
            workers=training.workers,
            warn=training.events.warning,
            teacher=training.teacher,
            awp=training.settings.awp,
            rounds_inputs=rounds_inputs,
        )
        self.average: WeightAverage | None = None
        if training.settings.averaging:
            self.average = WeightAverage(training.settings.averaging, training.model, training.overrides)

    def run(self) -> Trained:
        t = self.t
        with ExitStack() as stack:
            stack.enter_context(closing(t.source))
            if t.checkpoint is not None:
                states = Checkpoints(
                    t.checkpoint,
                    every_steps=t.checkpoint_steps,
                    every_seconds=t.checkpoint_seconds,
                    keep=t.keep_checkpoints,
                    check=self._check_finite,
                )
                self.checkpoints = stack.enter_context(states)
            return self._run()

    def _run(self) -> Trained:
        t = self.t
        epochs = self.settings.epochs
        started = time.monotonic()
        on_gpu = t.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(t.device)
        resumed = self._resume()
        t.workers.broadcast_(list(self._tensors().values()))
        t.events(StageStarted(t.stage, epochs, epochs * self.steps_per_epoch, resumed_at=resumed))
        t.model.train()
        earlier = self.position.seconds
        while len(self.position.history) < epochs and not self._has_collapsed():
            epoch_started = time.monotonic()
            epoch = len(self.position.history)
            self._epoch(epoch)
            t.workers.check_same(self._tensors().values(), "weights, scores and masks")
            with self.average.in_place() if self.average else nullcontext():
                record = self._judge(epoch)
            if t.overrides:
                t.overrides.after_epoch(record.validation_robust)
            self.position.history.append(record)
            watch = t.objective.collapse_watch
            if watch is not None and (message := watch.message(self._robust())):
                t.events.warning(f"{t.stage}, epoch {epoch + 1}: {message}")
            self.position.losses = []
            self.position.seconds = earlier + time.monotonic() - started
            shown = {"loss": record.loss, "lr": record.lr, "input_share": self.input_share}
            for kind in ("validation_clean", "validation_robust", "validation_certified"):
                if (accuracy := getattr(record, kind)) is not None:
                    shown[kind] = accuracy
            t.events(
                EpochDone(t.stage, epoch + 1, epochs, shown, record.best, time.monotonic() - epoch_started)
            )
            self._save()
        if self.checkpoints:
            self.checkpoints.flush()
        t.model.eval()
        self._load_tensors(self.snapshot)
        selected = next((record for record in reversed(self.position.history) if record.best), None)
        return Trained(
            tuple(self.position.history),
            selected,
            earlier + time.monotonic() - started,
            self.waited / self.stepped if self.stepped else 0.0,
            torch.cuda.max_memory_allocated(t.device) if on_gpu else None,
            t.teacher.identity if t.teacher else "",
        )

    def _epoch(self, epoch: int) -> None:
        t, position = self.t, self.position
        skip = position.step - epoch * self.steps_per_epoch
        epochs = self.settings.epochs
        steps = epochs * self.steps_per_epoch
        # Sources without advice are on the device; those that are not exact draw random numbers as they like.
        ahead = t.source.exact and t.source.advice is not None
        if t.workers.size > 1 and not t.source.exact:
            # Such loaders draw their order from the global generators, which differ between processes by now.
            seed_globals(derive_seed(t.seed, t.stage, "loader", epoch))
        # A state may have been saved between the steps on one batch.
        batches_done, steps_done = divmod(skip, self.steps_a_batch)
        mine = t.source.epoch(epoch, skip=batches_done, workers=t.workers)
        with Prefetch(mine, t.device, ahead=ahead) as batches:
            for images, labels in batches:
                for _ in range(steps_done, self.steps_a_batch):
                    self._step(images, labels, Moment(epoch, epochs, position.step, steps))
                steps_done = 0
        self.waited += batches.waited
        self.stepped += batches.seconds
        self.input_share = batches.input_share
        advice = waiting_advice(t.source, batches)
        if advice and not self.advised:
            self.advised = True
            t.events.warning(f"{t.stage}, epoch {epoch + 1}: {advice}")
        expected = (epoch + 1) * self.steps_per_epoch
        if position.step != expected:
            # A loader whose length is a guess: go on with the count that the schedule was made for.
            position.step = expected

    def _step(self, images: Tensor, labels: Tensor, moment: Moment) -> None:
        """Make one step; save the state if that is due, or if the run is to stop."""
        t, position = self.t, self.position
        lr = learning_rate(self.settings, position.step, self.steps_per_epoch)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate
        loss = self.stepper.step(images, labels, moment, batch=t.workers.total(len(images)))
        if self.average:
            self.average.update(moment.step, moment.steps)
        position.step += 1
        position.losses.append(loss)
        t.events(StepDone(t.stage, moment.epoch + 1, position.step, loss, lr))
        if t.workers.any(t.stop()):
            if t.source.exact:
                self._save()
            if self.checkpoints:
                self.checkpoints.flush()
            # A launcher ends all when one ends: the others wait for the state to be on the disk.
            t.workers.any(False)
            saved = f"; its state is in {t.checkpoint}" if t.checkpoint else ""
            raise InterruptedRunError(
                f"stopped in {t.stage}, epoch {moment.epoch + 1}, step {position.step}{saved}."
            )
        if self.checkpoints and self.checkpoints.due(position.step) and t.source.exact:
            self._save()

    def _robust(self) -> list[float | None]:
        return [record.validation_robust for record in self.position.history]

    def _has_collapsed(self) -> bool:
        """Return whether the stage ends because an epoch has collapsed."""
        watch = self.t.objective.collapse_watch
        return watch is not None and watch.stop and watch.first(self._robust()) is not None

    def _judge(self, epoch: int) -> EpochRecord:
        t = self.t
        losses = self.position.losses
        loss = sum(losses) / max(1, len(losses))
        lr = float(self.optimizer.param_groups[0]["lr"])
        last = epoch + 1 == self.settings.epochs
        watch = t.objective.collapse_watch
        unseen = t.settings.select == "last" and watch is None
        if not last and (unseen or (epoch + 1) % t.judging.every):
            return EpochRecord(epoch + 1, loss, lr, None, None, best=False)
        parameters = dict(t.model.named_parameters())
        with torch.no_grad():
            effective = {**parameters, **(t.overrides.tensors(parameters) if t.overrides else {})}
        constant = {name: tensor.detach() for name, tensor in effective.items()}

        def logits_of(images: Tensor) -> Tensor:
            with autocast(t.precision, t.device):
                return cast(Tensor, functional_call(self.judged, constant, (images,))).float()

        share = (t.workers.rank, t.workers.size)
        certified = t.settings.select == "certified"
        if certified:
            counts = certified_counts(
                self.judged,
                constant,
                t.validation,
                threat=t.validation_threat,
                device=t.device,
                limit=t.judging.limit,
                share=share,
            )
        else:
            counts = robust_counts(
                logits_of,
                t.validation,
                threat=t.validation_threat,
                attack=t.judging.attack,
                seed=derive_seed(t.seed, "validation"),
                device=t.device,
                limit=t.judging.limit,
                share=share,
            )
        right, withstood, judged = (t.workers.total(count) for count in counts)
        clean, robust = right / judged, withstood / judged
        key = (clean, robust) if t.settings.select == "clean" else (robust, clean)
        best = t.settings.select == "last" or self.position.best is None or key > self.position.best
        if watch is not None and watch.stop and not certified:
            best = best and watch.first([*self._robust(), robust]) is None
        if best:
            self.position.best = key
            self.snapshot = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        attacked, proven = (None, robust) if certified else (robust, None)
        return EpochRecord(epoch + 1, loss, lr, clean, attacked, best=best, validation_certified=proven)

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
        """Have the state written in the background."""
        if self.checkpoints is None:
            return
        optimizer_tensors, optimizer_values = flatten_optimizer(self.optimizer)
        average = self.average.state() if self.average else {}
        self.checkpoints.save(
            self.position.step,
            self._tensors()
            | {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors.items()}
            | {f"stepper.{name}": tensor for name, tensor in self.stepper.state().items()}
            | {f"average.{name}": tensor for name, tensor in average.items()},
            {
                "position": self.position.values(),
                "optimizer": optimizer_values,
                "teacher": self.t.teacher.identity if self.t.teacher else "",
            },
            constant={f"best.{name}": tensor for name, tensor in self.snapshot.items()},
        )

    def _check_finite(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            learned = tensor.is_floating_point() and name.startswith(("model.", "overrides."))
            if learned and not bool(torch.isfinite(tensor).all()):
                raise TrainingError(
                    f"{name} is no longer finite after step {step} of {self.t.stage}. Lower the learning "
                    f"rate or set clip_gradient; the last good state is kept in {self.t.checkpoint}."
                )

    def _check_teacher(self, saved: str) -> None:
        given = self.t.teacher.identity if self.t.teacher else ""
        if saved != given:
            raise ConfigError(
                f"{self.t.stage} was begun with the teacher {saved[:12] or 'none'}; this one is "
                f"{given[:12] or 'none'} (hashes of their tensors). Put the first one back, or begin a new "
                f"run in another folder; the state is in {self.t.checkpoint}."
            )

    def _resume(self) -> int:
        """Take up the saved state, if there is one; return the step that it stands at."""
        state = self.checkpoints.newest(self.t.events.warning) if self.checkpoints else None
        state = self.t.workers.from_main(state)
        if state is None:
            return 0
        tensors, values = state
        self._check_teacher(str(values.get("teacher", "")))
        tensors = {name: tensor.to(self.t.device) for name, tensor in tensors.items()}
        self._load_tensors({k: v for k, v in tensors.items() if k.startswith(("model.", "overrides."))})
        self.snapshot = _with_prefix(tensors, "best.")
        self.stepper.restore(_with_prefix(tensors, "stepper."))
        if self.average:
            self.average.restore(_with_prefix(tensors, "average."))
        restore_optimizer(self.optimizer, _with_prefix(tensors, "optimizer."), cast(Any, values["optimizer"]))
        saved = cast(dict[str, Any], values["position"])
        history = [EpochRecord(**record) for record in saved.pop("history")]
        best = saved.pop("best")
        self.position = Position(**saved, history=history, best=tuple(best) if best else None)
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
