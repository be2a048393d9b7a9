"""Counts that add up, against brute force over every allocation."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.pruning.patterns import Site
from robustcompress.pruning.rounding import fit_kept, least_kept, nearest_kept, next_kept
from tests.pruning.budgets.plain import PlainSite


def allowed(site: Site) -> list[int]:
    """Every count that a site may keep, by definition."""
    fine = [n for n in range(site.minimum_kept, site.units) if n % site.granularity == 0]
    return [*fine, site.units]


def drawn_sites(granularities: list[int]) -> st.SearchStrategy[list[Site]]:
    def make(units: int, granularity: int, minimum: int) -> Site:
        return PlainSite(units, granularity=granularity, minimum_kept=min(units, minimum))

    one = st.builds(make, st.integers(1, 40), st.sampled_from(granularities), st.integers(1, 3))
    return st.lists(one, min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(sites=drawn_sites([1]), data=st.data())
def test_counts_of_single_units_add_up_exactly_and_stay_within_one_of_the_scaled_wish(
    sites: list[Site], data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, sum(site.units for site in sites)))
    wanted = [data.draw(st.floats(0, site.units)) for site in sites]
    kept = fit_kept(wanted, sites, total)
    least, most = [least_kept(site) for site in sites], [site.units for site in sites]
    assert all(low <= count <= high for low, count, high in zip(least, kept, most, strict=True))
    assert sum(kept) == max(total, sum(least))


@settings(max_examples=150, deadline=None)
@given(sites=drawn_sites([1, 2, 4, 8]), data=st.data())
def test_no_allocation_that_granularity_allows_comes_nearer_to_the_total(
    sites: list[Site], data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, sum(site.units for site in sites)))
    sparsity = 1 - total / sum(site.units for site in sites)
    kept = fit_kept([(1 - sparsity) * site.units for site in sites], sites, total)
    for site, count in zip(sites, kept, strict=True):
        assert count in allowed(site)
    best = min(abs(sum(choice) - total) for choice in itertools.product(*map(allowed, sites)))
    assert abs(sum(kept) - total) == best


def test_among_equal_sums_the_one_nearest_to_the_wish_is_taken() -> None:
    sites: list[Site] = [PlainSite(64, granularity=16), PlainSite(64, granularity=16)]
    for wanted in ([17.0, 47.0], [30.0, 34.0], [40.0, 24.0], [62.0, 2.0]):
        kept = fit_kept(wanted, sites, 64)
        choices = [choice for choice in itertools.product(*map(allowed, sites)) if sum(choice) == 64]
        distance = [sum((a - b) ** 2 for a, b in zip(choice, wanted, strict=True)) for choice in choices]
        found = sum((a - b) ** 2 for a, b in zip(kept, wanted, strict=True))
        assert found == min(distance)


def test_what_one_site_cannot_lose_the_others_lose_in_proportion() -> None:
    sites: list[Site] = [PlainSite(10, minimum_kept=10), PlainSite(100), PlainSite(200)]
    assert fit_kept([1.0, 10.0, 20.0], sites, 31) == [10, 7, 14]


def test_what_one_site_cannot_hold_the_others_keep_in_proportion() -> None:
    sites: list[Site] = [PlainSite(10), PlainSite(100), PlainSite(200)]
    assert fit_kept([40.0, 10.0, 20.0], sites, 70) == [10, 20, 40]


def test_millions_of_units_add_up_too() -> None:
    units = [1728, 36864, 2359296, 2359296, 5120, 7077889]
    sites: list[Site] = [PlainSite(count) for count in units]
    for percent in (50.0, 90.0, 99.0, 99.9):
        total = sum(units) - round(percent / 100 * sum(units))
        kept = fit_kept([(1 - percent / 100) * count for count in units], sites, total)
        assert sum(kept) == total
        for count, size in zip(kept, units, strict=True):
            assert abs(count - (1 - percent / 100) * size) < 1


@pytest.mark.parametrize(
    ("wanted", "kept"), [(0.0, 16), (23.9, 16), (24.0, 16), (24.1, 32), (45.0, 48), (50.0, 50), (99.0, 50)]
)
def test_nearest_counts_are_multiples_or_all(wanted: float, kept: int) -> None:
    assert nearest_kept(wanted, PlainSite(50, granularity=16)) == kept


def test_the_next_larger_count_ends_at_all() -> None:
    site = PlainSite(50, granularity=16)
    assert [next_kept(count, site) for count in (16, 32, 48, 50)] == [32, 48, 50, 50]


def test_a_minimum_is_rounded_up_to_the_granularity() -> None:
    assert least_kept(PlainSite(50, granularity=16, minimum_kept=17)) == 32
    assert least_kept(PlainSite(10, granularity=16, minimum_kept=1)) == 10
