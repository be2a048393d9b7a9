"""The reader that can be copied anywhere: it needs NumPy alone, and believes nothing that a file claims."""

import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcompress.export.values import code
from robustcompress.storage import numpy_reader
from robustcompress.storage.codecs.dense import Dense
from robustcompress.storage.dtypes import DTYPES
from robustcompress.storage.numpy_reader import TensorFileError, read, read_about
from robustcompress.storage.packed_file import write_packed
from robustcompress.storage.sparse_file import write_tensors

Header = dict[str, Any]

ALONE = """
import sys, json
for name in ("torch", "pydantic", "onnx", "robustcompress"):
    sys.modules[name] = None
import numpy_reader
found = numpy_reader.read(sys.argv[1])
shown = {name: [str(array.dtype), list(array.shape), float(array.sum())] for name, array in found.items()}
print(json.dumps(shown))
"""


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {
        f"{dtype.name}//{kept}": (
            torch.randint(1, 90, shape, generator=generator) * (torch.rand(shape, generator=generator) < kept)
        ).to(dtype.torch)
        for dtype in DTYPES
        for kept, shape in ((1.0, (3, 4)), (0.4, (50, 8, 3)), (0.02, (40, 90)), (0.0, ()), (0.5, (0, 2)))
    }
    found["far"] = torch.zeros(300_000).index_fill_(0, torch.tensor([5, 299_999]), 2.0)
    return found


@pytest.mark.parametrize("write", [write_tensors, write_packed])
def test_it_reads_both_schemas_where_nothing_but_numpy_can_be_imported(
    write: Callable[[dict[str, Tensor]], bytes], tmp_path: Path
) -> None:
    shutil.copy(numpy_reader.__file__, tmp_path)
    (tmp_path / "file").write_bytes(write(tensors()))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "file"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert found[name] == [str(array.dtype), list(array.shape), float(array.sum())]


