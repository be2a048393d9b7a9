"""Ctrl-C and SIGTERM end a run in good order."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

from robustcompress.errors import InterruptedRunError


class Interrupts:
    """While active, the first signal asks the run to stop; the second one breaks it off.

    Handlers can only be set from the main thread; elsewhere the class does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        self._received = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number

    def requested(self) -> bool:
        """Whether a signal came."""
        return self._received is not None


def check_stop(stop: Callable[[], bool], stage: str) -> None:
    """Raise if the run was asked to stop.

    Raises:
        InterruptedRunError: Names the stage that was left unfinished.
    """
    if stop():
        raise InterruptedRunError(f"stopped in {stage}; stages that were finished are kept.")
