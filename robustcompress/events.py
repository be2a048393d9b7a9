"""Progress goes out as events. Whoever wants to see it (a terminal, a file, TensorBoard) is a sink."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""

    def as_dict(self) -> dict[str, object]:
        """Return the event as plain data, ``event`` naming its class."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins; ``stages`` are those it will go through, in order."""

    run_dir: str
    stages: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class StageStarted(Event):
    """A stage begins; ``units`` counts its steps (training) or pieces (the rest), 0 if unknown."""

    stage: str
    epochs: int
    units: int
    resumed_at: int = 0


@dataclass(frozen=True)
class StepDone(Event):
    """One optimizer step ended. ``step`` counts from 1 over the whole stage."""

    stage: str
    epoch: int
    step: int
    loss: float
    lr: float


@dataclass(frozen=True)
class EpochDone(Event):
    """One epoch ended.

    ``metrics`` holds loss, lr, input_share and those accuracies, 0 to 1, that were judged: validation_clean,
    validation_robust, validation_certified.
    """

    stage: str
    epoch: int
    epochs: int
    metrics: Mapping[str, float]
    best: bool
    seconds: float


@dataclass(frozen=True)
class StageDone(Event):
    """A stage ended; ``folder`` holds its artifact, empty if it has none."""

    stage: str
    seconds: float
    folder: str
    reused: bool = False


@dataclass(frozen=True)
class Progress(Event):
    """``done`` of ``total`` pieces of ``task`` (an attack, an export) within ``stage`` are finished.

    ``note`` says how it stands, such as how many images withstood an attack so far; it may be empty.
    """

    stage: str
    task: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Notice(Event):
    """Something a person should know; ``level`` is info or warning."""

    level: str
    message: str


@dataclass(frozen=True)
class RunDone(Event):
    """The run ended well."""

    run_dir: str
    seconds: float


Sink: TypeAlias = Callable[[Event], None]


class Events:
    """Hands each event to every sink, in order."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = list(sinks)

    def add(self, sink: Sink) -> None:
        """Send all further events to ``sink`` too."""
        self._sinks.append(sink)

    def remove(self, sink: Sink) -> None:
        """Send no further events to ``sink``."""
        self._sinks.remove(sink)

    def __call__(self, event: Event) -> None:
        """Send one event."""
        for sink in self._sinks:
            sink(event)

    def info(self, message: str) -> None:
        """Send a notice."""
        self(Notice("info", message))

    def warning(self, message: str) -> None:
        """Send a notice that something is not as it should be."""
        self(Notice("warning", message))
