"""The safetensors container: named dense arrays and some text in one file.

Own code rather than the library's, for three reasons: the bytes of a file depend on its content alone,
not on a library's version or the order of a hash table; every fault is named; and a file is read from the
very bytes whose hash was checked, without a copy.

Source:
    Format description at https://github.com/huggingface/safetensors#format.
    Differs: dtypes of less than a byte, float8 and complex numbers are refused.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Values
from robustcompress.storage.dtypes import DTYPES
from robustcompress.storage.strict_json import parse, shown

_METADATA = "__metadata__"
_LONGEST_HEADER = 100_000_000
_GREATEST = 2**48  # of a dimension or an offset; keeps products far from overflow
_MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class Entry:
    """One array of a container.

    Attributes:
        code: Its dtype as safetensors writes it, such as ``F32``.
        shape: Its shape.
        values: 1-D, C order; bfloat16 as uint16. Read-only when it comes from a file.
    """

    code: str
    shape: tuple[int, ...]
    values: Values


def pack(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file; the same content gives the same bytes.

    Raises:
        StorageError: If a name is reserved or not valid Unicode.
    """
    return b"".join(pieces(entries, metadata))


def pieces(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return what :func:`pack` joins, to be written one after the other: arrays are not copied.

    Arrays lie by falling item size, then by name, so that each is aligned to its items.

    Raises:
        StorageError: If a name is reserved or not valid Unicode.
    """
    if _METADATA in entries:
        raise StorageError(
            f"a tensor cannot be called {_METADATA!r}: safetensors files reserve that. Rename it."
        )
    names = sorted(entries, key=lambda name: (-entries[name].values.itemsize, name))
    header: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))}
    blocks: list[memoryview] = []
    end = 0
    for name in names:
        entry = entries[name]
        values = entry.values.astype(entry.values.dtype.newbyteorder("<"), copy=False)
        block = np.ascontiguousarray(values).view(np.uint8).data
        header[name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": [end, end + len(block)],
        }
        blocks.append(block)
        end += len(block)
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise StorageError(
            "expected names of valid Unicode; a tensor's name has a lone surrogate."
        ) from error
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *blocks]


def unpack(data: bytes, *, where: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the entries and the metadata of a safetensors file.

    The arrays are views of ``data``: nothing is allocated for them.

    Raises:
        StorageError: If ``data`` is not such a file, complete and without a byte too many.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LONGEST_HEADER):
        raise StorageError(f"{where} is not a safetensors file, or was cut short: its header does not fit.")
    header = parse(data[8 : 8 + length], where=f"{where}, header")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise StorageError(f"{where}: {_METADATA}: expected text by name; got {shown(metadata)}.")
    body = memoryview(data)[8 + length :]
    spans: list[tuple[int, int]] = []
    entries: dict[str, Entry] = {}
    for name, claim in header.items():
        at = f"{where}: entry {shown(name)}"
        code, shape, begin, end = _claim(claim, at, len(body))
        spans.append((begin, end))
        entries[name] = Entry(code, shape, _array(body[begin:end], code, at))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise StorageError(f"{where}: arrays overlap or leave a hole at byte {min(begin, reached)}.")
        reached = end
    if reached != len(body):
        raise StorageError(f"{where}: expected {reached} bytes of data; got {len(body)}. It was damaged.")
    return entries, metadata


def _claim(claim: object, at: str, room: int) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype code, shape, begin and end that a header entry claims, checked against each other."""
    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise StorageError(f"{at}: expected dtype, shape and data_offsets; got {shown(claim)}.")
    dtype = next((known for known in DTYPES if known.code == claim["dtype"]), None)
    if dtype is None:
        codes = ", ".join(known.code for known in DTYPES)
        raise StorageError(f"{at}: dtype: expected one of {codes}; got {shown(claim['dtype'])}.")
    shape = _integers(claim["shape"], f"{at}: shape")
    offsets = _integers(claim["data_offsets"], f"{at}: data_offsets")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise StorageError(f"{at}: data_offsets: expected two within {room} bytes; got {list(offsets)}.")
    claimed = math.prod(shape) * dtype.numpy.itemsize
    if claimed != offsets[1] - offsets[0]:
        raise StorageError(
            f"{at}: shape {list(shape)} of {dtype.name} needs {claimed} bytes; "
            f"data_offsets give {offsets[1] - offsets[0]}."
        )
    return dtype.code, shape, offsets[0], offsets[1]


def _integers(value: object, at: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        raise StorageError(
            f"{at}: expected a list of at most {_MOST_DIMENSIONS} integers; got {shown(value)}."
        )
    for item in value:
        if type(item) is not int or not 0 <= item <= _GREATEST:
            raise StorageError(f"{at}: expected integers from 0 to 2**48; got {shown(item)}.")
    return tuple(value)


def _array(block: memoryview, code: str, at: str) -> Values:
    dtype: np.dtype[Any] = next(known.numpy for known in DTYPES if known.code == code)
    if dtype.kind == "b":
        if np.frombuffer(block, np.uint8).max(initial=0) > 1:
            raise StorageError(f"{at}: a boolean is neither 0 nor 1.")
        return np.frombuffer(block, np.bool_)
    return np.frombuffer(block, dtype.newbyteorder("<")).astype(dtype, copy=False)
