"""Read tensor files with NumPy alone: a file to copy to where the rest of the package is not wanted.

    from numpy_reader import read
    weights = read("model.safetensors")

Imports nothing but NumPy and Python's standard library, and shares no code with the writer: what
docs/format.md says of schemas 1 and 2 is all that it knows. It checks everything that a file claims before
it allocates anything of that size.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

MAX_BYTES = 8 * 2**30
"""Default limit on the size of a file, and on that of its tensors once they are dense."""

_ALWAYS = 2**26  # bytes that tensors may take whatever the file's size,
_TIMES = 2**16  # and for each of its bytes
_MOST = 2**48  # of a dimension
_WIDEST = 48  # lower bits of a gap
_SCALE_UNIT = np.float32(2.0**-12)  # of scales in float16
_CODES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (64, 32, 16)},
    **{f"int{bits}": f"I{bits}" for bits in (64, 32, 16, 8)},
    **{f"uint{bits}": f"U{bits}" for bits in (64, 32, 16, 8)},
    "bool": "BOOL",
    "bfloat16": "U16",
}
_VALUES = {"float16": "F16", "int8": "I8", "int6": "U8", "int4": "U8"}
_POSITIONS = {"dense": (), "bitmask": ("mask",), "gaps": ("gaps",), "rice": ("unary", "low")}


class TensorFileError(ValueError):
    """A file is not as docs/format.md says. The package itself raises its own ``StorageError``."""


class Pack(NamedTuple):
    """Tensors whose values lie one behind the other in one code.

    Attributes:
        at: What errors call it.
        codec: How zeros are left out.
        dtype: Of its tensors.
        values: How values are stored: ``exact``, or in fewer bits.
        shapes: By tensor, in order.
        prefix: Of the names of its arrays.
    """

    at: str
    codec: str
    dtype: str
    values: str
    shapes: dict[str, tuple[int, ...]]
    prefix: str

    @property
    def size(self) -> int:
        """How many values there are."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def size_bytes(self) -> int:
        """Bytes when dense; a dimension of 0 counts as 1, so that its neighbours cannot be absurd."""
        sizes = (math.prod(max(1, side) for side in shape) for shape in self.shapes.values())
        return sum(sizes) * np.dtype(_CODES[_DTYPES[self.dtype]]).itemsize


