"""Certificates on the disk, one a line: so a long certification is continued, shared out and merged."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from robustcompress.errors import ConfigError, DataError, StorageError
from robustcompress.robustness.certifiers import Certificate


class CertificateFile:
    """A file of JSON lines: first what is certified and how, then a certificate each.

    A line that a killed process left unfinished is dropped. One process writes at a time.

    Attributes:
        path: The file.
        finished: Certificates that it held when it was opened.
    """

    path: Path
    finished: tuple[Certificate, ...]

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        """Open a file to go on with, or begin it; missing folders are made.

        Args:
            path: The file.
            identity: What certificates depend on, as plain data. A file of another one is refused.

        Raises:
            ConfigError: If the file holds certificates of something else.
            StorageError: If it cannot be read or written, or is no such file.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            lines = _whole_lines(whole)
            self.finished = _parsed(path, lines, identity)
            if not lines:
                path.write_text(json.dumps(identity, sort_keys=True) + "\n", encoding="utf-8")
            elif not whole.endswith(b"\n"):
                os.truncate(path, whole.rfind(b"\n") + 1)
        except OSError as error:
            raise StorageError(f"{path}: cannot be used for certificates: {error.strerror}.") from error

    def append(self, certificate: Certificate) -> None:
        """Add a certificate; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(certificate.model_dump_json() + "\n")


def read_certificates(path: Path, identity: Mapping[str, object]) -> tuple[Certificate, ...]:
    """Return the certificates of a file; it stays as it is.

    Args:
        path: The file.
        identity: What certificates depend on, as plain data. A file of another one is refused.

    Raises:
        ConfigError: If the file holds certificates of something else.
        StorageError: If it cannot be read, or is no such file.
    """
    try:
        return _parsed(path, _whole_lines(path.read_bytes()), identity)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read for certificates: {error.strerror}.") from error


def united(groups: Iterable[Iterable[Certificate]]) -> tuple[Certificate, ...]:
    """Return all certificates, each image's once, in the order of the images.

    Raises:
        DataError: If an image has two that differ.
    """
    found: dict[int, Certificate] = {}
    for certificate in (certificate for group in groups for certificate in group):
        if found.setdefault(certificate.index, certificate) != certificate:
            raise DataError(
                f"image {certificate.index} has two certificates that differ: radius "
                f"{found[certificate.index].radius:g} and {certificate.radius:g}. Merge files of one version "
                "of the library and of one machine's kernels, or certify the image anew."
            )
    return tuple(found[index] for index in sorted(found))


def _whole_lines(whole: bytes) -> list[bytes]:
    return whole[: whole.rfind(b"\n") + 1].splitlines()


def _parsed(path: Path, lines: list[bytes], identity: Mapping[str, object]) -> tuple[Certificate, ...]:
    if lines:
        _check(path, lines[0], identity)
    return tuple(_certificate(path, number, line) for number, line in enumerate(lines[1:], start=2))


def _check(path: Path, found: bytes, identity: Mapping[str, object]) -> None:
    try:
        held = json.loads(found)
    except ValueError as error:
        raise StorageError(f"{path} is no file of certificates. Name another one.") from error
    wanted: dict[str, object] = json.loads(json.dumps(identity))
    if held != wanted:
        others = held if isinstance(held, dict) else {}
        names = [name for name in wanted if others.get(name) != wanted[name]]
        raise ConfigError(
            f"{path} holds certificates of something else: {', '.join(names) or 'settings'} differ. "
            "Name another file, or certify what it was begun with."
        )


def _certificate(path: Path, number: int, line: bytes) -> Certificate:
    try:
        return Certificate.model_validate_json(line)
    except ValidationError as error:
        raise StorageError(
            f"{path}, line {number}: expected a certificate; got {line[:60]!r}. Remove the line."
        ) from error
