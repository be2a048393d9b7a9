"""The search for a sparsity, against brute force over all of them; constraints as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Uniform
from robustcompress.pruning.constraints import Check, Constraints, absolute, find_sparsity, missed
from robustcompress.pruning.patterns import Site
from tests.pruning.budgets.plain import PlainSite


@pytest.mark.parametrize(
    ("given_as", "means"),
    [
        ("25%", 0.25),
        (0.25, 0.25),
        ("0.25", 0.25),
        ("50M", 5e7),
        ("1.5G", 1.5e9),
        ("2e6", 2e6),
        (123456, 123456),
    ],
)
def test_shares_and_numbers_are_read(given_as: object, means: float) -> None:
    assert Constraints.model_validate({"macs": given_as}).macs == means
    assert Constraints.model_validate({"weights": given_as}).weights == means


@pytest.mark.parametrize(
    ("given_as", "means"),
    [
        ("300kB", 300_000),
        ("300 kB", 300_000),
        ("2MiB", 2 * 1024**2),
        ("1.5MB", 1_500_000),
        (512, 512),
        ("512", 512),
    ],
)
def test_sizes_are_read(given_as: object, means: float) -> None:
    assert Constraints.model_validate({"bytes": given_as}).bytes == means


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"macs": "many"}, r"expected 0.25, '25%', 50000000 or '50M'; got 'many'"),
        ({"macs": "x%"}, r"expected a percentage such as '25%'; got 'x%'"),
        ({"macs": "1.2.3M"}, r"expected 0.25, '25%', 50000000 or '50M'; got '1.2.3M'"),
        ({"bytes": "3 pounds"}, r"expected 300000, '300kB' or '2MiB'; got '3 pounds'"),
        ({"macs": 0}, "greater than 0"),
        ({"latency_ms": -1}, "greater than 0"),
        ({"speed": 3}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_no_constraint_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Constraints.model_validate(values)


def test_constraints_are_true_if_there_are_any() -> None:
    assert not Constraints()
    assert not Constraints(latency_threads=4)
    assert Constraints(macs=0.5)
    assert Constraints(latency_ms=2)


def test_up_to_one_an_amount_is_a_share() -> None:
    assert absolute(0.25, 4000) == 1000
    assert absolute(1.0, 4000) == 4000
    assert absolute(300.0, 4000) == 300


@settings(max_examples=100, deadline=None)
@given(
    units=st.lists(st.integers(2, 30), min_size=1, max_size=4),
    share=st.floats(0.05, 1),
    data=st.data(),
)
def test_no_smaller_sparsity_meets_the_constraints(
    units: list[int], share: float, data: st.DataObject
) -> None:
    sites: list[Site] = [PlainSite(count) for count in units]
    prices = [data.draw(st.integers(1, 9)) for _ in units]

    def allocate(sparsity: float) -> list[int]:
        removed = Uniform().removed(sites, [], sparsity)
        return [site.units - count for site, count in zip(sites, removed, strict=True)]

    def cost(kept: object) -> float:
        assert isinstance(kept, list)
        return float(sum(price * count for price, count in zip(prices, kept, strict=True)))

    check = Check("macs", cost, share * cost(units))
    total = sum(units)
    every = [allocate(gone / total) for gone in range(total)]
    if not any(check.holds(kept) for kept in every):
        with pytest.raises(ConfigError, match=r"constraint macs <= .* is not met: the smallest network has"):
            find_sparsity(allocate, total, [check])
        return
    found = find_sparsity(allocate, total, [check])
    assert check.holds(allocate(found))
    # With a rounding that is not quite monotone another one may do; not one unit less than found.
    gone = total - sum(allocate(found))
    assert gone == 0 or not check.holds(allocate((gone - 1) / total))


def test_several_constraints_hold_together() -> None:
    sites: list[Site] = [PlainSite(100), PlainSite(50)]

    def allocate(sparsity: float) -> list[int]:
        removed = Uniform().removed(sites, [], sparsity)
        return [site.units - count for site, count in zip(sites, removed, strict=True)]

    checks = [
        Check("weights", lambda kept: float(sum(kept)), 60),
        Check("macs", lambda kept: float(kept[0]), 30),
    ]
    assert sum(allocate(find_sparsity(allocate, 150, checks))) == 45


def test_a_constraint_that_holds_already_removes_nothing() -> None:
    assert find_sparsity(lambda sparsity: [10], 10, [Check("weights", lambda kept: 5.0, 5.0)]) == 0


def test_a_constraint_that_cannot_be_met_says_how_close_it_comes_and_what_to_do() -> None:
    check = Check("macs", lambda kept: 5000.0, 1000.0, "Use the pattern 'channel'.")
    with pytest.raises(
        ConfigError,
        match=r"constraint macs <= 1,000 is not met: the smallest network has 5,000, 5.00 times the target. "
        r"Use the pattern 'channel'\.",
    ):
        find_sparsity(lambda sparsity: [1], 10, [check])
    assert missed("latency_ms", 2.5, 2, "the file").endswith("Relax the constraint, or ignore fewer layers.")
