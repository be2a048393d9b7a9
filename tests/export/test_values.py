"""Weights in fewer bits against brute force over all codes."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import ExportError
from robustcompress.export.values import BITS, SCALE_UNIT, ValueType, code, value_bytes

WHOLE: tuple[ValueType, ...] = ("int8", "int6", "int4")


def weights(seed: int, shape: tuple[int, ...], size: float = 1.0) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (size * random.standard_normal(shape) * (random.random(shape) < 0.7)).astype(np.float32)


@pytest.mark.parametrize("kind", WHOLE)
@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    size=st.sampled_from([1e-12, 1e-6, 1e-3, 1.0, 1e4]),
)
@settings(max_examples=30, deadline=None)
def test_every_value_goes_to_the_nearest_code_of_its_row(
    kind: ValueType, seed: int, shape: tuple[int, ...], size: float
) -> None:
    weight = weights(seed, shape, size)
    coded = code(weight, kind)
    top = 2 ** (BITS[kind] - 1) - 1
    assert coded.codes.dtype == np.int8
    assert int(np.abs(coded.codes.astype(int)).max()) <= top
    assert coded.scale is not None
    assert coded.scale.dtype == coded.values.dtype == np.float32
    levels = np.arange(-top, top + 1)[None] * coded.scale[:, None].astype(np.float64)
    rows = weight.reshape(len(weight), -1)
    distances = np.abs(rows[:, :, None].astype(np.float64) - levels[:, None])
    found = np.abs(rows.astype(np.float64) - coded.values.reshape(rows.shape))
    np.testing.assert_allclose(found, distances.min(2), rtol=1e-5, atol=size * 1e-6)
    assert not coded.values[weight == 0].any()


@pytest.mark.parametrize("kind", WHOLE)
def test_the_error_is_at_most_half_a_step_or_less_than_that_of_the_full_range(kind: ValueType) -> None:
    weight = weights(0, (40, 9, 3, 3))
    top = 2 ** (BITS[kind] - 1) - 1
    full = np.abs(weight).reshape(40, -1).max(1)[:, None] / top
    rows = weight.reshape(40, -1)
    plain = np.rint(rows / full) * full
    ours = code(weight, kind).values.reshape(40, -1)
    # float16 rounds the scales by up to one in 2,000.
    assert bool((((ours - rows) ** 2).sum(1) <= 1.05 * ((plain - rows) ** 2).sum(1) + 1e-9).all())
    if kind == "int8":
        assert float((np.abs(ours - rows) / full).max()) <= 0.57


def test_scales_are_float16_numbers_unless_they_are_too_small_for_it() -> None:
    for size in (1e-5, 1.0, 300.0):
        coded = code(weights(0, (5, 20), size), "int8")
        assert coded.half_scale is not None
        assert coded.scale is not None
        spelled = coded.half_scale.astype(np.float64) * SCALE_UNIT
        assert spelled.tolist() == coded.scale.astype(np.float64).tolist()
    assert code(weights(0, (5, 20), 1e-9), "int4").half_scale is None
    assert code(weights(0, (5, 20), 1e5), "int4").half_scale is None
    assert code(weights(0, (5, 20)), "float16").half_scale is None


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_float16_is_numpys_own_and_has_no_negative_zeros(seed: int) -> None:
    weight = weights(seed, (7, 5))
    weight[0, 0] = -0.0
    coded = code(weight, "float16")
    assert coded.codes.dtype == np.float16
    np.testing.assert_array_equal(coded.values, weight.astype(np.float16).astype(np.float32))
    assert not np.signbit(coded.codes[coded.codes == 0]).any()


def test_a_single_value_stays_an_array() -> None:
    coded = code(np.array(0.1, dtype=np.float32), "float16")
    assert isinstance(coded.codes, np.ndarray)
    assert isinstance(coded.values, np.ndarray)
    assert coded.values.shape == ()


def test_bytes_are_those_of_values_that_are_not_zero_and_of_the_scales() -> None:
    weight = np.zeros((4, 10), dtype=np.float32)
    weight[:, :3] = 1.0
    assert value_bytes(code(weight, "float16")) == 24
    assert value_bytes(code(weight, "int8")) == 12 + 8
    assert value_bytes(code(weight, "int6")) == 9 + 8
    assert value_bytes(code(weight, "int4")) == 6 + 8
    assert value_bytes(code(weight * 1e-9, "int4")) == 6 + 16


@pytest.mark.parametrize("kind", [*WHOLE, "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(kind: ValueType, bad: float) -> None:
    with pytest.raises(ExportError, match=f"stored in {kind} is not finite"):
        code(np.array([[1.0, bad]], dtype=np.float32), kind)


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ExportError, match=r"a weight of 7e\+04 is too large for float16; use float32"):
        code(np.array([70000.0], dtype=np.float32), "float16")
