"""What every codec owes, over all members; and which one is chosen."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress import families
from robustcompress.errors import StorageError
from robustcompress.storage import codecs
from robustcompress.storage.codecs import PART_COST_BYTES, Codec, Values, all_codecs, expect_parts, smallest

KINDS = families.kinds(Codec.family)
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool")
NEGATIVE_ZERO = {"float64": 1 << 63, "float32": 1 << 31, "float16": 1 << 15}


@st.composite
def sparse_arrays(draw: st.DrawFn) -> Values:
    """Arrays with random bits (NaN payloads, infinities, subnormals, negative zeros) at random places."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = draw(st.integers(0, 1500))
    kept = draw(st.sampled_from([0.0, 0.002, 0.1, 0.5, 1.0]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype.kind == "b":
        return np.asarray(random.random(size) < kept)
    bits: Any = random.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(f"u{dtype.itemsize}")
    bits[random.random(size) >= kept] = 0
    if dtype.kind == "f" and size:
        bits[random.integers(0, size, 3)] = NEGATIVE_ZERO[dtype.name]
    return np.asarray(bits.view(dtype))


def bits_of(values: Values) -> list[int]:
    """Bits of each value as an integer, -0.0 made +0.0, in pure Python."""
    width = values.dtype.itemsize
    raw = values.tobytes()
    bits = [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]
    return [0 if word == NEGATIVE_ZERO.get(values.dtype.name, -1) else word for word in bits]


@pytest.mark.parametrize("kind", KINDS)
@given(values=sparse_arrays())
@settings(max_examples=60, deadline=None)
def test_decode_undoes_encode_bit_for_bit(kind: str, values: Values) -> None:
    codec = Codec.find(kind)
    parts = codec.encode(values)
    assert all(part.ndim == 1 for part in parts.values())
    decoded = codec.decode(parts, len(values), values.dtype)
    assert decoded.dtype == values.dtype
    assert decoded.flags.writeable
    assert bits_of(decoded) == bits_of(values)
    assert not np.shares_memory(decoded, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 256, 257, 70000])
@pytest.mark.parametrize("at", ["nowhere", "first", "last", "everywhere"])
def test_one_weight_at_an_end_none_and_all_come_back(kind: str, size: int, at: str) -> None:
    values = np.zeros(size, np.float32)
    values[
        {"nowhere": slice(0), "first": slice(1), "last": slice(-1, None), "everywhere": slice(None)}[at]
    ] = 3
    codec = Codec.find(kind)
    np.testing.assert_array_equal(codec.decode(codec.encode(values), size, values.dtype), values)


@pytest.mark.parametrize("kind", KINDS)
def test_negative_zero_comes_back_as_positive_zero(kind: str) -> None:
    codec = Codec.find(kind)
    decoded = codec.decode(codec.encode(np.array([-0.0, 1.0, 0.0], np.float32)), 3, np.dtype(np.float32))
    assert not np.signbit(decoded).any()


@pytest.mark.parametrize("kind", KINDS)
def test_subnormal_numbers_survive_a_thread_that_flushes_them_to_zero(kind: str) -> None:
    values = np.array([1, 0, 0x80000001], np.uint32).view(np.float32)
    codec = Codec.find(kind)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        decoded = codec.decode(codec.encode(values), 3, values.dtype)
    finally:
        torch.set_flush_denormal(False)
    assert bits_of(decoded) == [1, 0, 0x80000001]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_and_an_unknown_part_are_refused(kind: str) -> None:
    codec = Codec.find(kind)
    values = np.array([0.0, 2.0], np.float32)
    parts = codec.encode(values)
    for name in parts:
        with pytest.raises(StorageError, match="expected the parts"):
            codec.decode({k: v for k, v in parts.items() if k != name}, 2, values.dtype)
    with pytest.raises(StorageError, match=r"expected the parts .* got .*'zoo'"):
        codec.decode({**parts, "zoo": values}, 2, values.dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_another_dtype_or_number_are_refused(kind: str) -> None:
    codec = Codec.find(kind)
    values = np.array([0.0, 2.0, 3.0], np.float32)
    parts = codec.encode(values)
    for wrong in (parts["values"].astype(np.float64), parts["values"][:-1], np.append(parts["values"], [1])):
        with pytest.raises(StorageError, match=r"part 'values': expected \d+ values of float32; got"):
            codec.decode({**parts, "values": wrong}, 3, values.dtype)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
def test_a_zero_among_the_values_said_to_be_nonzero_is_refused(kind: str) -> None:
    codec = Codec.find(kind)
    parts = codec.encode(np.array([0.0, 2.0], np.float32))
    with pytest.raises(StorageError, match="said to be nonzero is zero"):
        codec.decode({**parts, "values": np.array([-0.0], np.float32)}, 2, np.dtype(np.float32))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dense"])
def test_booleans_take_no_values(kind: str) -> None:
    parts = Codec.find(kind).encode(np.array([True, False, True]))
    assert "values" not in parts


@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_round_trips_through_its_settings(kind: str) -> None:
    codec = Codec.find(kind)
    assert Codec.find(codec.model_dump()) == codec
    assert getattr(codecs, type(codec).__name__) is type(codec)


def test_a_part_of_two_dimensions_is_refused() -> None:
    with pytest.raises(StorageError, match="part 'a': expected one dimension; got 2"):
        expect_parts({"a": np.zeros((2, 2))}, ["a"])


@given(values=sparse_arrays())
@settings(max_examples=40, deadline=None)
def test_the_smallest_codec_is_no_larger_than_any_other(values: Values) -> None:
    codec, parts = smallest(values)
    assert bits_of(codec.decode(parts, len(values), values.dtype)) == bits_of(values)

    def cost(found: dict[str, Values]) -> int:
        return sum(part.nbytes + PART_COST_BYTES for part in found.values())

    assert cost(parts) == min(cost(other.encode(values)) for other in all_codecs())


@pytest.mark.parametrize(
    ("kept", "kind"), [(1.0, "dense"), (0.5, "bitmask"), (0.1, "rice"), (0.0002, "gaps")]
)
def test_each_sparsity_gets_the_codec_made_for_it(kept: float, kind: str) -> None:
    random = np.random.default_rng(0)
    values = np.where(random.random(50_000) < kept, random.normal(size=50_000), 0).astype(np.float32)
    assert smallest(values)[0].kind == kind


def test_small_tensors_stay_dense_because_headers_cost_too() -> None:
    values = np.zeros(16, np.float32)
    values[3] = 1
    assert smallest(values)[0].kind == "dense"


def test_only_the_codecs_given_are_chosen_from() -> None:
    assert smallest(np.zeros(1000, np.float32), [Codec.find("dense")])[0].kind == "dense"
