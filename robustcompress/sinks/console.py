"""Events as progress bars on a terminal, or as a few lines where there is none."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from robustcompress.events import (
    EpochDone,
    Event,
    Notice,
    Progress,
    RunStarted,
    StageDone,
    StageStarted,
    StepDone,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

_SMOOTHING = 0.95


class ConsoleSink:
    """Shows the stage, the epoch, the loss, clean and robust accuracy and the time left, on stderr.

    A context manager: leaving it puts the terminal back in order. Finished stages stay as one line each.

    Args:
        stream: Where to write; stderr by default, so that stdout holds results alone.
        terminal: Whether ``stream`` can redraw lines; found out by default.
        width: Columns; found out by default.
    """

    def __init__(
        self, stream: TextIO | None = None, *, terminal: bool | None = None, width: int | None = None
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = Console(
            file=stream or sys.stderr, force_terminal=terminal, width=width, highlight=False
        )
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._loss: float | None = None
        self._accuracies = ""
        self._best = ""
        self._epoch = ""
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self._say(f"run {event.run_dir} on {event.device}: {', '.join(event.stages)}")
        elif isinstance(event, Notice):
            mark = "warning: " if event.level == "warning" else ""
            self._say(mark + event.message)
        elif isinstance(event, StageStarted):
            self._stage_started(event)
        elif isinstance(event, StepDone):
            self._step_done(event)
        elif isinstance(event, EpochDone):
            self._epoch_done(event)
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, StageDone):
            self._stage_done(event)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _stage_started(self, event: StageStarted) -> None:
        self._loss, self._accuracies, self._best, self._epoch = None, "", "", ""
        self._started = time.monotonic()
        total = event.units or None
        self._tasks[event.stage] = self._bars.add_task(
            event.stage, total=total, completed=event.resumed_at, note=""
        )
        if event.resumed_at:
            self._say(f"{event.stage}: goes on at step {event.resumed_at + 1}")

    def _step_done(self, event: StepDone) -> None:
        old = event.loss if self._loss is None else self._loss
        self._loss = _SMOOTHING * old + (1 - _SMOOTHING) * event.loss
        self._update(event.stage, completed=event.step, note=self._note(event.epoch))

    def _note(self, epoch: int) -> str:
        loss = "" if self._loss is None else f"loss {self._loss:.3f}"
        return "  ".join(part for part in (f"epoch {epoch}{self._epoch}", loss, self._accuracies) if part)

    def _epoch_done(self, event: EpochDone) -> None:
        self._epoch = f"/{event.epochs}"
        judged = {kind: event.metrics.get(f"validation_{kind}") for kind in ("clean", "robust", "certified")}
        known = [f"{kind} {accuracy:.1%}" for kind, accuracy in judged.items() if accuracy is not None]
        if known:
            self._accuracies = "  ".join(known)
        if event.best:
            self._best = self._accuracies
        self._update(event.stage, note=self._note(event.epoch))
        if not self._console.is_terminal:
            elapsed = time.monotonic() - self._started
            left = elapsed / event.epoch * (event.epochs - event.epoch)
            accuracies = f"  {self._accuracies}" if self._accuracies else ""
            self._say(
                f"{event.stage}  epoch {event.epoch}/{event.epochs}  loss {event.metrics['loss']:.3f}"
                f"{accuracies}  {left:.0f} s left"
            )

    def _progress(self, event: Progress) -> None:
        total = event.total or None
        key = f"{event.stage}: {event.task}"
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(key, total=total, note="")
        self._update(key, completed=event.done, total=total, note=event.note)

    def _stage_done(self, event: StageDone) -> None:
        for key in [key for key in self._tasks if key == event.stage or key.startswith(f"{event.stage}: ")]:
            self._bars.remove_task(self._tasks.pop(key))
        if event.reused:
            self._say(f"{event.stage:<9} finished earlier, taken from {event.folder}")
            return
        validation = f"  validation: {self._best}" if self._best else ""
        self._say(f"{event.stage:<9} {event.seconds:6.1f} s{validation}")

    def _update(
        self, key: str, *, note: str | None = None, completed: int | None = None, total: int | None = None
    ) -> None:
        task = self._tasks.get(key)
        if task is None:
            return
        if note is not None:
            self._bars.update(task, note=note)
        self._bars.update(task, completed=completed, total=total)
