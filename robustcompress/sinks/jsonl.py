"""Events as one JSON object a line."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from robustcompress.errors import StorageError
from robustcompress.events import Event


class JsonlSink:
    """Appends each event to a file, with the time in UTC; a context manager that closes the file.

    Args:
        path: Made if it is missing; its folder too.

    Raises:
        StorageError: If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line that a full disk refused must not come up again when the file is closed.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}.") from error

    def __call__(self, event: Event) -> None:
        """Write one event."""
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event.as_dict()}
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written: {error.strerror}.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
