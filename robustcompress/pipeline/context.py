"""What every stage of a run is given."""

import copy
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcompress.data import check_logits
from robustcompress.errors import ConfigError, ModelError
from robustcompress.events import Events
from robustcompress.pruning.costs import Limit, network_costs
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Plan
from robustcompress.recipe import Recipe
from robustcompress.storage.artifact import Artifact
from robustcompress.storage.rebuild import load_into
from robustcompress.training.batches import Batch, Source
from robustcompress.training.distillation import Teacher
from robustcompress.training.distributed import SOLO, Workers, launched, own_gpu

EXAMPLES = 8
"""Images used to trace, to count operations and to compare exports."""


def _never() -> bool:
    return False


@dataclass
class Context:
    """The surroundings of a run: network, data, device, folder, events.

    Attributes:
        recipe: Settings.
        model: The dense network, on ``device``; stages load weights into it.
        architecture: JSON from which the network can be built again; empty for a user's own module.
        train: Training images.
        validation: Batches that select epochs.
        test: Batches to judge the result on; ``None`` judges on validation images and says so.
        classes: Names of the classes, for pictures; may be empty.
        example_inputs: A few real images, on ``device``.
        device: Where training and attacks run.
        run_dir: Where everything is written.
        events: Where progress goes.
        stop: Asked between steps; ``True`` ends the run in good order.
        workers: The processes of the run; the first alone writes.
        start: What the run began with, if those weights were trained and not freshly drawn.
        allow_import: Whether factories that an artifact names may be imported.
        teacher: Whom objectives learn from, once it is loaded.
    """

    recipe: Recipe
    model: nn.Module
    architecture: Mapping[str, Any]
    train: Source
    validation: Iterable[Batch]
    test: Iterable[Batch] | None
    example_inputs: Tensor
    device: torch.device
    run_dir: Path
    events: Events
    classes: tuple[str, ...] = ()
    data_name: str = ""
    stop: Callable[[], bool] = _never
    workers: Workers = SOLO
    start: Artifact | None = None
    allow_import: bool = False
    teacher: Teacher | None = None
    warnings: list[str] = field(default_factory=list[str])
    _plan: Plan | None = None
    _fingerprint: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the training data."""
        self._fingerprint = self._fingerprint or self.train.fingerprint()
        return self._fingerprint

    @property
    def judged(self) -> Iterable[Batch]:
        """Images that the result is judged on."""
        return self.validation if self.test is None else self.test

    def warn(self, message: str) -> None:
        """Tell sinks and report that something is not as it should be."""
        self.warnings.append(message)
        self.events.warning(message)

    def plan(self) -> Plan:
        """Return where masks go, found once."""
        if self._plan is None:
            self._plan = self.recipe.pattern.plan(self.model, self.example_inputs, self.recipe.ignore)
        return self._plan

    def masking(
        self,
        *,
        initial: Sequence[Tensor] | None = None,
        sparsity: float | None = None,
        limits: tuple[Limit, ...] = (),
    ) -> Masking:
        """Return fresh scores and masks for the model's present weights, on its device.

        Args:
            initial: First scores in place of those that the recipe's score makes of magnitudes.
            sparsity: In place of the recipe's.
            limits: What a budget that learns must stay within.
        """
        sites = self.plan().sites
        costs = None
        if self.recipe.budget.learns:
            costs = replace(network_costs(self.model, self.example_inputs, sites), limits=limits)
        masking = Masking(
            sites,
            score=self.recipe.score,
            budget=self.recipe.budget,
            sparsity=self.recipe.sparsity if sparsity is None else sparsity,
            parameters=dict(self.model.named_parameters()),
            initial=initial,
            costs=costs,
        )
        return masking.to(self.device)

    def load_weights(self, artifact: Artifact) -> None:
        """Put the dense weights of ``artifact`` into the model."""
        load_into(self.model, artifact.tensors)
        self.model.to(self.device)

    def network_of(self, artifact: Artifact) -> nn.Module:
        """Return a new network, on the CPU in eval mode, that holds what ``artifact`` holds."""
        network = copy.deepcopy(self.model).cpu()
        load_into(network, artifact.tensors)
        # The last stage may have left parameters without gradients; a plain module has them.
        return network.requires_grad_(True).eval()

    def artifact(
        self,
        stage: str,
        network: nn.Module,
        *,
        metrics: Mapping[str, Any],
        sparsity: Mapping[str, Mapping[str, int]] | None = None,
        extra_tensors: Mapping[str, Tensor] | None = None,
    ) -> Artifact:
        """Return what ``stage`` hands on."""
        return Artifact(
            stage=stage,
            architecture=dict(self.architecture),
            tensors={name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
            recipe=self.recipe.model_dump(mode="json"),
            threat=self.recipe.threat.model_dump(mode="json"),
            sparsity={name: dict(counts) for name, counts in (sparsity or {}).items()},
            metrics=dict(metrics),
            versions=versions(),
            seed=self.recipe.seed,
            data_fingerprint=self.fingerprint,
            extra_tensors={name: tensor.cpu() for name, tensor in (extra_tensors or {}).items()},
        )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose behaviour a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("robustcompress", "torch", "numpy", "onnx", "onnxruntime", "onnxscript", "torch-pruning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` names.

    Of several processes on one machine each gets a GPU of its own.

    Raises:
        ConfigError: If there is no such GPU, or one is named for several processes.
    """
    if name == "auto":
        return own_gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    device = own_gpu(torch.device(name))
    if ":" in name and launched():
        raise ConfigError(
            f"device {name!r} would be that of all processes; use cuda: each takes its own GPU."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {name!r} asked for, but torch sees {count} CUDA devices. Use device cpu.")
    return device


def check_model(model: nn.Module, batch: Batch, device: torch.device) -> None:
    """Run the network once and check what it returns.

    Raises:
        ModelError: If it cannot be called with the data's images.
        DataError: If it returns no logits [batch, classes] or a label is no class of it.
    """
    images, labels = (part[:EXAMPLES].to(device) for part in batch)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: object = model(images)
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(
            f"the network cannot be called with images {list(images.shape)}: {type(error).__name__}: {error}"
        ) from error
    finally:
        model.train(was_training)
    found = check_logits(logits, labels, where="the first training batch")
    if not bool(torch.isfinite(found).all()):
        raise ModelError("the network returns NaN or infinite logits on the first training batch.")
