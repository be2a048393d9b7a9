"""Tensors to deploy in one small safetensors file: many share a code, and values may have fewer bits.

A file of :mod:`robustcompress.storage.sparse_file` spends some 300 bytes a tensor on names, which is much
beside a small network. Here tensors alike are coded one behind the other. Read it with
:mod:`robustcompress.storage.numpy_reader` where there is no PyTorch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.storage import numpy_reader
from robustcompress.storage.atomic import read_bytes
from robustcompress.storage.codecs import Codec, Values, smallest
from robustcompress.storage.codecs.bitmask import Bitmask
from robustcompress.storage.codecs.dense import Dense
from robustcompress.storage.codecs.gaps import Gaps
from robustcompress.storage.codecs.rice import Rice
from robustcompress.storage.container import Entry, pack
from robustcompress.storage.dtypes import DTYPES, to_array, to_tensor
from robustcompress.storage.kept import nonzero
from robustcompress.storage.sparse_file import MAX_BYTES, METADATA_KEY
from robustcompress.storage.strict_json import dump

SCHEMA = 2
BITS = {"float16": 16, "int8": 8, "int6": 6, "int4": 4}
# Others can be installed, but a reader of NumPy alone would not know them.
CODECS: tuple[Codec, ...] = (Bitmask(), Dense(), Gaps(), Rice())
_PACK_BYTES = 350  # what a pack costs in the header, measured on files
_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_NUMPY = {dtype.numpy: dtype.code for dtype in DTYPES if dtype.code != "BF16"}


class FewerBits(Protocol):
    """A float32 tensor in fewer bits: its values are ``codes``, times ``scale`` along the first axis."""

    @property
    def kind(self) -> str:
        """``float16``, ``int8``, ``int6`` or ``int4``."""
        ...

    @property
    def codes(self) -> npt.NDArray[Any]:
        """float16, or whole numbers in int8."""
        ...

    @property
    def scale(self) -> npt.NDArray[np.float32] | None:
        """One a row; ``None`` for float16."""
        ...

    @property
    def half_scale(self) -> npt.NDArray[np.float16] | None:
        """The same in units of 2**-12, where float16 holds all of them exactly."""
        ...


@dataclass(frozen=True, eq=False)
class _Item:
    """One tensor as it is stored."""

    name: str
    dtype: str
    values: str
    shape: tuple[int, ...]
    codes: Values
    scales: npt.NDArray[Any] | None
    kept: int

    @property
    def kind(self) -> tuple[str, str, str]:
        """What must be equal within a pack."""
        return self.dtype, self.values, "" if self.scales is None else self.scales.dtype.name

    @property
    def bits(self) -> int:
        """Of a value."""
        return BITS.get(self.values, 8 * self.codes.itemsize)


def write_packed(
    tensors: Mapping[str, Tensor],
    *,
    coded: Mapping[str, FewerBits] = MappingProxyType({}),
    about: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return a file that holds ``tensors``; equal input gives equal bytes.

    Args:
        tensors: By name. Values come back bit for bit, except that -0.0 becomes +0.0.
        coded: By name, those of ``tensors`` that are stored in fewer bits instead, and come back so.
        about: Whatever the file should say of itself.

    Raises:
        StorageError: If a tensor cannot be stored, or ``coded`` names none of ``tensors``.
    """
    unknown = sorted(set(coded) - set(tensors))
    if unknown:
        raise StorageError(f"expected coded values of tensors; got {unknown[0]!r}, which is none of them.")
    items = [_item(name, tensors[name], coded.get(name)) for name in sorted(tensors)]
    kinds = sorted({item.kind for item in items})
    packs = [part for kind in kinds for part in _grouped([item for item in items if item.kind == kind])]
    entries: dict[str, Entry] = {}
    claims: dict[str, object] = {}
    for place, members in enumerate(packs):
        members.sort(key=lambda item: item.name)
        codec, parts = _encoded(members)
        claims[str(place)] = {
            "codec": codec.kind,
            "dtype": members[0].dtype,
            "values": members[0].values,
            "shapes": {item.name: list(item.shape) for item in members},
        }
        for part, array in parts.items():
            entries[f"{place}.{part}"] = Entry(_BY_NUMPY[array.dtype], array.shape, array)
    metadata = dump({"schema_version": SCHEMA, "packs": claims, "about": dict(about)}, where="tensors")
    return pack(entries, {METADATA_KEY: metadata})