def parts_of(data: bytes) -> tuple[Header, Header, bytes]:
    """Return header, description and arrays of a file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["robustcompress"]), data[8 + length :]


def built(header: Header, described: object, body: bytes) -> bytes:
    header = {**header, "__metadata__": {"robustcompress": json.dumps(described)}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def file_of(
    arrays: dict[str, np.ndarray[Any, Any]], *, codec: str, shape: list[int], values: str = "exact"
) -> bytes:
    """Return a file of one pack ``0`` that holds a float32 tensor ``w``."""
    codes = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "uint16": "U16", "int64": "I64"}
    header: Header = {}
    body = b""
    for name, array in arrays.items():
        data = array.tobytes()
        header[f"0.{name}"] = {
            "dtype": codes[array.dtype.name],
            "shape": [len(array)],
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    claim = {"codec": codec, "dtype": "float32", "values": values, "shapes": {"w": shape}}
    return built(header, {"schema_version": 2, "packs": {"0": claim}, "about": {}}, body)


def u8(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.uint8)


def f32(*numbers: float) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.float32)


def test_a_file_spelled_out_by_hand_is_read() -> None:
    masked = file_of({"mask": u8(0b00100001), "values": f32(1, 2)}, codec="bitmask", shape=[2, 3])
    assert read(masked)["w"].tolist() == [[1, 0, 0], [0, 0, 2]]
    gaps = file_of({"gaps": u8(2, 0, 3), "values": f32(7, 8, 9)}, codec="gaps", shape=[12])
    assert read(gaps)["w"].tolist() == [0, 0, 7, 8, 0, 0, 0, 9, 0, 0, 0, 0]
    escaped = file_of({"gaps": u8(255, 1), "values": f32(7)}, codec="gaps", shape=[300])
    assert np.flatnonzero(read(escaped)["w"]).tolist() == [256]
    rice = {
        "unary": u8(0b00101111),
        "low": u8(0b00010100, 0b00001001, 0b00011100),
        "values": f32(1, 2, 3, 4, 5),
    }
    found = read(file_of(rice, codec="rice", shape=[40]))["w"]
    assert np.flatnonzero(found).tolist() == [2, 3, 9, 16, 30]
    # -3 and 7 in four bits: 1101 and 0111, the lowest bit's plane first; scales in units of 2**-12.
    whole = {
        "mask": u8(0b1001),
        "values": u8(0b11, 0b10, 0b11, 0b01),
        "scales": np.array([2048, 4096], np.float16),
    }
    assert read(file_of(whole, codec="bitmask", shape=[2, 2], values="int4"))["w"].tolist() == [
        [-1.5, 0],
        [0, 7],
    ]


RICE = {"unary": u8(0b11), "low": u8(0b01), "values": f32(1, 2)}
INT8 = {"mask": u8(0b1001), "values": np.array([-3, 7], np.int8), "scales": f32(0.5, 1)}
FAULTS: list[tuple[str, dict[str, np.ndarray[Any, Any]], list[int], str, str]] = [
    ("dense", {"values": f32(1)}, [2], "exact", "expected 2 values; got 1"),
    ("dense", {"values": u8(1, 2)}, [2], "exact", "its values are uint8, not F32"),
    ("dense", {}, [2], "exact", r"expected the arrays \['values'\]; got \[\]"),
    ("dense", {"values": f32(1), "mask": u8(1)}, [1], "exact", r"got \['mask', 'values'\]"),
    ("bitmask", {"mask": u8(1, 0), "values": f32(1)}, [5], "exact", "a mask of 2 bytes for 5 values"),
    ("bitmask", {"mask": u8(0b100000), "values": f32(1)}, [5], "exact", "a bit behind the mask is set"),
    ("bitmask", {"mask": f32(1), "values": f32(1)}, [5], "exact", "its code is not of bytes"),
    ("bitmask", {"mask": u8(1), "values": f32(-0.0)}, [5], "exact", "said to be nonzero is zero"),
    ("gaps", {"gaps": u8(1, 255), "values": f32(1)}, [300], "exact", "ends in an escape"),
    ("gaps", {"gaps": u8(255), "values": f32()}, [300], "exact", "ends in an escape"),
    ("gaps", {"gaps": u8(4, 1), "values": f32(1, 2)}, [6], "exact", "a position is outside 6 values"),
    ("gaps", {"gaps": u8(254, 254), "values": f32(1, 2)}, [6], "exact", "its gaps lead out of it"),
    ("rice", {**RICE, "unary": u8(0b11, 0)}, [16], "exact", "its unary code ends in an empty byte"),
    ("rice", {**RICE, "unary": u8(1, 1)}, [8], "exact", "a unary code of 2 bytes is too long"),
    ("rice", {**RICE, "low": u8(0b100)}, [9], "exact", "lower bits: a bit behind the last is set"),
    ("rice", {**RICE, "low": u8(*[0] * 49)}, [9], "exact", "lower bits of 49 bytes"),
    ("rice", {**RICE, "unary": u8(0b1000001), "low": u8(*[0] * 48)}, [9], "exact", "longer than any tensor"),
    ("rice", {**RICE, "low": u8(0, 0, 0, 0b11)}, [9], "exact", "gaps lead out of it|a position is outside"),
    ("rice", {**RICE, "unary": u8(), "values": f32()}, [9], "exact", "lower bits of 1 bytes"),
    ("bitmask", {**INT8, "scales": f32(1)}, [2, 2], "int8", "expected 2 scales; got 1"),
    ("bitmask", {**INT8, "scales": u8(1, 1)}, [2, 2], "int8", "its scales are uint8"),
    ("bitmask", {**INT8, "scales": f32(1, np.nan)}, [2, 2], "int8", "a scale is not positive"),
    ("bitmask", {**INT8, "scales": f32(1, 0)}, [2, 2], "int8", "a scale is not positive"),
    ("bitmask", {**INT8, "values": u8(3)}, [2, 2], "int8", "its values are uint8, not I8"),
    ("bitmask", {**INT8, "values": u8(3)}, [2, 2], "int4", "values: expected 4 bytes; got 1"),
    ("bitmask", {**INT8, "values": u8(7, 0, 0, 0)}, [2, 2], "int4", "a bit behind the last is set"),
    ("dense", {"values": u8(0, 0, 0, 1), "scales": f32()}, [], "int4", "a tensor without rows has no scales"),
    ("dense", {"values": f32(1)}, [1], "int5", "unknown values 'int5' of float32"),
    ("zip", {"values": f32(1)}, [1], "exact", "unknown codec 'zip'"),
]


@pytest.mark.parametrize(("codec", "arrays", "shape", "values", "message"), FAULTS)
def test_a_code_that_does_not_fit_is_refused(
    codec: str, arrays: dict[str, np.ndarray[Any, Any]], shape: list[int], values: str, message: str
) -> None:
    with pytest.raises(TensorFileError, match=message):
        read(file_of(arrays, codec=codec, shape=shape, values=values))


def edited(change: Callable[[Header, Header], object]) -> bytes:
    """Return a file of one dense tensor of 4 values after a change to header and description."""
    header, described, body = parts_of(write_packed({"w": torch.ones(4)}))
    change(header, described)
    return built(header, described, body)


def whole(data: bytes) -> None:
    read(data)
    read_about(data)


EDITS: list[tuple[Callable[[Header, Header], object], str]] = [
    (lambda h, d: d.update(schema_version=3), "schema_version: expected 1 or 2; got 3"),
    (lambda h, d: d.update(schema_version=True), "schema_version: expected 1 or 2; got True"),
    (lambda h, d: d.pop("packs"), "its fields are"),
    (lambda h, d: d.update(packs=[]), "its tensors are no object"),
    (lambda h, d: d["packs"].update({"0": {}}), "pack '0': expected"),
    (lambda h, d: d["packs"]["0"].update(dtype="float8"), "unknown dtype 'float8'"),
    (lambda h, d: d["packs"]["0"].update(dtype="int32", values="int8"), "unknown values 'int8' of int32"),
    (lambda h, d: d["packs"]["0"].update(shapes={}), "no shapes"),
    (lambda h, d: d["packs"]["0"].update(shapes={"w": [-4]}), "shape"),
    (lambda h, d: d["packs"]["0"].update(shapes={"w": [4.0]}), "shape"),
    (lambda h, d: d["packs"]["0"].update(shapes={"w": 4}), "expected a short list of integers"),
    (lambda h, d: d["packs"]["0"].update(shapes={"w": [1] * 33}), "expected a short list of integers"),
    (lambda h, d: d["packs"].update({"1": d["packs"]["0"]}), "a tensor occurs twice"),
    (lambda h, d: h.update(more=h["0.values"]), "its arrays overlap or leave a hole|belongs to no tensor"),
    (
        lambda h, d: h.update({"7.x": {"dtype": "U8", "shape": [0], "data_offsets": [16, 16]}}),
        "'7.x' belongs to no",
    ),
    (lambda h, d: h["0.values"].update(dtype="F8"), "dtype"),
    (lambda h, d: h["0.values"].update(shape=[2, 2]), "expected a short list"),
    (lambda h, d: h["0.values"].update(shape=[5]), "5 items do not take 16 bytes"),
    (lambda h, d: h["0.values"].update(data_offsets=[0, 20]), "data_offsets 0, 20"),
    (lambda h, d: h["0.values"].update(data_offsets=[0, 12], shape=[3]), "do not end where the file ends"),
    (lambda h, d: h["0.values"].pop("shape"), "fields"),
    (lambda h, d: d.update(about={"x": 1}), "about: no texts"),
]


@pytest.mark.parametrize(("change", "message"), EDITS)
def test_a_claim_that_does_not_hold_is_refused(
    change: Callable[[Header, Header], object], message: str
) -> None:
    data = edited(change)
    with pytest.raises(TensorFileError, match=f"(?s){message}.*The file is damaged"):
        whole(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header does not fit"),
        (b"\xff" * 9, "its header does not fit"),
        (b"\x02" + bytes(7) + b"[]", "its JSON is no object"),
        (b"\x02" + bytes(7) + b"{}", "no metadata of robustcompress"),
        (b"\x03" + bytes(7) + b"{a}", "its JSON cannot be read"),
        (b"\x11" + bytes(7) + b'{"a":"","a":"" }  ', "has a key twice"),
        (b"\x40" + bytes(7) + b"[" * 64, "its JSON cannot be read"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "its JSON cannot be read"),
    ],
)
def test_what_is_no_tensor_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(TensorFileError, match=message):
        read(data)


def test_a_boolean_that_is_neither_is_refused() -> None:
    data = write_tensors({"w": torch.tensor([True, True])}, codecs=[Dense()])
    with pytest.raises(TensorFileError, match="neither true nor false"):
        read(data[:-1] + b"\x02")


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    empty = {"gaps": u8(), "values": f32()}
    tracemalloc.start()
    with pytest.raises(TensorFileError, match=r"would take \d+ bytes; the limit is 8589934592"):
        read(file_of(empty, codec="gaps", shape=[2**40]))
    with pytest.raises(TensorFileError, match="the limit is 8589934592"):
        read(file_of(empty, codec="gaps", shape=[2**48] * 30 + [0]))
    with pytest.raises(TensorFileError, match=r"would take 4294967296 bytes, too many for a file of \d+"):
        read(file_of(empty, codec="gaps", shape=[2**30]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_limits_missing_and_special_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(write_packed({"w": torch.ones(400)}))
    with pytest.raises(TensorFileError, match=r"it takes \d+ bytes; the limit is 99"):
        read(path, max_bytes=99)
    with pytest.raises(TensorFileError, match="is no file"):
        read(tmp_path)
    with pytest.raises(TensorFileError, match="is no file"):
        read(tmp_path / "missing")


FILE = write_packed(
    {"a": torch.eye(40), "b": torch.eye(30).repeat(2, 1), "c": torch.arange(7), "d": torch.eye(20) > 0},
    coded={"b": code(np.tile(np.eye(30, dtype=np.float32), (2, 1)), "int6")},
)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_gives_one_clear_error_or_bounded_tensors(data: st.DataObject) -> None:
    damaged = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if how == "flip":
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "cut":
            del damaged[place : place + data.draw(st.integers(1, 40))]
        elif how == "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            damaged[place:place] = damaged[place : place + 30]
        if not damaged:
            break
    try:
        found = read(bytes(damaged))
    except TensorFileError:
        return
    assert sum(array.nbytes for array in found.values()) <= 2**26 + 2**16 * len(damaged)


@given(
    codec=st.sampled_from(["bitmask", "gaps", "rice"]),
    first=st.binary(max_size=40),
    second=st.binary(max_size=40),
    count=st.integers(0, 40),
    size=st.integers(0, 400),
    values=st.sampled_from(["exact", "float16", "int8", "int6", "int4"]),
)
@settings(max_examples=300, deadline=None)
def test_any_arrays_decode_within_bounds_or_are_refused(
    codec: str, first: bytes, second: bytes, count: int, size: int, values: str
) -> None:
    dtypes = {"exact": np.float32, "float16": np.float16, "int8": np.int8}
    arrays: dict[str, np.ndarray[Any, Any]] = {"values": np.ones(count, dtypes.get(values, np.uint8))}
    names = {"bitmask": ["mask"], "gaps": ["gaps"], "rice": ["unary", "low"]}[codec]
    arrays |= {
        name: np.frombuffer(data, np.uint8) for name, data in zip(names, (first, second), strict=False)
    }
    if values.startswith("int"):
        arrays["scales"] = np.ones(size, np.float32)
    try:
        found = read(file_of(arrays, codec=codec, shape=[size], values=values))["w"]
    except TensorFileError:
        return
    assert found.shape == (size,)
