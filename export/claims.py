"""What an ONNX file claims of itself: robust accuracy, and all that is needed to measure it again.

Claims are one entry of the file's metadata. It is written behind the file's other bytes, none of which
change, so that the file without its claims is the one that was exported, to the byte.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from robustcompress.errors import ExportError, StorageError
from robustcompress.export.onnx_file import read_model
from robustcompress.export.soundness import LARGEST_FILE
from robustcompress.storage.atomic import read_bytes, write_bytes
from robustcompress.storage.strict_json import parse

CLAIMS_KEY = "robustcompress.claims"
"""Metadata key of the claims, JSON."""

_METADATA_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["metadata_props"].number
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Written:
    """A file as it is after its claims were written.

    Attributes:
        sha256: Of the whole file, hexadecimal.
        size_bytes: Of the whole file.
    """

    sha256: str
    size_bytes: int


def write_claims(path: str | os.PathLike[str], claims: Mapping[str, Any]) -> Written:
    """Put ``claims`` into the ONNX file ``path``, in place of those that it holds.

    The file is replaced atomically. Apart from the claims it keeps every byte.

    Args:
        path: The file.
        claims: Plain data that JSON can hold.

    Raises:
        StorageError: If the file cannot be read or written.
        ExportError: If it is no ONNX model or would be larger than 2 GB, or JSON cannot hold the claims.
    """
    path = Path(path)
    bare = without_claims(_read(path), name=path.name)
    try:
        text = json.dumps(claims, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{path.name}: claims must be plain data that JSON can hold: {error}.") from error
    entry = onnx.ModelProto()
    entry.metadata_props.add(key=CLAIMS_KEY, value=text)
    data = bare + entry.SerializeToString()
    if len(data) >= LARGEST_FILE:
        raise ExportError(f"{path.name}: an ONNX file holds at most 2 GB; with its claims it would not fit.")
    write_bytes(path, data)
    return Written(hashlib.sha256(data).hexdigest(), len(data))


def read_claims(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what the ONNX file ``path`` claims; ``None`` if it claims nothing.

    Raises:
        StorageError: If the file cannot be read.
        ExportError: If it is no ONNX model, or its claims are no JSON object.
    """
    path = Path(path)
    found = [entry.value for entry in read_model(path).metadata_props if entry.key == CLAIMS_KEY]
    if not found:
        return None
    try:
        return parse(found[-1], where=f"{path.name}: its claims", advice="Evaluate the run again.")
    except StorageError as error:
        raise ExportError(str(error)) from error


def bare_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the ONNX file ``path`` without its claims: of the file as it was exported.

    Raises:
        StorageError: If the file cannot be read.
        ExportError: If it is no ONNX model.
    """
    path = Path(path)
    return hashlib.sha256(without_claims(_read(path), name=path.name)).hexdigest()


def without_claims(data: bytes, *, name: str = "(bytes)") -> bytes:
    """Return the bytes of an ONNX file without those of its claims.

    Raises:
        ExportError: If they are no ONNX model.
    """
    read_model(data)
    kept = [
        data[start:stop]
        for field, start, stop in _fields(data, name)
        if not _is_claims(field, data[start:stop])
    ]
    return b"".join(kept)


def _read(path: Path) -> bytes:
    return read_bytes(path, max_bytes=LARGEST_FILE)


def _is_claims(field: int, record: bytes) -> bool:
    """Return whether one field of a model, tag and all, is an entry of claims."""
    if field != _METADATA_FIELD:
        return False
    model = onnx.ModelProto.FromString(record)
    return [entry.key for entry in model.metadata_props] == [CLAIMS_KEY]


def _fields(data: bytes, name: str) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of the outermost message.

    Source:
        https://protobuf.dev/programming-guides/encoding
    """
    start = 0
    while start < len(data):
        tag, place = _varint(data, start)
        kind = tag & 7
        if kind == _VARINT:
            _, place = _varint(data, place)
        elif kind == _DELIMITED:
            length, place = _varint(data, place)
            place += length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ExportError(f"{name}: not an ONNX model: a field of kind {kind} at byte {start}.")
        yield tag >> 3, start, place
        start = place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
