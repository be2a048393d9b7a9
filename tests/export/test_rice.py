import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import ExportError
from robustcompress.export import rice

position_sets = st.one_of(
    st.sets(st.integers(0, 300)),
    st.sets(st.integers(0, 2**18), max_size=60),
    st.integers(0, 200).map(lambda count: set(range(count))),
).map(lambda found: np.array(sorted(found), dtype=np.int64))


def spelled_out(positions: list[int], parameter: int) -> tuple[str, list[str]]:
    """Code by the book, digit by digit: the unary stream and one string for each bit plane."""
    unary, lows = "", ["1" * parameter]
    for before, position in pairwise([-1, *positions]):
        high, low = divmod(position - before - 1, 2**parameter)
        unary += "0" * high + "1"
        lows.append(format(low, f"0{parameter}b") if parameter else "")
    return unary, ["".join(low[plane] for low in lows) for plane in range(parameter)]


def digits(packed: rice.Packed, count: int) -> str:
    return "".join(format(byte, "08b") for byte in packed.tolist())[:count]


@given(positions=position_sets, parameter=st.integers(6, 20))
@settings(max_examples=60, deadline=None)
def test_streams_are_those_spelled_out_by_hand(positions: rice.Positions, parameter: int) -> None:
    code = rice.encode(positions, parameter)
    unary, planes = spelled_out(positions.tolist(), parameter)
    assert digits(code.unary, code.unary_bits) == unary
    assert [digits(plane, len(positions) + 1) for plane in code.planes] == planes


@given(positions=position_sets, parameter=st.one_of(st.none(), st.integers(6, 20)))
@settings(max_examples=100, deadline=None)
def test_decode_of_encode_is_identity(positions: rice.Positions, parameter: int | None) -> None:
    np.testing.assert_array_equal(rice.decode(rice.encode(positions, parameter)), positions)


@given(positions=st.sets(st.integers(0, 400), min_size=1))
@settings(max_examples=50, deadline=None)
def test_with_parameter_zero_the_unary_stream_is_the_bitmask(positions: set[int]) -> None:
    code = rice.encode(np.array(sorted(positions), dtype=np.int64), 0)
    mask = np.unpackbits(code.unary, count=code.unary_bits)
    assert set(np.flatnonzero(mask).tolist()) == positions
    assert code.planes.shape[0] == 0


@given(positions=position_sets)
@settings(max_examples=50, deadline=None)
def test_the_best_parameter_is_best_and_sizes_are_known_beforehand(positions: rice.Positions) -> None:
    gaps = rice.gaps_of(positions)
    best = rice.best_parameter(gaps)
    assert rice.encode(positions).parameter == best
    sizes = {parameter: rice.encode(positions, parameter).size_bytes for parameter in range(1, 30)}
    assert sizes[best] == min(sizes.values())
    assert sizes == {parameter: rice.coded_bytes(gaps, parameter) for parameter in sizes}


@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.99])
def test_random_positions_come_within_two_percent_of_their_entropy(sparsity: float) -> None:
    size = 1_000_000
    kept = np.random.default_rng(0).permutation(size)[: round(size * (1 - sparsity))]
    entropy = -sparsity * math.log2(sparsity) - (1 - sparsity) * math.log2(1 - sparsity)
    size_bytes = rice.encode(np.sort(kept)).size_bytes
    # Bits for a fixed count are a little fewer than size * entropy: by log2(2 pi size p q) / 2, some 10 bits.
    assert size * entropy / 8 - 10 <= size_bytes <= 1.02 * size * entropy / 8


@pytest.mark.parametrize("positions", [[3, 2], [1, 1], [-1, 4]])
def test_positions_that_do_not_increase_are_refused(positions: list[int]) -> None:
    with pytest.raises(ExportError, match="0 or more and strictly increasing"):
        rice.encode(np.array(positions, dtype=np.int64))
