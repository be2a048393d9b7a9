"""The one door: a network and data in, a small robust network and its exported, attacked files out."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from robustcompress.data import ImageFiles, ImageSet
from robustcompress.errors import ConfigError, StorageError
from robustcompress.events import Events, Sink
from robustcompress.export.formats import Exported, Format
from robustcompress.pipeline.carding import write_card
from robustcompress.pipeline.context import EXAMPLES, Context, check_model, resolve_device, versions
from robustcompress.pipeline.exporting import export_one, write_index
from robustcompress.pipeline.extra_images import with_extra
from robustcompress.pipeline.inspection import Inspection, inspect
from robustcompress.pipeline.interrupts import Interrupts
from robustcompress.pipeline.rebuilding import build
from robustcompress.pipeline.runner import Run
from robustcompress.recipe import Factory, Recipe
from robustcompress.report.model import Report
from robustcompress.seeding import borrowed_generators, derive_seed, seed_globals
from robustcompress.sinks.console import ConsoleSink
from robustcompress.sinks.jsonl import JsonlSink
from robustcompress.storage.artifact import Artifact, load_artifact
from robustcompress.storage.lock import RunLock
from robustcompress.storage.rebuild import load_into
from robustcompress.storage.sparse_file import METADATA_KEY, read_tensors
from robustcompress.training.batches import Source
from robustcompress.training.distributed import Workers, join_workers
from robustcompress.training.sources import Data, as_source, first_batch
from robustcompress.zoo.networks import Network


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        network: A plain module on the CPU in eval mode: weights really zero or channels really gone.
        report: Numbers, pictures' data, settings; ``None`` if the run did not evaluate.
        files: Exported files, each proven equal to the network.
        artifact: Folder that :func:`load` reads.
        run_dir: Everything else.
    """

    network: nn.Module
    report: Report | None
    files: tuple[Exported, ...]
    artifact: Path
    run_dir: Path

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the network as plain data."""
        return {
            "run_dir": str(self.run_dir),
            "artifact": str(self.artifact),
            "files": [file.as_dict() for file in self.files],
            "report": self.report.model_dump(mode="json") if self.report else None,
        }


class Compressor:
    """Compresses one network, stage by stage, in one folder.

    Args:
        model: Any module that maps images in [0, 1] to logits [batch, classes]; it is copied, never changed.
            ``None`` builds the recipe's.
        recipe: Every setting.
        train: Training images: an :class:`ImageSet`, a Dataset, a DataLoader, or any iterable of
            (images, labels) that can be iterated again. ``None`` loads the recipe's.
        validation: Images that select epochs; ``None`` holds some of ``train`` out.
        test: Images that the result is judged on, and nothing else.
        run_dir: Folder for everything the run writes; it is made.
        resume: Take up the run that ``run_dir`` holds.
        progress: Show progress bars on stderr.
        sinks: Further receivers of events.
        allow_import: Let the recipe import a factory that it names.

    Attributes:
        workers: The processes of the run, where ``torchrun`` started several: all train, and the first alone
            writes, exports and evaluates.

    Raises:
        RunLockedError: If another process works in ``run_dir``.
        ConfigError: If the recipe names no model or data and none was given, or ``run_dir`` holds another
            run.
        DataError: If the data are not (images in [0, 1], labels), or cannot be split.
        ModelError: If the network cannot be called with them.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        recipe: Recipe,
        train: Data | None = None,
        validation: Data | None = None,
        test: Data | None = None,
        run_dir: str | Path = "runs/robustcompress",
        resume: bool = False,
        progress: bool = True,
        sinks: Sequence[Sink] = (),
        allow_import: bool = False,
    ) -> None:
        self.run_dir = Path(run_dir)
        self._interrupts = Interrupts()
        self._progress = progress
        device = resolve_device(recipe.device)
        sets, classes, recipe = _data(recipe, train, validation, test, device)
        network, architecture = _network(recipe, model, allow_import=allow_import)
        check_model(network.to(device), first_batch(sets.train), device)
        self.recipe = recipe
        self.workers = join_workers(device, timeout_seconds=recipe.worker_timeout)
        _check_same_everywhere(self.workers, recipe, sets.train)
        # One process writes and speaks; the others train along.
        self._events = Events(sinks if self.workers.is_main else ())
        self._context = Context(
            recipe=recipe,
            model=network,
            architecture=architecture,
            train=sets.train,
            validation=sets.validation.in_order(),
            test=sets.test.in_order() if sets.test else None,
            example_inputs=first_batch(sets.train)[0][:EXAMPLES].to(device),
            device=device,
            run_dir=self.run_dir,
            events=self._events,
            classes=classes,
            data_name=recipe.data.kind if recipe.data else "",
            stop=self._interrupts.requested,
            workers=self.workers,
            allow_import=allow_import,
        )
        start = _start(recipe, network, architecture)
        if model is not None or recipe.weights is not None:
            self._context.start = start
        elif "pretrain" not in recipe.stages and not resume:
            self._context.warn(
                "the network begins with freshly drawn weights and is not pretrained; name --weights, or run "
                "the stage pretrain too."
            )
        with self._locked():
            self._run = Run(self._context, start, resume=resume)

    def inspect(self, *, second_opinion: bool = False) -> Inspection:
        """Return what would be pruned, what is frozen and why, parameters and MACs.

        Args:
            second_opinion: Ask torch-pruning which channels it would couple, and note where it differs.
        """
        return inspect(self._context, with_opinion=second_opinion)

    def compress(self) -> Result:
        """Run every stage that the recipe names.

        Raises:
            InterruptedRunError: After Ctrl-C or SIGTERM; the state is saved.
        """
        return self._go(self.recipe.stages)

    def pretrain(self) -> Result:
        """Train every weight under the robust objective."""
        return self._go(["pretrain"])

    def prune(self) -> Result:
        """Learn which units to remove, while the weights stand still."""
        return self._go(["prune"])

    def finetune(self) -> Result:
        """Train what was kept."""
        return self._go(["finetune"])

    def compact(self) -> Result:
        """Make masked weights zero, or remove masked channels, and write the artifact."""
        return self._go(["compact"])

    def export(self, format: str | Format | None = None, path: str | Path | None = None) -> Exported:
        """Write one format (by default the recipe's first) and prove that the file equals the network.

        Args:
            format: Settings of a format, its name, or the file name under which the recipe writes it.
            path: Where to; by default in the run folder, where ``evaluate`` finds it.

        Raises:
            ExportError: If the file would compute something else.
            ConfigError: In another process than the first, where ``torchrun`` started several.
        """
        self._main_alone("export")
        chosen = self.recipe.export[0] if format is None else _format(self.recipe, format)
        target = Path(path) if path else self.run_dir / "export" / chosen.file_name
        with self._locked():
            written = export_one(chosen, self._context, self._run.latest, target)
            if written.path.parent == self.run_dir / "export":
                kept = [item for item in self._run.exported if item.path != written.path]
                self._run.exported = [*kept, written]
                write_index(written.path.parent, self._run.exported)
                write_card(self._context, self._run.latest, self._run.exported)
        return written

    def evaluate(self) -> Report:
        """Attack the network and every exported file, and write the report.

        Raises:
            ConfigError: In another process than the first, where ``torchrun`` started several.
        """
        self._main_alone("evaluate")
        report = self._go(["evaluate"]).report
        assert report is not None
        return report

    def _main_alone(self, method: str) -> None:
        if not self.workers.is_main:
            raise ConfigError(
                f"{method} is the first process's work alone; this is process {self.workers.rank} of "
                f"{self.workers.size}. Call it under `if compressor.workers.is_main:`."
            )

    def _locked(self) -> AbstractContextManager[object]:
        return RunLock(self.run_dir) if self.workers.is_main else nullcontext()

    def _go(self, stages: Iterable[str]) -> Result:
        with ExitStack() as stack:
            stack.enter_context(self._locked())
            stack.enter_context(self._interrupts)
            own: list[Sink] = []
            if self.workers.is_main:
                own.append(stack.enter_context(JsonlSink(self.run_dir / "events.jsonl")))
            if self.workers.is_main and self._progress:
                own.append(stack.enter_context(ConsoleSink()))
            for sink in own:
                self._events.add(sink)
                stack.callback(self._events.remove, sink)
            self._run.go(list(stages))
        return Result(
            network=self._context.network_of(self._run.latest),
            report=self._run.report,
            files=tuple(self._run.exported),
            artifact=self._run.folder_of(self._run.latest.stage),
            run_dir=self.run_dir,
        )


