import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import all_codecs
from robustcompress.storage.codecs.dense import Dense
from robustcompress.storage.container import Entry, pack, unpack
from robustcompress.storage.dtypes import DTYPES, to_array
from robustcompress.storage.sparse_file import METADATA_KEY, read_tensors, write_tensors

CODECS = {codec.kind: codec for codec in all_codecs()}
LIMIT = 2**20  # small, so that a damaged file cannot make a test slow


def sparse(shape: tuple[int, ...], kept: float, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 100, shape, generator=generator).to(dtype)
    return values * (torch.rand(shape, generator=generator) < kept).to(dtype)


def bits(tensor: Tensor) -> bytes:
    return to_array("t", tensor)[1].tobytes()


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(
        st.sets(st.text(st.characters(codec="utf-8"), max_size=5) | st.just("a//gaps.gaps"), max_size=4)
    )
    return {
        name: sparse(
            tuple(draw(st.lists(st.integers(0, 12), max_size=3))),
            draw(st.sampled_from([0, 0.01, 0.1, 0.5, 1])),
            draw(st.sampled_from([dtype.torch for dtype in DTYPES])),
            draw(st.integers(0, 2**32)),
        )
        for name in sorted(names)
    }


@given(tensors=tensor_sets())
@settings(max_examples=80, deadline=None)
def test_tensors_come_back_bit_for_bit(tensors: dict[str, Tensor]) -> None:
    data = write_tensors(tensors)
    back = read_tensors(data)
    assert set(back) == set(tensors)
    assert all(same(back[name], tensors[name]) for name in tensors)
    assert write_tensors(back) == data


@pytest.mark.parametrize("dtype", [dtype.torch for dtype in DTYPES], ids=str)
@pytest.mark.parametrize("kept", [0, 0.02, 0.4, 1])
def test_every_dtype_survives_every_sparsity(dtype: torch.dtype, kept: float) -> None:
    tensor = sparse((30, 50), kept, dtype, 3)
    assert same(read_tensors(write_tensors({"t": tensor}))["t"], tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.tensor(0.0),
        torch.zeros(0),
        torch.zeros(4, 0),
        torch.ones(1),
        torch.ones(1, 1, 1),
    ],
    ids=["0-d", "0-d zero", "empty", "empty 2-d", "one weight", "one weight 3-d"],
)
def test_edge_shapes_come_back(tensor: Tensor) -> None:
    assert same(read_tensors(write_tensors({"t": tensor}))["t"], tensor)


def test_a_file_without_tensors_comes_back() -> None:
    assert read_tensors(write_tensors({})) == {}


def test_nan_payloads_infinities_and_subnormals_are_kept_and_negative_zero_is_not() -> None:
    words = [0x7FC12345, 0x7F812345, 0xFFC00001, 0x7F800000, 0xFF800000, 1, 0x80000001, 0x80000000, 0]
    patterns = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    for copies in (1, 200):  # dense and sparse
        tensor = torch.cat([patterns, torch.zeros(9 * (copies - 1), dtype=torch.int32)]).view(torch.float32)
        back = read_tensors(write_tensors({"t": tensor}))["t"].view(torch.int32)
        expected = tensor.view(torch.int32).clone()
        expected[7] = 0
        assert torch.equal(back, expected)


def test_negative_zeros_of_bfloat16_become_positive_ones() -> None:
    back = read_tensors(write_tensors({"t": torch.tensor([-0.0, 1.0, -1.0], dtype=torch.bfloat16)}))["t"]
    assert back.view(torch.int16).tolist() == [0, 0x3F80, 0xBF80 - 2**16]


@pytest.mark.parametrize("kept", [0.05, 1])
def test_channels_last_and_other_views_are_saved_by_value(kept: float) -> None:
    plain = sparse((16, 8, 5, 5), kept, torch.float32, 4)
    views = {
        "channels_last": plain.to(memory_format=torch.channels_last),
        "permuted": plain.permute(2, 0, 3, 1),
        "sliced": plain[::2, :, 1:4],
    }
    back = read_tensors(write_tensors(views))
    for name, view in views.items():
        assert torch.equal(back[name], view)
        assert back[name].is_contiguous()


