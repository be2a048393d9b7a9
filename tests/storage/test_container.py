"""The library of the format's authors is the oracle, both ways."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import StorageError
from robustcompress.storage.container import Entry, pack, unpack
from robustcompress.storage.dtypes import DTYPES, to_array

CODES = {dtype.code: dtype for dtype in DTYPES}


@st.composite
def entry_sets(draw: st.DrawFn) -> dict[str, Entry]:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    entries: dict[str, Entry] = {}
    for name in draw(st.sets(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=5)):
        dtype = CODES[draw(st.sampled_from(sorted(CODES)))]
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        values = random.integers(0, 2, shape).reshape(-1).astype(dtype.numpy)
        entries[name] = Entry(dtype.code, shape, values)
    return entries


@given(entries=entry_sets())
@settings(max_examples=60, deadline=None)
def test_the_library_reads_what_we_write(entries: dict[str, Entry]) -> None:
    read = dict(safetensors.deserialize(pack(entries, {"key": "text"})))  # type: ignore[no-untyped-call]  # a C function
    assert set(read) == set(entries)
    for name, entry in entries.items():
        assert read[name]["dtype"] == entry.code
        assert tuple(read[name]["shape"]) == entry.shape
        assert bytes(read[name]["data"]) == entry.values.tobytes()


@given(entries=entry_sets())
@settings(max_examples=60, deadline=None)
def test_unpack_undoes_pack(entries: dict[str, Entry]) -> None:
    read, metadata = unpack(pack(entries, {"b": "2", "a": "é"}), where="x")
    assert metadata == {"a": "é", "b": "2"}
    assert set(read) == set(entries)
    for name, entry in entries.items():
        assert (read[name].code, read[name].shape) == (entry.code, entry.shape)
        np.testing.assert_array_equal(read[name].values, entry.values)


def test_we_read_what_the_library_writes() -> None:
    tensors = {
        "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 5),
    }
    entries, metadata = unpack(safetensors.torch.save(tensors, metadata={"by": "them"}), where="x")
    assert metadata == {"by": "them"}
    for name, tensor in tensors.items():
        dtype, values = to_array(name, tensor)
        assert entries[name].code == dtype.code
        assert entries[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(entries[name].values, values)


def test_the_library_reads_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"a": Entry("U8", (2,), np.array([1, 2], np.uint8))}, {"key": "text"}))
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"key": "text"}
        assert file.get_tensor("a").tolist() == [1, 2]


def test_the_order_of_entries_does_not_change_the_bytes_and_items_are_aligned() -> None:
    a = Entry("U8", (3,), np.array([1, 2, 3], np.uint8))
    b = Entry("F64", (2,), np.array([1.0, 2.0]))
    data = pack({"a": a, "b": b}, {})
    assert data == pack({"b": b, "a": a}, {})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["b"]["data_offsets"] == [0, 16]
    assert header["a"]["data_offsets"] == [16, 19]


def test_a_reserved_name_and_a_name_that_is_no_unicode_are_refused() -> None:
    entry = Entry("U8", (0,), np.zeros(0, np.uint8))
    with pytest.raises(StorageError, match="cannot be called '__metadata__'"):
        pack({"__metadata__": entry}, {})
    with pytest.raises(StorageError, match="lone surrogate"):
        pack({"\ud800": entry}, {})


def file_with(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def claim(**changes: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x is not a safetensors file, or was cut short"),
        (b"\xff" * 8, "x is not a safetensors file, or was cut short"),
        ((9).to_bytes(8, "little") + b"{}", "x is not a safetensors file, or was cut short"),
        ((2).to_bytes(8, "little") + b"{x", "x, header is not valid JSON"),
        (file_with({"__metadata__": {"a": 1}}, b""), "x: __metadata__: expected text by name"),
        (file_with({"__metadata__": []}, b""), "x: __metadata__: expected text by name"),
        (file_with({"a": []}, b""), r"x: entry 'a': expected dtype, shape and data_offsets; got \[\]"),
        (file_with({"a": claim(more=1)}, b"1234"), "x: entry 'a': expected dtype, shape and data_offsets"),
        (file_with({"a": claim(dtype="F8_E5M2")}, b"1234"), "x: entry 'a': dtype: expected one of F64, "),
        (file_with({"a": claim(dtype=[])}, b"1234"), r"x: entry 'a': dtype: expected one of .*got \[\]"),
        (file_with({"a": claim(shape=4)}, b"1234"), "x: entry 'a': shape: expected a list"),
        (
            file_with({"a": claim(shape=[1] * 33)}, b"1234"),
            "x: entry 'a': shape: expected a list of at most 32",
        ),
        (file_with({"a": claim(shape=[True])}, b"1"), "x: entry 'a': shape: expected integers .*got True"),
        (file_with({"a": claim(shape=[-4])}, b"1234"), "x: entry 'a': shape: expected integers .*got -4"),
        (file_with({"a": claim(shape=[2**60])}, b"1234"), "x: entry 'a': shape: expected integers"),
        (
            file_with({"a": claim(shape=[5])}, b"1234"),
            r"shape \[5\] of uint8 needs 5 bytes; data_offsets give 4",
        ),
        (file_with({"a": claim(data_offsets=[0])}, b"1234"), "x: entry 'a': data_offsets: expected two"),
        (file_with({"a": claim(data_offsets=[0, 5])}, b"1234"), "data_offsets: expected two within 4 bytes"),
        (file_with({"a": claim(data_offsets=[4, 0])}, b"1234"), "data_offsets: expected two within 4 bytes"),
        (file_with({"a": claim()}, b"12345"), "x: expected 4 bytes of data; got 5"),
        (file_with({"a": claim(data_offsets=[1, 5])}, b"12345"), "overlap or leave a hole at byte 0"),
        (file_with({"a": claim(), "b": claim()}, b"1234"), "overlap or leave a hole at byte 0"),
        (file_with({"a": claim(dtype="BOOL")}, b"\0\1\2\0"), "x: entry 'a': a boolean is neither 0 nor 1"),
    ],
)
def test_a_malformed_file_is_refused_with_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        unpack(data, where="x")


@given(st.binary(max_size=60), st.integers(0, 70))
@settings(max_examples=100, deadline=None)
def test_noise_never_raises_anything_else(noise: bytes, length: int) -> None:
    for data in (noise, length.to_bytes(8, "little") + noise):
        try:
            unpack(data, where="x")
        except StorageError:
            continue


def test_every_truncation_is_noticed() -> None:
    data = pack({"a": Entry("F32", (5,), np.arange(5, dtype=np.float32))}, {"k": "v"})
    for length in range(len(data)):
        with pytest.raises(StorageError):
            unpack(data[:length], where="x")
