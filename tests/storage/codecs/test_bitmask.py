from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Values
from robustcompress.storage.codecs.bitmask import Bitmask

FLOAT32 = np.dtype(np.float32)


def decoded_by_hand(mask: bytes, values: list[float], size: int) -> list[float]:
    """Follow the format's words, one position at a time."""
    queue = list(values)
    return [queue.pop(0) if mask[i // 8] >> (i % 8) & 1 else 0.0 for i in range(size)]


@given(st.lists(st.sampled_from([0.0, 0.0, 1.5, -2.0]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_bytes_mean_what_the_format_says(values: list[float]) -> None:
    parts = Bitmask().encode(np.array(values, np.float32))
    assert decoded_by_hand(parts["mask"].tobytes(), parts["values"].tolist(), len(values)) == values


def test_a_known_array_gives_known_bytes() -> None:
    parts = Bitmask().encode(np.array([5, 0, 0, 6, 0, 0, 0, 0, 0, 7], np.int8))
    assert parts["mask"].tolist() == [0b00001001, 0b00000010]
    assert parts["values"].tolist() == [5, 6, 7]


def test_ninety_percent_sparse_takes_an_eighth_byte_a_position_and_the_values() -> None:
    random = np.random.default_rng(1)
    values = np.zeros(100_000, np.float32)
    values[random.choice(100_000, 10_000, replace=False)] = 1
    assert sum(part.nbytes for part in Bitmask().encode(values).values()) == 100_000 // 8 + 4 * 10_000


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(1, np.uint8), "part 'mask': expected 2 bytes; got 1 of uint8"),
        (np.zeros(3, np.uint8), "part 'mask': expected 2 bytes; got 3 of uint8"),
        (np.zeros(2, np.int8), "part 'mask': expected 2 bytes; got 2 of int8"),
        (np.array([0, 4], np.uint8), "a bit behind the last of 10 values is set"),
        (np.array([1, 0], np.uint8), "part 'values': expected 1 values of float32; got 0"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask: Values, message: str) -> None:
    parts: dict[str, Any] = {"mask": mask, "values": np.zeros(0, np.float32)}
    with pytest.raises(StorageError, match=message):
        Bitmask().decode(parts, 10, FLOAT32)