def test_equal_tensors_give_equal_files_whatever_their_order_and_layout() -> None:
    a, b = sparse((16, 8, 5, 5), 0.1, torch.float32, 1), sparse((50,), 1, torch.float32, 2)
    data = write_tensors({"a": a, "b": b})
    assert data == write_tensors({"b": b, "a": a.to(memory_format=torch.channels_last)})


def test_what_comes_back_may_be_written_to() -> None:
    back = read_tensors(write_tensors({"a": torch.ones(3), "b": sparse((9000,), 0.1, torch.float32, 2)}))
    for tensor in back.values():
        tensor.add_(1)


def test_any_safetensors_library_can_open_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = sparse((100, 100), 0.1, torch.float32, 5)
    path.write_bytes(write_tensors({"conv.weight": tensor}))
    with safetensors.safe_open(path, framework="np") as file:
        assert set(file.keys()) == {f"conv.weight//rice.{part}" for part in ("unary", "low", "values")}
        assert file.get_tensor("conv.weight//rice.values").tolist() == tensor[tensor != 0].tolist()
        assert list(file.metadata()) == [METADATA_KEY]


@pytest.mark.parametrize(("sparsity", "positions"), [(0.9, 0.475 / 8), (0.6, 1 / 8)])
def test_the_file_is_as_small_as_its_codec_promises(sparsity: float, positions: float) -> None:
    size = 512 * 512 * 9
    keep = np.random.default_rng(0).choice(size, round(size * (1 - sparsity)), replace=False)
    flat = torch.zeros(size)
    flat[torch.from_numpy(keep)] = 1.25
    data = write_tensors({"layer.weight": flat.reshape(512, 512, 3, 3)})
    promised = size * positions + 4 * len(keep)
    assert promised <= len(data) <= 1.001 * promised + 600


def test_a_tensor_that_cannot_be_stored_is_named() -> None:
    with pytest.raises(StorageError, match="tensor 'c': expected a dense tensor with data"):
        write_tensors({"c": torch.zeros(2, dtype=torch.complex64)})


# ---- files that are not what they must be ------------------------------------------------------------------

GOOD = {"conv.weight": sparse((20, 30), 0.1, torch.float32, 1), "bias": torch.tensor([1.0, 0.0, 2.0])}


def edited(change: Callable[[dict[str, Any]], Any], tensors: dict[str, Tensor] | None = None) -> bytes:
    """A file whose metadata ``change`` has edited."""
    entries, metadata = unpack(write_tensors(tensors or GOOD), where="x")
    value = json.loads(metadata[METADATA_KEY])
    change(value)
    return pack(entries, {METADATA_KEY: json.dumps(value)})


