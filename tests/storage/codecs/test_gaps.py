import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Values
from robustcompress.storage.codecs.gaps import Gaps

FLOAT32 = np.dtype(np.float32)


def decoded_by_hand(gaps: Values, values: list[float], size: int) -> list[float]:
    """Follow the format's words, one number at a time."""
    escape = {"uint8": 255, "uint16": 65535}[gaps.dtype.name]
    queue, found, position = list(values), [0.0] * size, 0
    for gap in gaps.tolist():
        position += gap
        if gap != escape:
            found[position] = queue.pop(0)
            position += 1
    assert not queue
    return found


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 254, 255, 256, 509, 510, 511, 2000]), st.floats(1, 9, width=32))
    )
)
@settings(max_examples=100, deadline=None)
def test_numbers_mean_what_the_format_says(runs: list[tuple[int, float]]) -> None:
    values = [number for zeros, value in runs for number in [*[0.0] * zeros, value]] + [0.0] * 300
    parts = Gaps().encode(np.array(values, np.float32))
    assert decoded_by_hand(parts["gaps"], parts["values"].tolist(), len(values)) == values


def test_a_known_array_gives_known_numbers() -> None:
    values = np.zeros(1100, np.int16)
    values[[0, 3, 4, 259, 515, 1026]] = [1, 2, 3, 4, 5, 6]
    parts = Gaps().encode(values)
    assert parts["gaps"].tolist() == [0, 2, 0, 254, 255, 0, 255, 255, 0]


def test_wide_gaps_are_written_in_two_bytes_where_that_is_smaller() -> None:
    values = np.zeros(200_000, np.float32)
    values[[9_000, 80_000, 199_999]] = 1
    parts = Gaps().encode(values)
    assert parts["gaps"].dtype == np.uint16
    assert parts["gaps"].tolist() == [9_000, 65535, 70_999 - 65535, 65535, 119_998 - 65535]
    assert decoded_by_hand(parts["gaps"], parts["values"].tolist(), len(values)) == values.tolist()


@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.999])
def test_positions_of_a_random_mask_take_what_the_closed_form_says(sparsity: float) -> None:
    size, kept = 1_000_000, round(1_000_000 * (1 - sparsity))
    values = np.zeros(size, np.float32)
    values[np.random.default_rng(2).choice(size, kept, replace=False)] = 1
    # A gap is geometric, so that it needs at least j escapes of E zeros with probability s**(E * j).
    narrow = kept * (1 + sparsity**255 / (1 - sparsity**255))
    wide = 2 * kept * (1 + sparsity**65535 / (1 - sparsity**65535))
    parts = Gaps().encode(values)
    assert math.isclose(parts["gaps"].nbytes, min(narrow, wide), rel_tol=0.02)
    assert parts["values"].nbytes == 4 * kept


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        (np.array([3], np.int8), "part 'gaps': expected uint8 or uint16; got int8"),
        (np.array([3], np.float32), "part 'gaps': expected uint8 or uint16; got float32"),
        (np.array([3, 255], np.uint8), "ends in an escape"),
        (np.array([10], np.uint8), "position 10 is outside 10 values"),
        (np.array([255, 255, 0], np.uint8), "position 510 is outside 10 values"),
        (np.array([9, 0], np.uint16), "position 10 is outside 10 values"),
        (np.array([1, 1], np.uint8), "expected 2 values of float32; got 1"),
        (np.array([], np.uint8), "expected 0 values of float32; got 1"),
    ],
)
def test_gaps_that_do_not_fit_are_refused(gaps: Values, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Gaps().decode({"gaps": gaps, "values": np.ones(1, np.float32)}, 10, FLOAT32)
