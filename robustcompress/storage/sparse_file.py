"""Tensors in one safetensors file, each through the codec that takes the fewest bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.storage.atomic import read_bytes
from robustcompress.storage.codecs import Codec, Values, all_codecs, smallest
from robustcompress.storage.container import Entry, pack, unpack
from robustcompress.storage.dtypes import DTYPES, StoredDtype, to_array, to_tensor
from robustcompress.storage.strict_json import dump, shown, validated

METADATA_KEY = "robustcompress"
SCHEMA = 1
MAX_BYTES = 8 * 2**30
"""Default limit on what a file may claim to hold once it is dense: 8 GiB."""

_ALWAYS = 2**26  # bytes that tensors may take whatever the file's size,
_TIMES = 2**16  # and for each of its bytes

_BFLOAT16_NEGATIVE_ZERO = 0x8000
_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_NUMPY = {dtype.numpy: dtype.code for dtype in DTYPES if dtype.code != "BF16"}

_Dimension = Annotated[int, Field(ge=0, le=2**48)]


class _Claim(BaseModel):
    """What the metadata says of one tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    codec: str
    dtype: Literal[
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool",
    ]  # fmt: skip
    shape: Annotated[list[_Dimension], Field(max_length=32)]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored(self) -> StoredDtype:
        return _BY_NAME[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Bytes when dense; a dimension of 0 counts as 1, so that its neighbours cannot be absurd."""
        return math.prod(max(1, dimension) for dimension in self.shape) * self.stored.numpy.itemsize


class _Claims(BaseModel):
    """The metadata of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    schema_version: int
    tensors: dict[str, _Claim]


def write_tensors(tensors: Mapping[str, Tensor], *, codecs: Sequence[Codec] | None = None) -> bytes:
    """Return a file that holds ``tensors``; equal tensors give equal bytes.

    Values come back bit for bit (NaN payloads too), except that -0.0 becomes +0.0. Devices, strides and
    memory formats are not kept.

    Args:
        tensors: By name.
        codecs: Those to choose from for each tensor; by default all.

    Raises:
        StorageError: If a tensor cannot be stored; the message names it.
    """
    codecs = codecs or all_codecs()
    entries: dict[str, Entry] = {}
    claims: dict[str, object] = {}
    for name in sorted(tensors):
        dtype, values = to_array(name, tensors[name])
        if dtype.name == "bfloat16":
            values = values * (values != _BFLOAT16_NEGATIVE_ZERO)  # its bits look like an integer to codecs
        codec, parts = smallest(values, codecs)
        claims[name] = {"codec": codec.kind, "dtype": dtype.name, "shape": list(tensors[name].shape)}
        for part, array in parts.items():
            entries[f"{name}//{codec.kind}.{part}"] = Entry(_BY_NUMPY[array.dtype], array.shape, array)
    metadata = dump({"schema_version": SCHEMA, "tensors": claims}, where="tensors")
    return pack(entries, {METADATA_KEY: metadata})


def read_tensors(
    source: Path | bytes,
    *,
    expected_shapes: Mapping[str, tuple[int, ...]] | None = None,
    max_bytes: int = MAX_BYTES,
    where: str | None = None,
) -> dict[str, Tensor]:
    """Return the tensors that ``write_tensors`` put into a file, on the CPU and contiguous.

    A sparse tensor may be far larger than its file. So everything that the file claims is checked, and
    the total held against ``max_bytes``, before anything of that size is allocated. Nothing is ever
    imported or run because a file names it. Whatever the limit, they take at most 64 MiB and 65,536 bytes
    for each byte of the file.

    Args:
        source: The file, or what it holds.
        expected_shapes: If given, the tensors must have these names and shapes.
        max_bytes: The most that the file, and its tensors together once dense, may take.
        where: What errors call the file; by default its path.

    Raises:
        StorageError: If the file cannot be read or is not as it must be; the message names file and field.
    """
    where = where or ("the tensor file" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_bytes(source, max_bytes=max_bytes)
    entries, metadata = unpack(data, where=where)
    if set(metadata) != {METADATA_KEY}:
        raise StorageError(
            f"{where}: expected the one metadata key {METADATA_KEY!r}; got {shown(sorted(metadata))}. "
            "It is a safetensors file, but was not written by robustcompress."
        )
    claims = validated(_Claims, metadata[METADATA_KEY], where=f"{where}, metadata", schema=SCHEMA).tensors
    _check_claims(claims, expected_shapes, max_bytes, len(data), where)
    codecs = _known_codecs(claims, where)
    parts = _parts_by_tensor(entries, claims, where)
    return {
        name: _decoded(name, claim, codecs[claim.codec], parts[name], where) for name, claim in claims.items()
    }


def _check_claims(
    claims: Mapping[str, _Claim],
    expected_shapes: Mapping[str, tuple[int, ...]] | None,
    max_bytes: int,
    file_bytes: int,
    where: str,
) -> None:
    total = sum(claim.size_bytes for claim in claims.values())
    if total > max_bytes:
        raise StorageError(
            f"{where}: its tensors would take {total} bytes; the limit is {max_bytes}. "
            "Raise max_bytes if you trust it."
        )
    if total > _ALWAYS + _TIMES * file_bytes:
        raise StorageError(
            f"{where}: its tensors would take {total} bytes, which no file of {file_bytes} bytes that was "
            "written for a network claims. The file was edited or damaged."
        )
    if expected_shapes is None:
        return
    if set(claims) != set(expected_shapes):
        missing, extra = (
            sorted(set(expected_shapes) - set(claims)),
            sorted(set(claims) - set(expected_shapes)),
        )
        raise StorageError(f"{where}: tensors missing: {shown(missing)}; not expected: {shown(extra)}.")
    for name, claim in claims.items():
        if tuple(claim.shape) != tuple(expected_shapes[name]):
            raise StorageError(
                f"{where}: tensors.{name}.shape: expected {list(expected_shapes[name])}; got {claim.shape}."
            )


def _known_codecs(claims: Mapping[str, _Claim], where: str) -> dict[str, Codec]:
    """Return all codecs by kind, those that the file names among them. Naming one imports nothing."""
    known = {codec.kind: codec for codec in all_codecs()}
    for name, claim in claims.items():
        if claim.codec not in known:
            raise StorageError(
                f"{where}: tensors.{name}.codec: expected one of {', '.join(known)}; "
                f"got {shown(claim.codec)}. Upgrade robustcompress or install the package that provides it."
            )
    return known


def _parts_by_tensor(
    entries: Mapping[str, Entry], claims: Mapping[str, _Claim], where: str
) -> dict[str, dict[str, Values]]:
    parts: dict[str, dict[str, Values]] = {name: {} for name in claims}
    for entry_name, entry in entries.items():
        name, _, rest = entry_name.rpartition("//")
        claim = claims.get(name)
        kind, _, part = rest.partition(".")
        if claim is None or kind != claim.codec or entry.code == "BF16":
            raise StorageError(
                f"{where}: entry {shown(entry_name)} belongs to no tensor that the metadata describes."
            )
        if len(entry.shape) != 1:
            raise StorageError(
                f"{where}: entry {shown(entry_name)}: shape: expected one dimension; got {list(entry.shape)}."
            )
        parts[name][part] = entry.values
    return parts


def _decoded(name: str, claim: _Claim, codec: Codec, parts: Mapping[str, Values], where: str) -> Tensor:
    at = f"{where}: tensor {shown(name)}"
    try:
        values = codec.decode(parts, claim.size, claim.stored.numpy)
    except StorageError as error:
        raise StorageError(f"{at}: {error}") from error
    except MemoryError as error:
        raise StorageError(f"{at}: {claim.size_bytes} bytes do not fit in memory.") from error
    return to_tensor(values, claim.stored, claim.shape)