def load(folder: str | Path, *, model: nn.Module | None = None, allow_import: bool = False) -> nn.Module:
    """Return the network that an artifact folder holds, on the CPU in eval mode. No pickle is read.

    Args:
        folder: An artifact: ``run_dir/artifact`` or one stage's.
        model: The dense network as its constructor makes it, for networks that are not of the zoo; its
            layers are resized to what the artifact holds and it is returned.
        allow_import: Let the artifact import the factory that it names.

    Raises:
        StorageError: If files are missing, damaged or do not fit the network.
        ConfigError: If the network is not of the zoo and ``model`` is not given.
    """
    artifact = load_artifact(Path(folder))
    if model is None:
        model = build(artifact.architecture, where=folder, allow_import=allow_import)
    load_into(model, artifact.tensors)
    return model.cpu().eval()


@dataclass(frozen=True)
class _Sources:
    train: Source
    validation: Source
    test: Source | None


def _network(
    recipe: Recipe, model: nn.Module | None, *, allow_import: bool
) -> tuple[nn.Module, Mapping[str, Any]]:
    if model is not None:
        architecture = recipe.model.model_dump(mode="json") if recipe.model else {}
        return copy.deepcopy(model), architecture
    if recipe.model is None:
        raise ConfigError("no network: pass model=, or name one in the recipe (model: small_cnn).")
    if isinstance(recipe.model, Factory) and not allow_import:
        raise ConfigError(
            f"the recipe names the factory {recipe.model.factory!r}, which runs that module's code. Pass "
            "--allow-import (command line) or allow_import=True (Python) if you trust it."
        )
    with borrowed_generators():
        seed_globals(derive_seed(recipe.seed, "weights"))
        return recipe.model.build(), recipe.model.model_dump(mode="json")


