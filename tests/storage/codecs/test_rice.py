import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Values
from robustcompress.storage.codecs.rice import Rice

FLOAT32 = np.dtype(np.float32)


def decoded_by_hand(unary: Values, low: Values, values: list[float], size: int) -> list[float]:
    """Follow the format's words, one bit at a time."""
    plane = (len(values) + 7) // 8
    planes = [low.tolist()[start : start + plane] for start in range(0, len(low), plane or 1)]
    found, position, zeros, index = [0.0] * size, 0, 0, 0
    for bit in range(8 * len(unary)):
        if not unary.tolist()[bit // 8] >> bit % 8 & 1:
            zeros += 1
            continue
        gap = zeros << len(planes)
        for place, packed in enumerate(planes):
            gap += (packed[index // 8] >> index % 8 & 1) << place
        position += gap
        found[position] = values[index]
        position, zeros, index = position + 1, 0, index + 1
    assert index == len(values)
    return found


@given(st.lists(st.tuples(st.sampled_from([0, 1, 3, 7, 8, 31, 250, 2000]), st.floats(1, 9, width=32))))
@settings(max_examples=100, deadline=None)
def test_bits_mean_what_the_format_says(runs: list[tuple[int, float]]) -> None:
    values = [number for zeros, value in runs for number in [*[0.0] * zeros, value]] + [0.0] * 300
    parts = Rice().encode(np.array(values, np.float32))
    assert decoded_by_hand(parts["unary"], parts["low"], parts["values"].tolist(), len(values)) == values


def test_known_bits_give_a_known_array() -> None:
    values = np.zeros(40, np.float32)
    values[[2, 3, 9, 16, 30]] = [1, 2, 3, 4, 5]  # gaps 2 0 5 6 13
    # r = 3: quotients 0 0 0 0 1, remainders 2 0 5 6 5
    parts: dict[str, Values] = {
        "unary": _bytes(0b00101111),
        "low": _bytes(0b00010100, 0b00001001, 0b00011100),
        "values": np.arange(1, 6, dtype=np.float32),
    }
    assert Rice().decode(parts, 40, FLOAT32).tolist() == values.tolist()
    # r = 0 takes fewer bytes for so few.
    assert Rice().encode(values)["unary"].tolist() == [0b00001100, 0b00000010, 0b00000001, 0b01000000]


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 0.999])
def test_positions_of_a_random_mask_take_little_more_than_their_entropy(sparsity: float) -> None:
    size, kept = 1_000_000, round(1_000_000 * (1 - sparsity))
    values = np.zeros(size, np.float32)
    values[np.random.default_rng(2).choice(size, kept, replace=False)] = 1
    parts = Rice().encode(values)
    entropy = -size * (sparsity * math.log2(sparsity) + (1 - sparsity) * math.log2(1 - sparsity)) / 8
    # Rice codes of geometric gaps, with the best parameter, in bits a value (Golomb 1966).
    expected = min(r + 1 + sparsity ** (1 << r) / (1 - sparsity ** (1 << r)) for r in range(16)) * kept / 8
    assert parts["unary"].nbytes + parts["low"].nbytes == pytest.approx(expected, rel=0.01)
    assert entropy <= expected < 1.05 * entropy


def _bytes(*numbers: int) -> npt.NDArray[np.uint8]:
    return np.array(numbers, np.uint8)


@pytest.mark.parametrize(
    ("unary", "low", "message"),
    [
        (np.array([1], np.int8), _bytes(), "part 'unary': expected uint8; got int8"),
        (_bytes(1), np.array([1], np.uint16), "part 'low': expected uint8; got uint16"),
        (_bytes(1, 0), _bytes(), "ends in a byte without a set bit"),
        (_bytes(0, 0, 1), _bytes(), "3 bytes are too many for 10 values"),
        (_bytes(0, 4), _bytes(), "position 10 is outside 10 values"),
        (_bytes(1), _bytes(0, 1, 0, 1), "position 10 is outside 10 values"),
        (_bytes(3), _bytes(2, 0, 3, 2), "gaps go far beyond 10 values|position"),
        (_bytes(1), _bytes(*[1] * 48), "gaps go far beyond 10 values"),
        (_bytes(0, 2), _bytes(*[0] * 60), "expected up to 48 planes of 1 bytes; got 60"),
        (_bytes(1), _bytes(3), "a bit behind the last of 1 values is set"),
        (_bytes(), _bytes(3), "expected up to 48 planes of 0 bytes; got 1"),
        (_bytes(3), _bytes(), "expected 2 values of float32; got 1"),
        (_bytes(), _bytes(), "expected 0 values of float32; got 1"),
    ],
)
def test_damaged_parts_are_refused(unary: Values, low: Values, message: str) -> None:
    parts: dict[str, Values] = {"unary": unary, "low": low, "values": np.ones(1, np.float32)}
    with pytest.raises(StorageError, match=message):
        Rice().decode(parts, 10, FLOAT32)


def test_gaps_that_no_number_holds_are_refused() -> None:
    size = 2**17
    unary = np.zeros(size // 8, np.uint8)
    unary[-1] = 128
    parts: dict[str, Values] = {
        "unary": unary,
        "low": np.ones(47, np.uint8),
        "values": np.ones(1, np.float32),
    }
    with pytest.raises(StorageError, match="a gap is longer than any tensor"):
        Rice().decode(parts, size, FLOAT32)
