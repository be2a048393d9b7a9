"""What the operating system refuses, in words that help: ``OSError`` becomes ``StorageError``."""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from robustcompress.errors import StorageError

_FULL = "Free some space, or choose a folder on another disk."
_DENIED = "Choose a folder that you may write to, or change its permissions."
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "Files may not grow that large here: raise the limit (ulimit -f) or choose another disk.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOTDIR: "A part of this path is a file: choose another folder.",
    errno.EEXIST: "Something of that name is in the way: choose another folder.",
    errno.EISDIR: "A folder of that name is in the way: choose another name.",
    errno.ENOENT: "Check the path.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def explained(action: str, path: Path) -> Generator[None]:
    """Turn an ``OSError`` of the body into one error that names ``path`` and what to do.

    Args:
        action: What is being done to ``path``, as in "cannot <action> <path>".
        path: The file or folder that the user knows.

    Raises:
        StorageError: In place of every ``OSError``.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "Check the disk and the path.")
        raise StorageError(f"cannot {action} {path}: {error.strerror or error}. {advice}") from error
