"""How the training loss changes as units are gated: the gradient of a gate of 1 at every unit."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Protocol

import torch
from torch import Tensor, nn

from robustcompress.errors import DataError, TrainingError
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import borrowed_generators, derive_seed, seed_globals
from robustcompress.training.batches import Batch, Source
from robustcompress.training.distillation import Teacher
from robustcompress.training.distributed import SOLO, Workers
from robustcompress.training.loop import float32_math
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.settings import StepSettings
from robustcompress.training.step import Precision, Stepper


class Gated(Protocol):
    """A set of units whose parameters a gate multiplies."""

    @property
    def name(self) -> str:
        """Of the layer."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the gate: one entry a unit."""
        ...

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the gate touches."""
        ...

    def apply(self, tensors: MutableMapping[str, Tensor], gate: Tensor) -> None:
        """Replace the touched entries of ``tensors`` by their gated values."""
        ...


@dataclass(frozen=True, eq=False)
class GateGradients:
    """What was measured at one set of units; tensors are shaped like its gate.

    Attributes:
        mean: Of dL/dgate over the batches.
        mean_square: Of its square.
    """

    mean: Tensor
    mean_square: Tensor


class _Gates:
    """Gates of 1, as a step's overrides; sums their gradients up and lets nothing learn."""

    def __init__(self, sites: Sequence[Gated], parameters: Mapping[str, Tensor]) -> None:
        self._sites = sites
        like = [parameters[site.parameters[0]] for site in sites]
        self.gates = [
            nn.Parameter(torch.ones(site.shape, dtype=weight.dtype, device=weight.device))
            for site, weight in zip(sites, like, strict=True)
        ]
        self.sums = [torch.zeros_like(gate.detach()) for gate in self.gates]
        self.squares = [torch.zeros_like(gate.detach()) for gate in self.gates]

    def tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        effective = {name: parameters[name] for site in self._sites for name in site.parameters}
        for site, gate in zip(self._sites, self.gates, strict=True):
            site.apply(effective, gate)
        return effective

    def learnable(self) -> Iterator[nn.Parameter]:
        return iter(self.gates)

    def penalty(self) -> Tensor | None:
        return None

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        for gate, total, squares in zip(self.gates, self.sums, self.squares, strict=True):
            if gate.grad is not None:
                total += gate.grad
                squares += gate.grad.square()
                gate.grad = None  # the optimizer then leaves the gate at 1

    def after_step(self) -> None:
        pass

    def after_epoch(self, validation_robust: float | None) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        pass


@dataclass(frozen=True)
class GateMeasurement:
    """How gradients of gates are measured: as a training stage would compute them, at its end.

    The objective and its attack, the data and their augmentation are the stage's; schedules stand where the
    stage would end, so that a radius that grows has grown. The network is run in train mode where the
    objective does so. Every batch finds the network as it was.

    Attributes:
        source: Training images.
        objective: Whose loss is measured.
        threat: What the adversary may do.
        seed: Of the measurement.
        device: Where the network is.
        precision: Of the forward passes.
        epochs: Of the stage.
        step: How a step is computed; it is not compiled, which takes longer than the few batches.
        workers: The processes that share each batch; all get the same gradients.
        warn: Called with a sentence where a setting cannot be followed.
        teacher: Whom the objective learns from, if anybody.
    """

    source: Source
    objective: Objective
    threat: Threat
    seed: int
    device: torch.device
    precision: Precision
    warn: Callable[[str], None]
    epochs: int = 1
    step: StepSettings = field(default_factory=StepSettings)
    workers: Workers = SOLO
    teacher: Teacher | None = None

    def run(self, model: nn.Module, sites: Sequence[Gated], batches: int) -> list[GateGradients]:
        """Return the gradients at every site, over so many batches; the network stays as it is, bit for bit.

        Raises:
            TrainingError: If the loss or a gradient is not finite.
            DataError: If the data give no batch.
        """
        learning = {parameter: parameter.requires_grad for parameter in model.parameters()}
        model.requires_grad_(False)
        try:
            with borrowed_generators(), float32_math(self.precision):
                gates = self._measure(model, sites, batches)
        finally:
            for parameter, learns in learning.items():
                parameter.requires_grad_(learns)
        found: list[GateGradients] = []
        for site, total, squares in zip(sites, gates.sums, gates.squares, strict=True):
            if not bool(squares.isfinite().all()):
                raise TrainingError(
                    f"gradients at {site.name!r} are not finite. Use precision fp32, or another score."
                )
            found.append(GateGradients(total / batches, squares / batches))
        return found

    def _measure(self, model: nn.Module, sites: Sequence[Gated], batches: int) -> _Gates:
        gates = _Gates(sites, dict(model.named_parameters()))
        stepper = Stepper(
            model,
            gates,
            objective=self.objective,
            threat=self.threat,
            optimizer=torch.optim.SGD(gates.gates, lr=0.0),
            device=self.device,
            precision=self.precision,
            clip_gradient=None,
            seed=self.seed,
            settings=self.step.model_copy(update={"compile": False}),
            workers=self.workers,
            warn=self.warn,
            teacher=self.teacher,
        )
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        epochs = max(1, self.epochs)
        steps = max(batches, epochs * self.source.steps())
        for index, (images, labels) in enumerate(islice(self._batches(), batches)):
            moment = Moment(epochs - 1, epochs, steps - batches + index, steps)
            try:
                stepper.step(images, labels, moment, batch=self.workers.total(len(images)))
            finally:
                for buffer, before in buffers:
                    buffer.copy_(before)
        return gates

    def _batches(self) -> Iterator[Batch]:
        """Yield batches, epoch after epoch, on the device."""
        for epoch in count():
            if not self.source.exact:
                # Such loaders draw their order from the global generators.
                seed_globals(derive_seed(self.seed, "loader", epoch))
            empty = True
            for images, labels in self.source.epoch(epoch, workers=self.workers):
                yield images.to(self.device), labels.to(self.device)
                empty = False
            if empty:
                raise DataError(
                    "gradients are measured on training batches; the data gave none. Pass data that can be "
                    "iterated again and again."
                )