def read_packed(source: Path | bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Return the tensors of a file, on the CPU and contiguous; those in fewer bits as float32.

    Args:
        source: The file, or what it holds; of schema 1, too.
        max_bytes: The most that the file, and its tensors together, may take.

    Raises:
        StorageError: If the file cannot be read or is not as it must be.
    """
    where = "the tensor file" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else read_bytes(source, max_bytes=max_bytes)
    try:
        found = numpy_reader.read_bits(data, max_bytes=max_bytes)
        # Copies: tensors of one pack would keep each other in memory.
        return {
            name: to_tensor(array.reshape(-1).copy(), _BY_NAME[dtype], array.shape)
            for name, (dtype, array) in found.items()
        }
    except numpy_reader.TensorFileError as error:
        raise StorageError(f"{where}: {error}") from error
    except MemoryError as error:
        raise StorageError(f"{where}: its tensors do not fit in memory.") from error


def _item(name: str, tensor: Tensor, fewer: FewerBits | None) -> _Item:
    dtype, values = to_array(name, tensor)
    shape = tuple(tensor.shape)
    if fewer is None:
        if dtype.name == "bfloat16":
            values = values * (values != 0x8000)  # its bits look like an integer to codecs
        return _Item(name, dtype.name, "exact", shape, values, None, int(nonzero(values).sum()))
    if dtype.name != "float32" or fewer.codes.shape != shape or fewer.kind not in BITS:
        raise StorageError(
            f"tensor {name!r}: expected float32 of {list(fewer.codes.shape)}, in {', '.join(BITS)}; "
            f"got {dtype.name} of {list(shape)}, in {fewer.kind}."
        )
    codes = np.ascontiguousarray(fewer.codes).reshape(-1)
    scales = fewer.scale if fewer.half_scale is None else fewer.half_scale
    if scales is not None and (not shape or len(scales) != shape[0]):
        raise StorageError(
            f"tensor {name!r}: expected a scale for each row of {list(shape)}; got {len(scales)}."
        )
    return _Item(name, dtype.name, fewer.kind, shape, codes, scales, int(nonzero(codes).sum()))


def _grouped(items: list[_Item]) -> list[list[_Item]]:
    """Put tensors of one kind and like density together as long as that saves bytes."""
    groups = [
        [item] for item in sorted(items, key=lambda item: (item.kept / max(1, item.codes.size), item.name))
    ]
    costs = [_estimate(group) for group in groups]
    while len(groups) > 1:
        joined = [_estimate(a + b) for a, b in pairwise(groups)]
        saved = [a + b - both for (a, b), both in zip(pairwise(costs), joined, strict=True)]
        best = int(np.argmax(saved))
        if saved[best] <= 0:
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
        costs[best : best + 2] = [joined[best]]
    return groups


def _estimate(items: Sequence[_Item]) -> float:
    """Return about how many bytes a pack takes."""
    size, kept = sum(item.codes.size for item in items), sum(item.kept for item in items)
    share, bits = kept / max(1, size), items[0].bits
    entropy = 0.0 if share in (0, 1) else -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return _PACK_BYTES + min(size * bits, size * entropy + kept * bits) / 8


def _encoded(items: list[_Item]) -> tuple[Codec, dict[str, Values]]:
    codes = np.concatenate([item.codes for item in items])
    codec, parts = smallest(codes, CODECS)
    bits = items[0].bits
    if bits < 8 and items[0].values != "exact":
        # A code of 8 bits tips the scales to dense sooner than one of 4 bits should: it costs little.
        stored = parts["values"].astype(np.int8)
        planes = [
            np.packbits(((stored >> bit) & 1).astype(np.uint8), bitorder="little") for bit in range(bits)
        ]
        parts["values"] = np.concatenate(planes)
    if items[0].scales is not None:
        parts["scales"] = np.concatenate([item.scales for item in items if item.scales is not None])
    return codec, parts