def _data(
    recipe: Recipe, train: Data | None, validation: Data | None, test: Data | None, device: torch.device
) -> tuple[_Sources, tuple[str, ...], Recipe]:
    """Return the sources, the classes' names, and the recipe with its zoo network fitted to the images."""
    if train is None:
        if recipe.data is None:
            raise ConfigError("no data: pass train=, or name a data set in the recipe (data: fashion_mnist).")
        train = recipe.data.open("train")
        test = recipe.data.open("test") if test is None else test

    def source(data: Data, name: str) -> Source:
        return as_source(
            data,
            batch_size=recipe.pretrain.batch_size,
            seed=recipe.seed,
            augmentation=recipe.augmentation if name == "train" else None,
            device=device,
            loader_workers=recipe.loader_workers,
            name=name,
        )

    training = source(train, "train")
    if validation is None:
        training, held_out = training.split(
            recipe.validation.fraction, seed=derive_seed(recipe.seed, "split")
        )
    else:
        held_out = source(validation, "validation")
    judged = None if test is None else source(test, "test")
    if recipe.extra_data is not None:
        training = with_extra(training, recipe, recipe.extra_data, device)
    classes: tuple[str, ...] = ()
    if isinstance(train, ImageSet | ImageFiles):
        classes = train.classes
        if isinstance(recipe.model, Network):
            channels, _, size = train.shape
            fitted = recipe.model.fitted(in_channels=channels, num_classes=len(classes), image_size=size)
            recipe = recipe.model_copy(update={"model": fitted})
    return _Sources(training, held_out, judged), classes, recipe


def _check_same_everywhere(workers: Workers, recipe: Recipe, train: Source) -> None:
    """Check that all processes were given the same settings and training images.

    Folders and devices may differ between machines.

    Raises:
        ConfigError: If they were not.
    """
    if workers.size == 1:
        return
    settings = recipe.model_dump_json(
        exclude={"data", "extra_data", "weights", "teacher", "device", "loader_workers"}
    )
    images = train.fingerprint() if train.exact else str(train.steps())
    for what, content in (("recipe", settings), ("training images", images)):
        if not workers.same(content.encode()):
            raise ConfigError(
                f"all processes of a run need the same {what}; those of at least one differ from the first "
                "process's. Start them with the same command on the same data."
            )


def _start(recipe: Recipe, network: nn.Module, architecture: Mapping[str, Any]) -> Artifact:
    """Return what the first stage begins with: fresh weights, or those that the recipe names."""
    extra: dict[str, torch.Tensor] = {}
    if recipe.weights is not None:
        tensors, extra = read_weights(recipe.weights)
        load_into(network, tensors)
    return Artifact(
        stage="start",
        architecture=dict(architecture),
        tensors={name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()},
        recipe=recipe.model_dump(mode="json"),
        threat=recipe.threat.model_dump(mode="json"),
        sparsity={},
        metrics={},
        versions=versions(),
        seed=recipe.seed,
        data_fingerprint="",
        extra_tensors=extra,
    )


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (weights, masks and scores) from an artifact folder or a safetensors file.

    Raises:
        StorageError: If there is no such file, or it is a pickle.
    """
    if path.is_dir():
        artifact = load_artifact(path)
        return dict(artifact.tensors), dict(artifact.extra_tensors)
    if path.suffix != ".safetensors":
        raise StorageError(
            f"{path}: expected a .safetensors file or an artifact folder. Pickles (.pt, .pth) can run code; "
            "convert one you trust with safetensors.torch.save_file(state_dict, path)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            ours = METADATA_KEY in (file.metadata() or {})
        return (read_tensors(path) if ours else load_file(path)), {}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read as safetensors: {error}") from error


def _format(recipe: Recipe, wanted: str | Format) -> Format:
    if isinstance(wanted, Format):
        return wanted
    for format in recipe.export:
        if wanted == format.file_name:
            return format
    for format in recipe.export:
        if format.kind == wanted.replace("-", "_"):
            return format
    try:
        return Format.find(wanted)
    except ValueError as error:
        raise ConfigError(str(error)) from error