def tensor_edit(**changes: object) -> bytes:
    return edited(lambda value: value["tensors"]["conv.weight"].update(changes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (edited(lambda v: v.update(schema_version=9)), "x, metadata: schema_version 9 is newer than 1"),
        (edited(lambda v: v.pop("schema_version")), "x, metadata: schema_version: expected 1; got None"),
        (edited(lambda v: v.update(more=1)), "x, metadata: more: Extra inputs"),
        (edited(lambda v: v.update(tensors=[])), "x, metadata: tensors: Input should be an object"),
        (
            edited(lambda v: v["tensors"]["bias"].pop("dtype")),
            r"x, metadata: tensors\.bias\.dtype: Field required",
        ),
        (
            tensor_edit(dtype="float31"),
            r"x, metadata: tensors\.conv\.weight\.dtype: Input should be 'float64'",
        ),
        (tensor_edit(shape=[20, -30]), r"tensors\.conv\.weight\.shape\.1: Input should be greater"),
        (tensor_edit(shape=[20, 30.0]), r"tensors\.conv\.weight\.shape\.1: Input should be a valid integer"),
        (tensor_edit(shape=[True]), r"tensors\.conv\.weight\.shape\.0: Input should be a valid integer"),
        (tensor_edit(shape=[2**49]), r"tensors\.conv\.weight\.shape\.0: Input should be less"),
        (tensor_edit(shape=[1] * 33), r"tensors\.conv\.weight\.shape: List should have at most 32"),
        (tensor_edit(shape=[2**40, 2**40]), "x: its tensors would take .* bytes; the limit is 1048576"),
        (tensor_edit(shape=[0, 2**40]), "x: its tensors would take .* bytes; the limit is 1048576"),
        (
            tensor_edit(codec="pickle"),
            r"x: tensors\.conv\.weight\.codec: expected one of bitmask, dense, gaps",
        ),
        (tensor_edit(codec="os.system"), r"tensors\.conv\.weight\.codec: expected one of .*got 'os.system'"),
        (tensor_edit(codec="__init__"), r"tensors\.conv\.weight\.codec: expected one of"),
        (tensor_edit(codec="dense"), "x: entry 'conv.weight//gaps.values' belongs to no tensor"),
        (
            tensor_edit(shape=[10, 30]),
            "x: tensor 'conv.weight': part 'gaps': position .* is outside 300 values",
        ),
        (
            tensor_edit(dtype="float64"),
            "x: tensor 'conv.weight': part 'values': expected .* values of float64",
        ),
        (edited(lambda v: v["tensors"].pop("bias")), "x: entry 'bias//dense.values' belongs to no tensor"),
        (
            edited(lambda v: v["tensors"].update(more={"codec": "dense", "dtype": "int8", "shape": [1]})),
            r"x: tensor 'more': expected the parts \['values'\]; got \[\]",
        ),
    ],
)
def test_a_claim_that_does_not_hold_is_refused_by_field(data: bytes, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        read_tensors(data, max_bytes=LIMIT, where="x")


def test_entries_that_no_tensor_owns_are_refused() -> None:
    entries, metadata = unpack(write_tensors(GOOD), where="x")
    byte = Entry("U8", (1,), np.zeros(1, np.uint8))
    for name in ("stray", "bias//gaps.gaps", "//dense.values", "bias/dense.values"):
        with pytest.raises(StorageError, match="belongs to no tensor that the metadata describes"):
            read_tensors(pack({**entries, name: byte}, metadata))
    for name in ("bias//dense", "bias//dense.more"):
        with pytest.raises(StorageError, match=r"tensor 'bias': expected the parts \['values'\]; got"):
            read_tensors(pack({**entries, name: byte}, metadata))
    flat = Entry("F32", (1, 3), np.ones(3, np.float32))
    with pytest.raises(
        StorageError, match=r"'bias//dense.values': shape: expected one dimension; got \[1, 3\]"
    ):
        read_tensors(pack({**entries, "bias//dense.values": flat}, metadata))


def test_a_safetensors_file_of_someone_else_is_refused() -> None:
    with pytest.raises(StorageError, match="was not written by robustcompress"):
        read_tensors(pack({"a": Entry("U8", (1,), np.zeros(1, np.uint8))}, {"format": "pt"}))


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    # 2**46 zeros take no byte in the file; allocating them would kill the process.
    nothing = write_tensors({"t": torch.zeros(1000)})
    _, metadata = unpack(nothing, where="x")
    bomb = json.loads(metadata[METADATA_KEY])
    assert bomb["tensors"]["t"]["codec"] in ("gaps", "bitmask")
    bomb["tensors"]["t"] = {"codec": "gaps", "dtype": "float32", "shape": [2**46]}
    empty = {
        "t//gaps.gaps": Entry("U8", (0,), np.zeros(0, np.uint8)),
        "t//gaps.values": Entry("F32", (0,), np.zeros(0, np.float32)),
    }
    data = pack(empty, {METADATA_KEY: json.dumps(bomb)})
    assert len(data) < 500
    with pytest.raises(
        StorageError, match="its tensors would take 281474976710656 bytes; the limit is 8589934592"
    ):
        read_tensors(data)
    with pytest.raises(StorageError, match="take 281474976710656 bytes, which no file of 296 bytes"):
        read_tensors(data, max_bytes=2**50)


def test_a_tensor_beyond_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_tensors({"t": torch.ones(5)})

    def full(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Dense, "decode", full)
    with pytest.raises(StorageError, match="tensor 't': 20 bytes do not fit in memory"):
        read_tensors(data)


def test_many_small_claims_are_summed_up() -> None:
    data = write_tensors({f"t{i}": torch.zeros(1000) for i in range(10)})
    assert len(read_tensors(data, max_bytes=40_000)) == 10
    with pytest.raises(StorageError, match="would take 40000 bytes; the limit is 39999"):
        read_tensors(data, max_bytes=39_999)


def test_expected_shapes_are_held_against_the_file() -> None:
    data = write_tensors(GOOD)
    good = {"conv.weight": (20, 30), "bias": (3,)}
    assert set(read_tensors(data, expected_shapes=good)) == set(good)
    with pytest.raises(StorageError, match=r"tensors missing: \['more'\]; not expected: \['bias'\]"):
        read_tensors(data, expected_shapes={"conv.weight": (20, 30), "more": (3,)})
    with pytest.raises(StorageError, match=r"tensors\.bias\.shape: expected \[4\]; got \[3\]"):
        read_tensors(data, expected_shapes={**good, "bias": (4,)})


def read_or_error(data: bytes) -> dict[str, Tensor] | str:
    """What ``data`` holds, or what the one error that is allowed says."""
    try:
        return read_tensors(data, max_bytes=LIMIT, where="the file")
    except StorageError as error:
        return str(error)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_gives_one_clear_error_or_the_same_shapes(data: st.DataObject) -> None:
    whole = write_tensors(GOOD)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.sampled_from([len(whole), len(whole), data.draw(st.integers(0, len(whole)))]))
    back = read_or_error(bytes(damaged[:cut]))
    if isinstance(back, str):
        assert back.startswith("the file")
    else:  # only a value, a name or a loose size was hit: that is what the artifact's hashes are for
        assert len(back) == len(GOOD)
        assert sum(tensor.nbytes for tensor in back.values()) <= LIMIT
        assert cut == len(whole)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["gaps", "int8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PATHS = [
    ("schema_version",),
    ("tensors",),
    *[("tensors", "conv.weight"), ("tensors", "bias")],
    *[("tensors", name, key) for name in GOOD for key in ("codec", "dtype", "shape")],
]


