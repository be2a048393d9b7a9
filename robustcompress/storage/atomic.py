"""Write files and folders such that whoever reads sees the old ones or the new ones, never a mixture.

A new file or folder is built beside its target under a hidden name, forced to the disk and renamed. What
a killed process leaves behind is recognised by its name and by nobody holding its lock, and is removed by
the next write (or by the next read, for folders)::

    .<name>.tmp-<8 hex digits>    a file in the making
    .<name>.new-<8 hex digits>    a folder in the making, or an old one on its way out
    .<name>.old                   the old folder, complete, between the two renames of a swap
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from robustcompress.errors import StorageError
from robustcompress.storage.faults import explained
from robustcompress.storage.lock import held, try_lock

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_WINDOWS = os.name == "nt"
_SYNC = os.O_RDWR if _WINDOWS else os.O_RDONLY
_FOLDERS_HAVE_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)


def write_bytes(path: Path, data: bytes | bytearray | memoryview | Sequence[bytes | memoryview]) -> None:
    """Replace the file ``path`` by ``data``, atomically and durably; missing folders are made.

    The file gets mode 0644 less the umask, as one would expect of a file that others are to read.

    Args:
        path: The file.
        data: Its bytes, whole or in pieces that follow each other.

    Raises:
        StorageError: If it cannot be written. The old file, if any, is then untouched.
    """
    path = Path(path)
    with explained("write", path), ExitStack() as alive:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
        with held(path.parent):
            _sweep(path, "tmp")
            descriptor = os.open(temporary, _CREATE, 0o644)
            alive.enter_context(held(temporary))
        try:
            try:
                for piece in [data] if isinstance(data, bytes | bytearray | memoryview) else data:
                    _write_all(descriptor, memoryview(piece))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the files in the making that killed processes left in ``folder``, whatever their names.

    ``write_bytes`` looks only for those of the file that it writes.

    Raises:
        StorageError: If the folder is missing or cannot be locked.
    """
    with explained("clean", folder), held(folder):
        _remove_unheld(folder, re.compile(r"\..+\.tmp-[0-9a-f]{8}"))


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return what the file ``path`` holds.

    Raises:
        StorageError: If it is missing, is no regular file, is larger than ``max_bytes`` or cannot be read.
    """
    path = Path(path)
    with explained("read", path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"cannot read {path}: it is not a regular file. Check the path.")
        if status.st_size > max_bytes:
            raise StorageError(
                f"{path}: expected at most {max_bytes} bytes; the file has {status.st_size}. "
                "Raise max_bytes if you trust it."
            )
        try:
            return path.read_bytes()
        except MemoryError as error:
            raise StorageError(f"cannot read {path}: {status.st_size} bytes do not fit in memory.") from error


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Build a folder out of sight, then put it at ``path`` in the place of what was there.

    The body writes plain files into the folder that it is given. When it ends, they are forced to the
    disk and the folder is swapped in; if it raises, nothing has changed. A process killed at any moment
    leaves the old folder, the new one, or what ``recover`` makes one of them.

    Args:
        path: The folder; a link is followed. Missing folders above it are made.

    Yields:
        An empty folder on the same file system.

    Raises:
        StorageError: If the folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    with explained("write", path), ExitStack() as alive:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = _hidden(path)
        with held(path.parent):
            _settle(path)
            holder.mkdir()
            alive.enter_context(held(holder))
        try:
            # One level deeper, so that the lock on `holder` is not in the way of whoever locks what we yield.
            fresh = holder / "folder"
            fresh.mkdir()
            yield fresh
            _sync_tree(fresh)
            with held(path.parent):
                _swap(fresh, path)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def recover(path: Path) -> None:
    """Finish or undo a swap of the folder ``path`` that a crash cut short, and remove leftovers.

    Harmless where nothing is wrong, where ``path`` does not exist, and while others write it.

    Raises:
        StorageError: If the old folder is there but cannot be put back.
    """
    with settled(path):
        pass


@contextmanager
def settled(path: Path) -> Generator[Path]:
    """Recover the folder ``path`` and keep writers from swapping it while the body reads.

    Yields:
        The folder, links followed. It may not exist.

    Raises:
        StorageError: If the old folder is there but cannot be put back.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        yield path
        return
    with held(path.parent):
        with explained("recover", path):
            _settle(path)
        yield path


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _swap(fresh: Path, path: Path) -> None:
    """Rename ``fresh`` to ``path``, the old ``path`` out of the way first; the parent is held."""
    _settle(path)
    replaces = os.path.lexists(path)
    if replaces and not path.is_dir():
        raise StorageError(f"cannot write the folder {path}: a file of that name is in the way.")
    if replaces:
        os.rename(path, _old(path))
    try:
        os.rename(fresh, path)
    except BaseException:
        if replaces:
            os.rename(_old(path), path)
        raise
    _sync_folder(path.parent)
    with suppress(OSError):  # if it stays, the next read or write removes it
        os.rename(_old(path), fresh)  # into the hidden folder, which is removed as a whole


def _settle(path: Path) -> None:
    """Bring ``path`` to one of its complete states; the parent is held."""
    old = _old(path)
    if old.is_dir():
        if os.path.lexists(path):
            # Renamed first: a half-removed folder must never look like one that can be put back.
            with suppress(OSError):
                os.rename(old, _hidden(path))
        else:
            os.rename(old, path)
            _sync_folder(path.parent)
    _sweep(path, "new")


def _sweep(path: Path, kind: str) -> None:
    """Remove leftovers of ``path`` that no living process holds; failing to is no one's loss."""
    _remove_unheld(path.parent, re.compile(re.escape(f".{path.name}.{kind}-") + "[0-9a-f]{8}"))


def _remove_unheld(folder: Path, pattern: re.Pattern[str]) -> None:
    if _WINDOWS:
        return  # folders have no locks there, so that leftovers cannot be told from work in progress
    try:
        names = [name for name in os.listdir(folder) if pattern.fullmatch(name)]
    except PermissionError:
        return
    for name in names:
        leftover = folder / name
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                if not try_lock(descriptor):
                    continue
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    data = data.cast("B") if data.nbytes else data
    done = 0
    while done < data.nbytes:
        done += os.write(descriptor, data[done:])


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            descriptor = os.open(Path(root) / name, _SYNC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk, where the system can do that to a folder."""
    if _WINDOWS:
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # may be written and entered, but not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FOLDERS_HAVE_NO_SYNC:
            raise
    finally:
        os.close(descriptor)
