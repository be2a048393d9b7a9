"""Fetch a data set's files and check them against the sums that their authors publish."""

import hashlib
import io
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustcompress.errors import DataError
from robustcompress.storage.atomic import write_bytes

Progress = Callable[[str, int, int], None]
"""Told the file, the bytes so far, and all of them (0 if the server does not say)."""

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Download:
    """One file to fetch.

    Attributes:
        urls: Where it may be had, tried in order.
        md5: Its sum, hexadecimal. It tells damage, and is what the authors publish.
        members: For a .tar.gz: the files of it that are wanted, and no others. Empty keeps the file itself.
        most_bytes: Stop if the server sends more.
    """

    urls: tuple[str, ...]
    md5: str
    members: tuple[str, ...] = ()
    most_bytes: int = 2 * 2**30

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files that come of it, relative to the folder."""
        return self.members or (PurePosixPath(self.urls[0]).name,)


def fetch(downloads: Sequence[Download], folder: Path, *, progress: Progress | None = None) -> list[Path]:
    """Bring files into ``folder``; those that are there already are not fetched again.

    Args:
        downloads: What to fetch.
        folder: It is made.
        progress: Told after each piece.

    Returns:
        Paths of all files, fetched or not.

    Raises:
        DataError: If no address answers (the message names them all, and the paths where the files are
            expected) or what came is not what it must be.
    """
    for download in downloads:
        paths = [folder / name for name in download.names]
        if all(path.is_file() for path in paths):
            continue
        data = _first_answer(download, folder, progress)
        for name, content in _contents(download, data).items():
            write_bytes(folder / name, content)
    return [folder / name for download in downloads for name in download.names]


def _first_answer(download: Download, folder: Path, progress: Progress | None) -> bytes:
    failures: list[str] = []
    for url in download.urls:
        try:
            data = _get(url, download.most_bytes, progress)
        except (OSError, ValueError) as error:
            failures.append(f"{url}: {error}")
            continue
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found == download.md5:
            return data
        failures.append(f"{url}: expected MD5 {download.md5}; got {found} of {len(data):,} bytes")
    tried = "".join(f"\n  {failure}" for failure in failures)
    wanted = "".join(f"\n  {folder / name}" for name in download.names)
    raise DataError(
        f"{PurePosixPath(download.urls[0]).name} cannot be fetched; tried:{tried}\nWhere there is no "
        f"network, fetch it on another machine and put it here:{wanted}"
    )


def _get(url: str, most_bytes: int, progress: Progress | None) -> bytes:
    """Return what ``url`` holds.

    Raises:
        OSError: If it cannot be had.
        ValueError: If it is too long or ends early.
    """
    data = bytearray()
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
        whole = int(answer.headers.get("Content-Length") or 0)
        while piece := answer.read(_CHUNK):
            data += piece
            if len(data) > most_bytes:
                raise ValueError(f"sends more than {most_bytes:,} bytes")
            if progress is not None:
                progress(PurePosixPath(url).name, len(data), whole)
    if whole and len(data) != whole:
        raise ValueError(f"broke off after {len(data):,} of {whole:,} bytes")
    return bytes(data)


def _contents(download: Download, data: bytes) -> dict[str, bytes]:
    """Return what to write, by name; nothing of an archive decides where."""
    if not download.members:
        return {download.names[0]: data}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for entry in archive:
                wanted = entry.isfile() and entry.name in download.members
                file = archive.extractfile(entry) if wanted else None
                if file is not None:
                    found[entry.name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{download.urls[0]}: is no .tar.gz: {error}.") from error
    missing = [name for name in download.members if name not in found]
    if missing:
        raise DataError(f"{download.urls[0]}: lacks {', '.join(missing)}.")
    return found
