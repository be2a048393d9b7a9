"""What every budget promises; a new file in the family is tested here by being there."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress import families
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.patterns.unstructured import WeightSite

each_kind = pytest.mark.parametrize("kind", families.kinds(Budget.family))


@each_kind
def test_settings_survive_yaml(kind: str) -> None:
    budget = Budget.find(kind)
    assert budget.kind == kind
    assert Budget.find(yaml.safe_load(yaml.safe_dump(budget.model_dump()))) == budget


@each_kind
def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Budget.find({"kind": kind, "colour": 3})


@each_kind
@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_every_site_keeps_its_minimum_and_together_they_lose_what_was_asked_for(
    kind: str, shapes: list[tuple[int, int]], sparsity: float
) -> None:
    weights = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    sites = [WeightSite(str(index), weight) for index, weight in enumerate(weights)]
    removed = Budget.find(kind).removed(sites, weights, sparsity)
    assert len(removed) == len(sites)
    for site, count in zip(sites, removed, strict=True):
        assert 0 <= count <= site.units - site.minimum_kept
    units = sum(site.units for site in sites)
    possible = units - sum(site.minimum_kept for site in sites)
    assert sum(removed) == min(round(sparsity * units), possible)


@each_kind
@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    granularities=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=4, max_size=4),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_kept_counts_are_multiples_and_add_up_as_nearly_as_multiples_can(
    kind: str, shapes: list[tuple[int, int]], granularities: list[int], sparsity: float
) -> None:
    weights = [torch.rand(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    sites = [WeightSite(str(index), weight) for index, weight in enumerate(weights)]
    for site, granularity in zip(sites, granularities, strict=False):
        site.granularity = granularity
    removed = Budget.find(kind).removed(sites, weights, sparsity)
    for site, count in zip(sites, removed, strict=True):
        kept = site.units - count
        assert kept == site.units or (kept % site.granularity == 0 and kept > 0)
    units = sum(site.units for site in sites)
    least = sum(min(site.units, site.granularity) for site in sites)
    asked = max(units - round(sparsity * units), least)
    # Half a step of the coarsest site, and its last, shorter one.
    assert abs(units - sum(removed) - asked) <= max(granularities)


@each_kind
def test_sites_whose_pattern_says_how_many_go_are_not_asked(kind: str) -> None:
    weights = [torch.rand(10, 10), torch.rand(8, 4)]
    sites = [WeightSite(str(index), weight) for index, weight in enumerate(weights)]
    sites[1].fixed_removed = 16
    assert Budget.find(kind).counts(sites, weights, 0.9) == [90, 16]


@each_kind
def test_no_sparsity_removes_nothing(kind: str) -> None:
    weight = torch.rand(4, 5)
    assert Budget.find(kind).removed([WeightSite("a", weight)], [weight], 0.0) == [0]