@given(path=st.sampled_from(PATHS), value=JSON)
@settings(max_examples=150, deadline=None)
def test_edited_metadata_gives_one_clear_error_or_a_fitting_tensor(
    path: tuple[str, ...], value: object
) -> None:
    def put(metadata: dict[str, Any]) -> None:
        for key in path[:-1]:
            metadata = metadata[key]
        metadata[path[-1]] = value

    back = read_or_error(edited(put))
    if isinstance(back, str):
        assert back.startswith("the file")
    else:
        assert set(back) == set(GOOD)
        assert sum(tensor.nbytes for tensor in back.values()) <= LIMIT


@given(
    gaps=st.lists(st.integers(0, 255), max_size=30),
    mask=st.binary(max_size=12),
    count=st.integers(0, 40),
    kind=st.sampled_from(sorted(CODECS)),
    size=st.integers(0, 100),
)
@settings(max_examples=200, deadline=None)
def test_any_parts_decode_within_bounds_or_are_refused(
    gaps: list[int], mask: bytes, count: int, kind: str, size: int
) -> None:
    parts: dict[str, Any] = {"values": np.ones(count, np.int8)}
    if kind == "gaps":
        parts["gaps"] = np.array(gaps, np.uint8)
    if kind == "bitmask":
        parts["mask"] = np.frombuffer(mask, np.uint8)
    try:
        values = CODECS[kind].decode(parts, size, np.dtype(np.int8))
    except StorageError:
        return
    assert len(values) == size
    assert int(values.sum()) == count


# ---- from disk ---------------------------------------------------------------------------------------------


def test_a_file_on_disk_is_read_by_path_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(write_tensors(GOOD))
    assert torch.equal(read_tensors(path)["bias"], GOOD["bias"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"model\.safetensors: .*data_offsets: expected two within"):
        read_tensors(path)


def test_a_missing_a_special_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none\.safetensors: No such file.* Check the path"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(StorageError, match="is not a regular file"):
        read_tensors(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="is not a regular file"):
        read_tensors(pipe)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match="expected at most 8589934592 bytes; the file has 1099511627776"):
        read_tensors(huge)


def test_a_file_beyond_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise MemoryError

    (tmp_path / "file").write_bytes(b"abc")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(StorageError, match=r"cannot read .*file: 3 bytes do not fit in memory"):
        read_tensors(tmp_path / "file")