def read(source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """Return the tensors of a file by name; bfloat16, which NumPy lacks, as equal float32.

    Args:
        source: The file, or what it holds.
        max_bytes: The most that the file, and its tensors together, may take.

    Raises:
        TensorFileError: If the file is not as it must be, or too large.
        OSError: If it cannot be read.
    """
    return {
        name: (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array
        for name, (dtype, array) in read_bits(source, max_bytes=max_bytes).items()
    }


def read_bits(
    source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES
) -> dict[str, tuple[str, Array]]:
    """Return dtype and values by name, as :func:`read`; bfloat16 as its bits in uint16."""
    data = _content(source, max_bytes)
    arrays, described = _opened(data)
    packs = _packs(described)
    total = sum(pack.size_bytes for pack in packs)
    _require(total <= max_bytes, f"its tensors would take {total} bytes; the limit is {max_bytes}")
    most = _ALWAYS + _TIMES * len(data)
    _require(total <= most, f"its tensors would take {total} bytes, too many for a file of {len(data)}")
    names = [name for pack in packs for name in pack.shapes]
    _require(len(set(names)) == len(names), "a tensor occurs twice")
    parts: dict[str, dict[str, Array]] = {pack.prefix: {} for pack in packs}
    for name, array in arrays.items():
        prefix, _, part = name.rpartition(".")
        _require(f"{prefix}." in parts, f"the array {_shown(name)} belongs to no tensor")
        parts[f"{prefix}."][part] = array
    found: dict[str, tuple[str, Array]] = {}
    for pack in packs:
        found |= {name: (pack.dtype, array) for name, array in _decoded(pack, parts[pack.prefix]).items()}
    return found


def read_about(source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, str]:
    """Return what a file of schema 2 says of itself; empty for schema 1."""
    about = _opened(_content(source, max_bytes))[1].get("about", {})
    _require(
        isinstance(about, dict) and all(isinstance(text, str) for text in about.values()), "about: no texts"
    )
    return dict(about)


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise TensorFileError(f"{fault}. The file is damaged, or is none of robustcompress.")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _content(source: str | os.PathLike[str] | bytes, max_bytes: int) -> bytes:
    if isinstance(source, bytes):
        size = len(source)
    else:
        _require(Path(source).is_file(), f"{source} is no file")
        size = Path(source).stat().st_size
    _require(size <= max_bytes, f"it takes {size} bytes; the limit is {max_bytes}")
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _json(text: bytes | str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        _require(len({key for key, _ in pairs}) == len(pairs), "a JSON object has a key twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except TensorFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"its JSON cannot be read: {_shown(str(error))}") from error
    _require(isinstance(value, dict), "its JSON is no object")
    found: dict[str, Any] = value
    return found


def _opened(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays, which are views of ``data``, and what the metadata describes."""
    length = int.from_bytes(data[:8], "little")
    _require(len(data) >= 8 and length <= len(data) - 8, "its header does not fit")
    header = _json(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    known = isinstance(metadata, dict) and set(metadata) == {"robustcompress"}
    _require(known and isinstance(metadata["robustcompress"], str), "it has no metadata of robustcompress")
    spans: list[tuple[int, int]] = []
    arrays: dict[str, Array] = {}
    for name, claim in header.items():
        at = f"array {_shown(name)}"
        _require(
            isinstance(claim, dict) and set(claim) == {"dtype", "shape", "data_offsets"}, f"{at}: fields"
        )
        _require(isinstance(claim["dtype"], str) and claim["dtype"] in _CODES, f"{at}: dtype")
        (size,) = _shape(claim["shape"], at, dimensions=1)
        begin, end = _shape(claim["data_offsets"], at, dimensions=2)
        dtype = np.dtype(_CODES[claim["dtype"]])
        _require(begin <= end <= len(data) - 8 - length, f"{at}: data_offsets {begin}, {end}")
        _require(end - begin == size * dtype.itemsize, f"{at}: {size} items do not take {end - begin} bytes")
        spans.append((begin, end))
        arrays[name] = np.frombuffer(data, dtype, size, 8 + length + begin)
        if dtype.kind == "b":
            _require(int(arrays[name].view(np.uint8).max(initial=0)) <= 1, f"{at}: neither true nor false")
    reached = 0
    for begin, end in sorted(spans):
        _require(begin == reached, f"its arrays overlap or leave a hole at byte {begin}")
        reached = end
    _require(reached == len(data) - 8 - length, "its arrays do not end where the file ends")
    return arrays, _json(metadata["robustcompress"])


def _shape(value: object, at: str, *, dimensions: int | None = None) -> tuple[int, ...]:
    fits = isinstance(value, list) and len(value) <= 32 and dimensions in (None, len(value))
    _require(fits, f"{at}: expected a short list of integers; got {_shown(value)}")
    sides = value if isinstance(value, list) else []
    _require(all(type(side) is int and 0 <= side <= _MOST for side in sides), f"{at}: shape {_shown(value)}")
    return tuple(sides)


def _packs(described: dict[str, Any]) -> list[Pack]:
    """Return what a file describes; of schema 1, each tensor is a pack of its own."""
    version = described.get("schema_version")
    _require(
        type(version) is int and version in (1, 2), f"schema_version: expected 1 or 2; got {_shown(version)}"
    )
    kinds, fields = ({"tensors"}, {"codec", "dtype", "shape"})
    if version == 2:
        kinds, fields = ({"packs", "about"}, {"codec", "dtype", "values", "shapes"})
    _require(set(described) == {"schema_version", *kinds}, f"its fields are {_shown(sorted(described))}")
    claims = described["tensors" if version == 1 else "packs"]
    _require(isinstance(claims, dict), "its tensors are no object")
    packs: list[Pack] = []
    for name, claim in claims.items():
        at = f"{'tensor' if version == 1 else 'pack'} {_shown(name)}"
        _require(isinstance(claim, dict) and set(claim) == fields, f"{at}: expected {sorted(fields)}")
        codec, dtype, values = claim["codec"], claim["dtype"], claim.get("values", "exact")
        _require(isinstance(codec, str) and codec in _POSITIONS, f"{at}: unknown codec {_shown(codec)}")
        _require(isinstance(dtype, str) and dtype in _DTYPES, f"{at}: unknown dtype {_shown(dtype)}")
        fewer = isinstance(values, str) and values in _VALUES and dtype == "float32"
        _require(fewer or values == "exact", f"{at}: unknown values {_shown(values)} of {dtype}")
        shapes = claim["shapes"] if version == 2 else {name: claim["shape"]}
        _require(isinstance(shapes, dict) and bool(shapes), f"{at}: no shapes")
        # Sorted by code points, whatever the order in the file.
        checked = {tensor: _shape(shapes[tensor], at) for tensor in sorted(shapes)}
        prefix = f"{name}//{codec}." if version == 1 else f"{name}."
        packs.append(Pack(at, codec, dtype, values, checked, prefix))
    return packs


def _decoded(pack: Pack, parts: dict[str, Array]) -> dict[str, Array]:
    whole = pack.values.startswith("int")
    wanted = set(_POSITIONS[pack.codec]) | ({"scales"} if whole else set())
    if pack.dtype != "bool" or pack.codec == "dense":
        wanted.add("values")
    _require(set(parts) == wanted, f"{pack.at}: expected the arrays {sorted(wanted)}; got {sorted(parts)}")
    size, numbers = pack.size, np.dtype(np.float32 if pack.values != "exact" else _CODES[_DTYPES[pack.dtype]])
    kept = _kept(pack, parts, size)
    count = size if kept is None else len(kept)
    values = _values(pack, parts, count) if "values" in wanted else np.ones(count, np.bool_)
    flat: Array = values.astype(numbers.newbyteorder("="))
    if kept is not None:
        bits = values.view(f"u{values.itemsize}") << 1 if values.dtype.kind == "f" else values
        _require(bool((bits != 0).all()), f"{pack.at}: a value that is said to be nonzero is zero")
        flat = np.zeros(size, flat.dtype)
        flat[kept] = values
    scales = _scales(pack, parts) if whole else None
    found: dict[str, Array] = {}
    begin = row = 0
    for name, shape in pack.shapes.items():
        end = begin + math.prod(shape)
        found[name] = flat[begin:end].reshape(shape)
        begin = end
        if scales is not None:
            found[name] *= scales[row : row + shape[0]].reshape(-1, *(1 for _ in shape[1:]))
            row += shape[0]
    return found


def _values(pack: Pack, parts: dict[str, Array], count: int) -> Array:
    values, code = parts["values"], _VALUES.get(pack.values, _DTYPES[pack.dtype])
    _require(values.dtype == np.dtype(_CODES[code]), f"{pack.at}: its values are {values.dtype}, not {code}")
    if pack.values not in ("int6", "int4"):
        _require(len(values) == count, f"{pack.at}: expected {count} values; got {len(values)}")
        return values
    width = int(pack.values[3:])
    codes = _spelled(values, width, count, f"{pack.at}: values")
    return (codes - ((codes >> (width - 1)) << width)).astype(np.int8)  # two's complement


def _scales(pack: Pack, parts: dict[str, Array]) -> npt.NDArray[np.float32]:
    scales = parts["scales"]
    _require(all(pack.shapes.values()), f"{pack.at}: a tensor without rows has no scales")
    rows = sum(shape[0] for shape in pack.shapes.values())
    _require(scales.dtype in (np.dtype("<f2"), np.dtype("<f4")), f"{pack.at}: its scales are {scales.dtype}")
    _require(len(scales) == rows, f"{pack.at}: expected {rows} scales; got {len(scales)}")
    _require(bool(np.isfinite(scales).all() and (scales > 0).all()), f"{pack.at}: a scale is not positive")
    return scales.astype(np.float32) * (_SCALE_UNIT if scales.dtype.itemsize == 2 else np.float32(1))


def _kept(pack: Pack, parts: dict[str, Array], size: int) -> npt.NDArray[np.int64] | None:
    """Return the positions of the values that are not zero; ``None`` for all."""
    if pack.codec == "dense":
        return None
    small = all(parts[name].dtype == np.uint8 for name in _POSITIONS[pack.codec])
    _require(
        small or parts.get("gaps", np.zeros(0)).dtype == np.uint16, f"{pack.at}: its code is not of bytes"
    )
    if pack.codec == "bitmask":
        mask = parts["mask"]
        _require(len(mask) == (size + 7) // 8, f"{pack.at}: a mask of {len(mask)} bytes for {size} values")
        _require(not size % 8 or int(mask[-1]) >> size % 8 == 0, f"{pack.at}: a bit behind the mask is set")
        return np.flatnonzero(np.unpackbits(mask, count=size, bitorder="little"))
    steps = _from_gaps(pack, parts["gaps"]) if pack.codec == "gaps" else _from_rice(pack, parts, size)
    # In float64 first: what is nonsense may overflow whole numbers.
    _require(float(steps.sum(dtype=np.float64)) <= 2.0 * size + 1, f"{pack.at}: its gaps lead out of it")
    kept = np.cumsum(steps) - 1
    _require(not len(kept) or int(kept[-1]) < size, f"{pack.at}: a position is outside {size} values")
    return kept


def _from_gaps(pack: Pack, gaps: Array) -> npt.NDArray[np.int64]:
    """Return how far each value lies behind the one before it."""
    steps = gaps.astype(np.int64)
    ends = np.flatnonzero(steps != 256**gaps.dtype.itemsize - 1)
    _require(not len(gaps) or (len(ends) > 0 and ends[-1] == len(gaps) - 1), f"{pack.at}: ends in an escape")
    return np.diff(np.cumsum(steps)[ends], prepend=0) + 1


def _from_rice(pack: Pack, parts: dict[str, Array], size: int) -> npt.NDArray[np.int64]:
    unary, low = parts["unary"], parts["low"]
    _require(not len(unary) or bool(unary[-1]), f"{pack.at}: its unary code ends in an empty byte")
    _require(len(unary) <= (size + 7) // 8, f"{pack.at}: a unary code of {len(unary)} bytes is too long")
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    plane = (len(ends) + 7) // 8
    width = len(low) // plane if plane else 0
    _require(width * plane == len(low) and width <= _WIDEST, f"{pack.at}: lower bits of {len(low)} bytes")
    zeros = np.diff(ends, prepend=-1) - 1
    longest = int(zeros.max(initial=0)) << width
    _require(longest <= _MOST, f"{pack.at}: a gap is longer than any tensor")
    return (zeros << width) + _spelled(low, width, len(ends), f"{pack.at}: lower bits") + 1


def _spelled(planes: Array, width: int, count: int, at: str) -> npt.NDArray[np.int64]:
    """Return the numbers whose bits lie in planes, the lowest bit's first."""
    plane = (count + 7) // 8
    _require(len(planes) == width * plane, f"{at}: expected {width * plane} bytes; got {len(planes)}")
    numbers = np.zeros(count, np.int64)
    for bit in range(width if count else 0):
        packed = planes[bit * plane : (bit + 1) * plane]
        _require(not count % 8 or int(packed[-1]) >> count % 8 == 0, f"{at}: a bit behind the last is set")
        numbers |= np.unpackbits(packed, count=count, bitorder="little").astype(np.int64) << bit
    return numbers
