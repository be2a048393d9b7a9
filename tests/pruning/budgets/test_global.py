import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.pruning.budgets import Global
from robustcompress.pruning.patterns import Site
from tests.pruning.budgets.plain import PlainSite


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(
        st.lists(st.sampled_from([-4.0, -1.5, 0.0, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=5),
        min_size=1,
        max_size=3,
    ),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_no_other_allocation_keeps_larger_scores(values: list[list[float]], sparsity: float) -> None:
    """Brute force: every way to spread the same number of kept units, each site keeping its largest."""
    scores = [torch.tensor(row) for row in values]
    sites: list[Site] = [PlainSite(len(row)) for row in values]
    removed = Global().removed(sites, scores, sparsity)
    kept = [site.units - count for site, count in zip(sites, removed, strict=True)]

    def worth(counts: tuple[int, ...]) -> float:
        best = (sorted(map(abs, row), reverse=True)[:n] for row, n in zip(values, counts, strict=True))
        return sum(map(sum, best))

    every = itertools.product(*(range(1, site.units + 1) for site in sites))
    assert worth(tuple(kept)) == max(worth(choice) for choice in every if sum(choice) == sum(kept))


def test_a_layer_of_small_weights_keeps_its_minimum() -> None:
    sites: list[Site] = [PlainSite(10), PlainSite(10, minimum_kept=3)]
    scores = [torch.linspace(1, 2, 10), torch.linspace(0, 0.1, 10)]
    assert Global().removed(sites, scores, 0.5) == [3, 7]


def test_scaled_by_their_root_mean_square_layers_are_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, generator=generator)
    sites: list[Site] = [PlainSite(40), PlainSite(40)]
    assert Global().removed(sites, [values, 100 * values], 0.5) == [39, 1]
    assert Global(scale="rms").removed(sites, [values, 100 * values], 0.5) == [20, 20]


def test_scores_of_zero_can_be_scaled() -> None:
    sites: list[Site] = [PlainSite(4), PlainSite(4)]
    assert Global(scale="rms").removed(sites, [torch.zeros(4), torch.ones(4)], 0.5) == [3, 1]


def test_another_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="Input should be 'none' or 'rms'"):
        Global.model_validate({"scale": "mean"})
