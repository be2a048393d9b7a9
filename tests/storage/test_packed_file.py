"""Files to deploy: what goes in comes out, through the reader that needs NumPy alone."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_any
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.export.values import BITS, Coded, ValueType, code
from robustcompress.storage import numpy_reader
from robustcompress.storage.dtypes import DTYPES
from robustcompress.storage.packed_file import FewerBits, read_packed, write_packed

SHAPES = st.lists(st.integers(0, 13), min_size=0, max_size=4).map(tuple)
DENSITIES = st.sampled_from([0.0, 0.004, 0.05, 0.3, 0.6, 0.9, 1.0])
FEWER: tuple[ValueType, ...] = ("float16", "int8", "int6", "int4")


def bits_of(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def sparse(shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 100, shape, generator=generator)
    return (values * (torch.rand(shape, generator=generator) < density)).to(dtype)


@given(
    shapes=st.lists(SHAPES, max_size=6),
    densities=st.lists(DENSITIES, min_size=6, max_size=6),
    dtypes=st.lists(st.sampled_from([dtype.torch for dtype in DTYPES]), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_tensors_of_every_dtype_come_back_bit_for_bit(
    shapes: list[tuple[int, ...]], densities: list[float], dtypes: list[torch.dtype], seed: int
) -> None:
    tensors = {
        f"layer.{place}//π": sparse(shape, densities[place], dtypes[place], seed + place)
        for place, shape in enumerate(shapes)
    }
    data = write_packed(tensors, about={"seed": str(seed)})
    found = read_packed(data)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits_of(found[name]) == bits_of(tensor)
    plain = numpy_reader.read(data)
    for name, tensor in tensors.items():
        expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert plain[name].dtype == expected.dtype
        np.testing.assert_array_equal(plain[name], expected)
    assert numpy_reader.read_about(data) == {"seed": str(seed)}


@given(
    shapes=st.lists(st.lists(st.integers(1, 13), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5),
    densities=st.lists(DENSITIES, min_size=5, max_size=5),
    kinds=st.lists(st.sampled_from(FEWER), min_size=5, max_size=5),
    size=st.sampled_from([1e-12, 1e-5, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_values_in_fewer_bits_come_back_as_what_the_bits_stand_for(
    shapes: list[tuple[int, ...]], densities: list[float], kinds: list[ValueType], size: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    coded: dict[str, Coded] = {}
    for place, shape in enumerate(shapes):
        kept = random.random(shape) < densities[place]
        weight = (size * random.standard_normal(shape) * kept).astype(np.float32)
        coded[str(place)] = code(weight, kinds[place])
    tensors = {name: torch.from_numpy(item.values) for name, item in coded.items()}
    found = read_packed(write_packed(tensors, coded=coded))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("size", [1, 7, 8, 4097])
@pytest.mark.parametrize("at", ["first", "last", "none", "all"])
def test_one_weight_at_an_end_none_and_all_come_back(size: int, at: str) -> None:
    tensor = torch.full((size,), float(at == "all"))
    if at in ("first", "last"):
        tensor[0 if at == "first" else -1] = -3.5
    assert read_packed(write_packed({"w": tensor}))["w"].tolist() == tensor.tolist()


def test_nan_payloads_infinities_and_subnormals_are_kept_and_negative_zero_is_not() -> None:
    bits = np.array([0x7FC01234, 0xFF800000, 1, 0x80000001, 0x80000000, 0], dtype=np.uint32)
    (found,) = read_packed(write_packed({"w": torch.from_numpy(bits.view(np.float32))})).values()
    assert found.numpy().view(np.uint32).tolist() == [0x7FC01234, 0xFF800000, 1, 0x80000001, 0, 0]
    zeros = torch.tensor([-0.0, 1.0], dtype=torch.bfloat16)
    (found,) = read_packed(write_packed({"w": zeros})).values()
    assert bits_of(found) == bits_of(torch.tensor([0.0, 1.0], dtype=torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "density"),
    [("float32", 0.0001), ("float32", 0.5), ("float16", 0.5), ("int8", 0.01), ("int4", 0.01)],
)
def test_more_values_than_float32_can_count_come_back(kind: ValueType, density: float) -> None:  # 20 s in all
    shape = (4099, 4103)
    assert shape[0] * shape[1] > 1 << 24
    random = np.random.default_rng(0)
    array = (random.standard_normal(shape, np.float32) * (random.random(shape) < density)).astype(np.float32)
    coded = {} if kind == "float32" else {"w": code(array, kind)}
    if coded:
        array = coded["w"].values
    data = write_packed({"w": torch.from_numpy(array)}, coded=coded)
    assert len(data) < 0.6 * array.nbytes
    np.testing.assert_array_equal(read_packed(data)["w"].numpy(), array)


def network(sparsity: float, kind: ValueType) -> tuple[dict[str, Tensor], dict[str, Coded], float]:
    """Return 20 layers of several densities, and the bytes that positions, values and scales need."""
    random = np.random.default_rng(0)
    tensors: dict[str, Tensor] = {}
    coded: dict[str, Coded] = {}
    limit = 0.0
    for layer in range(20):
        share = (1 - sparsity) * (0.5 if layer % 2 else 1)
        weight = np.zeros(60_000, np.float32)
        kept = random.permutation(60_000)[: round(share * 60_000)]
        weight[kept] = random.uniform(0.5, 1, len(kept))
        name = f"blocks.{layer}.weight"
        if kind != "float32":
            coded[name] = code(weight.reshape(60, 1000), kind)
            weight = coded[name].values.reshape(-1)
            limit += 2 * 60 if kind != "float16" else 0
        tensors[name] = torch.from_numpy(weight).reshape(60, 1000)
        tensors[f"blocks.{layer}.bias"] = torch.rand(60)
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        limit += (
            60_000 * entropy / 8 + len(kept) * BITS.get(kind, 16 if kind == "float16" else 32) / 8 + 4 * 60
        )
    return tensors, coded, limit


@pytest.mark.parametrize("kind", ["float32", *FEWER])
@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_a_network_takes_hardly_more_than_its_positions_and_values_need(
    sparsity: float, kind: ValueType
) -> None:
    tensors, coded, limit = network(sparsity, kind)
    data = write_packed(tensors, coded=coded)
    assert limit < len(data) < 1.02 * limit + 2500  # 42 names in a header


def test_equal_tensors_give_equal_files_whatever_their_order_and_layout() -> None:
    tensors = {"b": torch.rand(4, 3, 2, 2), "a": torch.eye(50)}
    turned = {"a": tensors["a"].T, "b": tensors["b"].contiguous(memory_format=torch.channels_last)}
    assert write_packed(tensors, about={"x": "1", "y": "2"}) == write_packed(
        turned, about={"y": "2", "x": "1"}
    )


def test_any_safetensors_library_can_open_the_file() -> None:
    found = load_any(write_packed({"w": torch.eye(300), "v": torch.ones(3)}))
    assert sorted(found)[0] == "0.low"


def test_what_comes_back_may_be_written_to_and_stands_alone() -> None:
    found = read_packed(write_packed({"a": torch.zeros(5), "b": torch.zeros(6)}))
    found["a"].fill_(1)
    assert found["b"].tolist() == [0.0] * 6
    assert found["a"].untyped_storage().nbytes() == 20


class _Scaled:
    """Some other code, which does not fit."""

    def __init__(self, kind: str, codes: Any, scale: Any) -> None:
        self.kind, self.codes, self.scale, self.half_scale = kind, codes, scale, None


@pytest.mark.parametrize(
    ("name", "fewer", "message"),
    [
        ("v", _Scaled("float16", np.zeros((2, 3), np.float16), None), "coded values of tensors; got 'v'"),
        ("w", _Scaled("float16", np.zeros((3, 2), np.float16), None), r"float32 of \[3, 2\]"),
        ("w", _Scaled("int5", np.zeros((2, 3), np.int8), np.ones(2)), "in float16, int8, int6, int4; got"),
        (
            "w",
            _Scaled("int8", np.zeros((2, 3), np.int8), np.ones(3)),
            r"scale for each row of \[2, 3\]; got 3",
        ),
    ],
)
def test_codes_that_do_not_belong_to_a_tensor_are_refused(name: str, fewer: FewerBits, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        write_packed({"w": torch.zeros(2, 3)}, coded={name: fewer})


def test_a_damaged_file_is_named_and_one_beyond_memory_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(write_packed({"w": torch.eye(9)})[:-1])
    with pytest.raises(StorageError, match=r"model\.safetensors: .* The file is damaged"):
        read_packed(path)

    def full(*args: object, **others: object) -> None:
        raise MemoryError

    monkeypatch.setattr(numpy_reader, "read_bits", full)
    with pytest.raises(StorageError, match="the tensor file: its tensors do not fit in memory"):
        read_packed(b"")


def test_metadata_are_one_key_of_sorted_json() -> None:
    data = write_packed({"w": torch.eye(9)}, about={"b": "1", "a": "2"})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    (text,) = header["__metadata__"].values()
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
