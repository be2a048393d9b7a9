"""Training states on disk: written in the background, the last few kept, the newest intact one taken up.

The training thread only copies the tensors (to pinned memory on CUDA, where it does not even wait for the
copies). One background thread checks, hashes and writes them; NumPy, hashlib and the system calls let go of
the interpreter's lock there. At most one state is on its way at a time, in one set of buffers:

- A save that falls due meanwhile is put off until the disk is free, and takes the state of that moment. A
  disk that is too slow for the interval thus makes states rarer, never training slower.
- A save that somebody asked for (the end of an epoch, an interrupt) waits for the one before.

What goes wrong in the background is raised in the training thread, at the next step at the latest.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import torch
from torch import Tensor

from robustcompress.errors import RobustCompressError, StorageError
from robustcompress.storage.atomic import remove_leftovers
from robustcompress.storage.faults import explained
from robustcompress.storage.state import load_state, save_state

State: TypeAlias = tuple[dict[str, Tensor], dict[str, object]]
"""Tensors and plain values, as :func:`load_state` returns them."""

_NAME = re.compile(r"state-(\d{9,})\.safetensors")


def _no_check(step: int, tensors: Mapping[str, Tensor]) -> None:
    """Accept every state."""


class Checkpoints:
    """The training states of one stage; a context manager: leaving it waits until all are written.

    Args:
        folder: Made when the first state is saved.
        every_steps: A state is due after so many steps; ``None`` goes by time alone.
        every_seconds: A state is due after so much time.
        keep: How many states stay. Older ones go when a new one is safely on the disk.
        check: Called in the background with the step and the copied tensors; what it raises is raised in the
            training thread, and the state is not written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_seconds: float,
        every_steps: int | None = None,
        keep: int = 2,
        check: Callable[[int, Mapping[str, Tensor]], None] = _no_check,
    ) -> None:
        self._folder = Path(folder)
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._keep = keep
        self._check = check
        self._step = 0
        self._time = time.monotonic()
        self._buffers: dict[str, Tensor] = {}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._is_clean = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        except RobustCompressError as fault:
            if error is None:
                raise
            error.add_note(f"The last training state could not be saved either: {fault}")
        finally:
            self._writer.shutdown()
            self._buffers.clear()

    def due(self, step: int) -> bool:
        """Return whether the state after ``step`` steps should be saved now.

        ``False`` while the one before is still on its way to the disk.

        Raises:
            RobustCompressError: What went wrong with the one before.
        """
        if self._writing is not None and not self._writing.done():
            return False
        self.flush()
        if self._every_steps is not None and step - self._step >= self._every_steps:
            return True
        return time.monotonic() - self._time > self._every_seconds

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, object],
        *,
        constant: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copy a state and have it written; return before that is done.

        Args:
            step: Steps done; names the file. A state of the same step is replaced.
            tensors: May change as soon as this returns.
            values: Plain data that nobody changes any more.
            constant: Further tensors, which nobody changes in place: not copied where they are on the CPU.

        Raises:
            RobustCompressError: What went wrong with the state before.
        """
        self.flush()
        copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in (constant or {}).items():
            copies[name] = tensor if tensor.device.type == "cpu" else self._copy(name, tensor)
        everything = [*tensors.values(), *(constant or {}).values()]
        devices = {tensor.device for tensor in everything if tensor.is_cuda}
        copied = [torch.cuda.current_stream(device).record_event() for device in devices]
        self._step, self._time = step, time.monotonic()
        self._writing = self._writer.submit(self._write, step, copies, values, copied)

    def flush(self) -> None:
        """Wait until the state that is on its way is on the disk.

        Raises:
            StorageError: If it could not be written.
            RobustCompressError: What ``check`` raised.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def newest(self, warn: Callable[[str], None]) -> State | None:
        """Return the newest intact state, tensors on the CPU; ``None`` if none was ever saved.

        Args:
            warn: Told of each damaged file that was passed over.

        Raises:
            StorageError: If there are states and all of them are damaged.
        """
        self.flush()
        faults: list[StorageError] = []
        for step in sorted(self._steps(), reverse=True):
            try:
                state = load_state(self._path(step))
            except StorageError as fault:
                faults.append(fault)
                continue
            for passed in faults:
                warn(f"{passed} Training goes on from the state before it, {self._path(step).name}.")
            self._step = step
            return state
        if faults:
            raise StorageError(
                f"{self._folder}: expected at least one intact training state of {len(faults)}; found none. "
                f"Remove the folder to begin the stage anew. The newest: {faults[0]}"
            ) from faults[0]
        return None

    @torch.no_grad()
    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """Copy into the buffer of that name; from a GPU the copy is only queued, behind the step's work."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=True)

    def _write(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, object],
        copied: Sequence[torch.Event],
    ) -> None:
        """Save the state and remove those that it makes superfluous; runs in the background."""
        for event in copied:
            event.synchronize()
        self._check(step, tensors)
        save_state(self._path(step), tensors, values)
        if not self._is_clean:
            remove_leftovers(self._folder)
            self._is_clean = True
        steps = sorted(self._steps())
        # Later ones are of a course that was given up: damaged states that were passed over.
        later = [other for other in steps if other > step]
        older = [other for other in steps if other <= step][: -self._keep]
        for other in older + later:
            path = self._path(other)
            with explained("remove", path):
                path.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"state-{step:09d}.safetensors"

    def _steps(self) -> list[int]:
        """Return the steps whose states are on the disk."""
        if not self._folder.is_dir():
            return []
        with explained("read", self._folder):
            names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        return [int(name[1]) for name in names if name]
