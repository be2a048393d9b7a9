import numpy as np
import pytest
import torch

from robustcompress.export.zeros import is_nonzero, with_positive_zeros

BITS = np.array(
    [0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x7F800000, 0x7FC00001, 0xBF800000], np.uint32
)


def test_only_the_two_zeros_count_as_zero() -> None:
    assert is_nonzero(BITS.view(np.float32)).tolist() == [False, False, True, True, True, True, True]


@pytest.mark.parametrize("flush", [False, True])
def test_only_negative_zeros_change(flush: bool) -> None:
    torch.set_flush_denormal(flush)
    try:
        found = with_positive_zeros(BITS.view(np.float32))
    finally:
        torch.set_flush_denormal(False)
    assert found.view(np.uint32).tolist() == [0, *BITS[:1].tolist(), *BITS[2:].tolist()]


def test_shapes_stay_and_the_array_itself_is_not_changed() -> None:
    array = np.full((2, 3), -0.0, dtype=np.float32)
    found = with_positive_zeros(array.T)
    assert found.shape == (3, 2)
    assert not np.signbit(found).any()
    assert np.signbit(array).all()
    assert with_positive_zeros(np.array(-0.0, dtype=np.float32)).shape == ()


def test_other_types_pass_through() -> None:
    array = np.array([1, -2], dtype=np.int64)
    assert with_positive_zeros(array) is array
