"""The selection for GPUs against a sort, on whatever device there is; masks have tests of their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustcompress.pruning.selection import keep_largest, keep_largest_queued, kth_smallest

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_rank_is_that_of_a_sort(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, generator=generator).abs()
    values = torch.cat([values, values * 1e-30, values * 1e30, torch.zeros(5), values[:50]]).to(dtype)
    expected = values.sort().values
    for k in range(1, len(values) + 1):
        assert torch.equal(kth_smallest(values, k), expected[k - 1]), k


@given(
    values=st.lists(st.sampled_from([0.0, 1e-38, 0.25, 0.5, 0.5000001, 1.0, 3e38, float("inf")]), min_size=1),
    data=st.data(),
)
def test_the_mask_is_that_of_the_plain_selection_whatever_the_ties(
    values: list[float], data: st.DataObject
) -> None:
    removed = data.draw(st.integers(1, len(values)))
    magnitudes = torch.tensor(values)
    assert torch.equal(keep_largest_queued(magnitudes, removed), keep_largest(magnitudes, removed))


def test_a_large_tensor_gives_the_same_mask_too() -> None:
    scores: Tensor = torch.randn(70_001, generator=torch.Generator().manual_seed(1))
    for removed in (1, 35_000, 63_001, 70_000, 70_001):
        assert torch.equal(keep_largest_queued(scores.abs(), removed), keep_largest(scores, removed))


@pytest.mark.gpu
def test_on_a_gpu_the_mask_is_that_of_the_cpu() -> None:
    scores: Tensor = torch.randn(70_001, generator=torch.Generator().manual_seed(1))
    for removed in (1, 63_001, 70_001):
        assert torch.equal(keep_largest(scores.cuda(), removed).cpu(), keep_largest(scores, removed))
