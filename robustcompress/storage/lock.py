"""Locks that end with the process that holds them, however it ends: the kernel lets go of them."""

import json
import os
import socket
import sys
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from robustcompress.errors import RunLockedError, StorageError
from robustcompress.storage.faults import explained

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, wait: bool) -> None:
        # One byte far behind the text, which stays readable: a lock forbids reading there.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int, *, wait: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file; ``False`` if another holder has it.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        _lock(descriptor, wait=False)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def held(path: Path) -> Generator[None]:
    """Keep other processes that ask the same out of ``path``, a file or folder, until the body ends.

    This only guards against rare races, so where ``path`` cannot be locked (Windows, some network file
    systems, a folder that may be entered but not read) the body runs unguarded.
    """
    if os.name == "nt":  # folders cannot be opened there, and open files not be renamed
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        yield
        return
    try:
        with suppress(OSError):
            _lock(descriptor, wait=True)
        yield
    finally:
        # Closing alone would leave the lock to a process forked meanwhile, which has the descriptor too.
        with suppress(OSError):
            _unlock(descriptor)
        os.close(descriptor)


class RunLock:
    """Exclusive use of a run folder, as a context manager.

    The lock is advisory and lies on ``run.lock`` in the folder; that file stays behind and holds the
    process number and host of its last holder, for the message. A process that dies, even by ``kill
    -9``, loses the lock at once; processes that it forked do not inherit it.

    Args:
        folder: The run folder; it is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = Path(folder) / "run.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            RunLockedError: If another process holds it, or this one already does.
            StorageError: If the folder cannot be made, written or locked.
        """
        with explained("lock", self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._forget_after_fork()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, descriptor: int) -> None:
        try:
            taken = try_lock(descriptor)
        except OSError as error:
            raise StorageError(
                f"cannot lock {self._path}: {error.strerror}. "
                "The file system has no locks: put the run folder on a local disk."
            ) from error
        if not taken:
            raise RunLockedError(
                f"{self._path.parent} is in use by {_holder(descriptor)}. "
                "Wait until it ends, stop it, or choose another run folder."
            )
        with explained("write", self._path):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def _forget_after_fork(self) -> None:
        """Close the copy that a forked child inherits: it would keep the lock beyond our own death."""
        if not hasattr(os, "register_at_fork"):
            return
        reference = weakref.ref(self)

        def close_copy() -> None:
            lock = reference()
            if lock is not None and lock._descriptor is not None:
                os.close(lock._descriptor)
                lock._descriptor = None

        os.register_at_fork(after_in_child=close_copy)


def _holder(descriptor: int) -> str:
    """Say who wrote the lock file; a holder that has not done so yet is just another process."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(descriptor, 4096))
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
