"""Go through the stages of a run, keep each one's result, and take up a run that was broken off."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from robustcompress.errors import ConfigError, InterruptedRunError, StorageError
from robustcompress.events import RunDone, RunStarted, StageDone, StageStarted
from robustcompress.export.formats import Exported
from robustcompress.pipeline.carding import write_card
from robustcompress.pipeline.compacting import compact
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.evaluating import evaluate
from robustcompress.pipeline.exporting import check_files, export, read_index
from robustcompress.pipeline.interrupts import check_stop
from robustcompress.pipeline.teaching import prepare_teacher
from robustcompress.pipeline.training_stages import finetune, pretrain, prune
from robustcompress.recipe import STAGES, Recipe
from robustcompress.report.model import Report
from robustcompress.storage.artifact import Artifact, has_artifact, load_artifact, save_artifact
from robustcompress.storage.atomic import write_bytes

MAKERS: dict[str, Callable[[Context, Artifact], Artifact]] = {
    "pretrain": pretrain,
    "prune": prune,
    "finetune": finetune,
    "compact": compact,
}
"""Stages that turn one artifact into the next."""

TRAINING = ("pretrain", "prune", "finetune")
"""Stages that all processes of a run share."""

# What may differ between the recipe of a run and the one that resumes it.
_FREE = (
    "name",
    "stages",
    "device",
    "loader_workers",
    "checkpoint_steps",
    "checkpoint_seconds",
    "keep_checkpoints",
    "worker_timeout",
    "evaluation",
    "export",
)


class Run:
    """A run in its folder.

    Args:
        context: Network, data, recipe, folder.
        start: The network before the first stage.
        resume: Take up what the folder holds; without it the folder must hold no run.

    Raises:
        ConfigError: If the folder holds another run, or one and ``resume`` was not given.
        StorageError: If the folder cannot be made.
    """

    def __init__(self, context: Context, start: Artifact, *, resume: bool) -> None:
        self.context = context
        self._latest = start
        self.exported: list[Exported] = []
        self.report: Report | None = None
        self._finished: set[str] = set()
        if context.workers.is_main:
            self._prepare_folder(resume)
            if resume:
                self._take_up()
        self._latest, self._finished = context.workers.from_main((self._latest, self._finished))

    @property
    def latest(self) -> Artifact:
        """What the last finished stage handed on."""
        return self._latest

    def folder_of(self, stage: str) -> Path:
        """Return where ``stage`` keeps its artifact."""
        run_dir = self.context.run_dir
        return run_dir / "artifact" if stage == "compact" else run_dir / "stages" / stage

    def go(self, stages: Sequence[str]) -> None:
        """Run ``stages`` in their fixed order; those that are finished already are not run again."""
        context, started = self.context, time.monotonic()
        ordered = [stage for stage in STAGES if stage in stages]
        if not context.workers.is_main:
            # What follows training is one process's work.
            ordered = [stage for stage in ordered if stage in TRAINING]
        learning = [stage for stage in ordered if stage in TRAINING]
        prepare_teacher(context, learning, sorted(self._finished))
        context.events(RunStarted(str(context.run_dir), tuple(ordered), str(context.device)))
        for stage in ordered:
            try:
                self._stage(stage)
            except InterruptedRunError as error:
                raise InterruptedRunError(
                    f"{error} Resume with --resume (command line) or resume=True (Python), run folder "
                    f"{context.run_dir}."
                ) from error
        context.events(RunDone(str(context.run_dir), time.monotonic() - started))

    def _stage(self, stage: str) -> None:
        context, started = self.context, time.monotonic()
        check_stop(context.stop, stage)
        if stage == "evaluate":
            check_files(self.exported)
            context.events(StageStarted(stage, 0, 0))
            self.report = evaluate(context, self._latest, self.exported, self.stage_artifacts())
            # The files carry what was found now: their hashes are new.
            self.exported = read_index(context.run_dir / "export")
            context.events(StageDone(stage, time.monotonic() - started, str(context.run_dir / "report")))
            return
        if stage == "export":
            context.events(StageStarted(stage, 0, len(context.recipe.export)))
            self.exported = export(context, self._latest)
            write_card(context, self._latest, self.exported)
            context.events(StageDone(stage, time.monotonic() - started, str(context.run_dir / "export")))
            return
        folder = self.folder_of(stage)
        if stage in self._finished:
            context.events(StageDone(stage, 0.0, str(folder), reused=True))
            return
        if stage == "compact":
            context.events(StageStarted(stage, 0, 1))
        self._latest = MAKERS[stage](context, self._latest)
        self._finished.add(stage)
        if context.workers.is_main:
            save_artifact(self._latest, folder)
            shutil.rmtree(context.run_dir / "checkpoints" / stage, ignore_errors=True)
        context.events(StageDone(stage, time.monotonic() - started, str(folder)))

    def stage_artifacts(self) -> dict[str, Artifact]:
        """Return the artifacts of all finished stages, by name."""
        return {
            stage: load_artifact(self.folder_of(stage))
            for stage in MAKERS
            if has_artifact(self.folder_of(stage))
        }

    def _prepare_folder(self, resume: bool) -> None:
        context = self.context
        run_dir, path = context.run_dir, context.run_dir / "recipe.yaml"
        if path.exists():
            if not resume:
                raise ConfigError(
                    f"{run_dir} holds a run already. Resume it (--resume, or resume=True) or name another "
                    "folder."
                )
            _check_same(Recipe.read(path), context.recipe, path)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{run_dir}: cannot be made: {error.strerror}. Name another folder."
            ) from error
        write_bytes(path, context.recipe.to_yaml().encode())

    def _take_up(self) -> None:
        for stage in MAKERS:
            folder = self.folder_of(stage)
            if not has_artifact(folder):
                continue
            self._finished.add(stage)
            self._latest = load_artifact(folder)
            if self._latest.data_fingerprint != self.context.fingerprint:
                raise ConfigError(
                    f"{folder} was made from other training data than those given now. Name another folder."
                )
        self.exported = read_index(self.context.run_dir / "export")


def _check_same(saved: Recipe, given: Recipe, path: Path) -> None:
    def fixed(recipe: Recipe) -> dict[str, Any]:
        values = recipe.model_dump(mode="json")
        return {name: value for name, value in values.items() if name not in _FREE}

    old, new = fixed(saved), fixed(given)
    changed = sorted(name for name in new if new[name] != old.get(name))
    if changed:
        details = "; ".join(
            f"{name} was {yaml.safe_dump(old.get(name), default_flow_style=True).strip()}" for name in changed
        )
        raise ConfigError(
            f"{path}: a run can only be resumed with its own recipe; changed: {', '.join(changed)} "
            f"({details})."
        )
