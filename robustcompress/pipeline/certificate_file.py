"""Certificates on the disk, one a line, so that a long certification can be continued."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from robustcompress.errors import ConfigError, StorageError
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
        first = json.dumps(identity, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            lines = whole[: whole.rfind(b"\n") + 1].splitlines()
            if lines:
                self._check(lines[0], first)
            self.finished = tuple(self._parse(number, line) for number, line in enumerate(lines[1:], start=2))
            if not lines:
                path.write_text(first + "\n", encoding="utf-8")
            elif not whole.endswith(b"\n"):
                os.truncate(path, whole.rfind(b"\n") + 1)
        except OSError as error:
            raise StorageError(f"{path}: cannot be used for certificates: {error.strerror}.") from error

    def append(self, certificate: Certificate) -> None:
        """Add a certificate; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(certificate.model_dump_json() + "\n")

    def _check(self, found: bytes, expected: str) -> None:
        try:
            held = json.loads(found)
        except ValueError as error:
            raise StorageError(f"{self.path} is no file of certificates. Name another one.") from error
        wanted: dict[str, object] = json.loads(expected)
        if held != wanted:
            others = held if isinstance(held, dict) else {}
            names = [name for name in wanted if others.get(name) != wanted[name]]
            raise ConfigError(
                f"{self.path} holds certificates of something else: {', '.join(names) or 'settings'} differ. "
                "Name another file, or certify what it was begun with."
            )

    def _parse(self, number: int, line: bytes) -> Certificate:
        try:
            return Certificate.model_validate_json(line)
        except ValidationError as error:
            raise StorageError(
                f"{self.path}, line {number}: expected a certificate; got {line[:60]!r}. Remove the line."
            ) from error
