"""Batches on the device before they are needed, and the time that training waited for them.

Images are decoded and put together by worker processes, many batches ahead (``loading.py``). What is left is
the way to a GPU: while one step is computed, the next batch is copied from pinned memory on a stream of its
own, where its bytes become pixels too. No thread takes part, so that nothing draws random numbers out of
turn. On a CPU there is nothing to copy, and batches pass through.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from robustcompress.training.batches import Batch, Source

MUCH = 0.2
"""Share of an epoch from which waiting for data is worth a warning."""

NOTICEABLE = 2.0
"""Seconds of waiting below which it is not: the first batches of a short run, for the most part."""


@dataclass(frozen=True)
class _Copied:
    """A batch on its way to the device; ready when ``event`` is."""

    batch: Batch
    event: torch.Event


class Prefetch:
    """An epoch's batches on ``device``, and how long the loop waited for them; a context manager.

    Leaving it closes the source's iterator, whether the epoch came to its end or not.

    Args:
        batches: Of one epoch.
        device: Where they are needed.
        ahead: Fetch the next batch before handing out one. Only for sources that leave the global generators
            alone: others would draw from them in another order than without.

    Attributes:
        waited: Seconds spent waiting for batches so far.
        seconds: Seconds from asking for the first batch to the arrival of the last one so far.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, *, ahead: bool) -> None:
        self._batches = batches
        self._device = device
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda and ahead else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # what the source made so far
        self._next: _Copied | None = None
        self.waited = 0.0
        self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._next = None
        close: Callable[[], None] | None = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images, labels) on the device.

        Raises:
            DataError: If the source cannot load a batch.
        """
        began = time.monotonic()
        while True:
            asked = time.monotonic()
            found = self._take()
            now = time.monotonic()
            self.waited += now - asked
            self.seconds = now - began
            if found is None:
                return
            yield found

    @property
    def input_share(self) -> float:
        """Seconds waited for data over all ``seconds``, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    def _take(self) -> Batch | None:
        if self._stream is None:
            batch = next(self._batches, None)
            return None if batch is None else self._moved(batch)
        found = self._next or self._fetch(self._stream)
        self._next = None
        if found is None:
            return None
        self._next = self._fetch(self._stream)
        here = torch.cuda.current_stream(self._device)
        here.wait_event(found.event)  # the GPU waits, not the caller
        for tensor in found.batch:
            tensor.record_stream(here)  # made on another stream: its memory must outlive its use on this one
        return found.batch

    def _fetch(self, stream: torch.cuda.Stream) -> _Copied | None:
        with torch.cuda.stream(stream):
            batch = next(self._batches, None)
            return None if batch is None else _Copied(self._moved(batch), stream.record_event())

    def _moved(self, batch: Batch) -> Batch:
        images, labels = batch
        return images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)


def waiting_advice(source: Source, epoch: Prefetch) -> str | None:
    """Return what to say about an epoch that waited for ``source``, or ``None`` if it did not for long."""
    if source.advice is None or epoch.input_share <= MUCH or epoch.waited < NOTICEABLE:
        return None
    return f"{epoch.input_share:.0%} of the time of its steps went into waiting for data; {source.advice}"
