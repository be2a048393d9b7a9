"""The bound against closed forms, exact rational arithmetic and published intervals."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcompress.errors import ConfigError
from robustcompress.robustness.binomial import lower_bound, upper_tail


def _exact_tail(hits: int, draws: int, probability: float) -> Fraction:
    p = Fraction(probability)
    terms = (math.comb(draws, j) * p**j * (1 - p) ** (draws - j) for j in range(hits, draws + 1))
    return sum(terms, start=Fraction(0))


@pytest.mark.parametrize("alpha", [0.4, 0.05, 0.001, 1e-9])
@pytest.mark.parametrize("draws", [1, 2, 17, 1000, 100_000, 10_000_000])
def test_where_all_draws_hit_the_bound_is_a_root_of_alpha(draws: int, alpha: float) -> None:
    bound = lower_bound(draws, draws, alpha=alpha)
    assert bound == pytest.approx(alpha ** (1 / draws), rel=1e-10)
    assert draws * math.log(bound) <= math.log(alpha)


@pytest.mark.parametrize("alpha", [0.4, 0.05, 1e-6])
@pytest.mark.parametrize("draws", [1, 3, 250])
def test_a_single_hit_has_a_closed_form_too(draws: int, alpha: float) -> None:
    # One hit or more: 1 - (1 - p)^n = alpha.
    assert lower_bound(1, draws, alpha=alpha) == pytest.approx(1 - (1 - alpha) ** (1 / draws), rel=1e-9)


def test_without_hits_the_bound_is_zero() -> None:
    assert lower_bound(0, 10, alpha=0.05) == 0.0


@pytest.mark.parametrize(
    ("hits", "draws", "alpha", "published"),
    [
        (3, 15, 0.05, 0.05684686759024681),  # SciPy's manual, binomtest(3, 15, alternative="greater")
        (682, 925, 0.025, 0.7076683),  # R's manual, binom.test(682, 925): Mendel's peas, two-sided 95%
    ],
)
def test_published_intervals_are_found(hits: int, draws: int, alpha: float, published: float) -> None:
    assert lower_bound(hits, draws, alpha=alpha) == pytest.approx(published, abs=5e-8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_exact_tail_is_never_above_alpha_and_just_below_it(data: st.DataObject) -> None:
    draws = data.draw(st.integers(1, 120))
    hits = data.draw(st.integers(1, draws))
    alpha = data.draw(st.floats(1e-6, 0.499))
    bound = lower_bound(hits, draws, alpha=alpha)
    tail = _exact_tail(hits, draws, bound)
    assert tail <= Fraction(alpha)  # sound in exact arithmetic
    assert tail >= Fraction(alpha) * (1 - Fraction(1, 10**8))  # and not by giving radius away


@pytest.mark.parametrize(("hits", "draws"), [(99_000, 100_000), (50_300, 100_000), (60_000, 100_000)])
def test_the_tail_of_many_draws_is_that_of_fifty_digits(hits: int, draws: int) -> None:
    from decimal import Decimal, localcontext

    bound = lower_bound(hits, draws, alpha=0.001)
    with localcontext() as context:
        context.prec, context.Emin = 50, -(10**9)
        p = Decimal(bound)
        term = Decimal(math.comb(draws, hits)) * p**hits * (1 - p) ** (draws - hits)
        tail = term
        for count in range(hits, min(draws, hits + 3000)):
            term *= Decimal(draws - count) / (count + 1) * p / (1 - p)
            tail += term
    assert 0.001 * (1 - 1e-6) <= tail <= 0.001


def test_more_hits_and_a_larger_alpha_raise_the_bound() -> None:
    bounds = [lower_bound(hits, 40, alpha=0.01) for hits in range(41)]
    assert bounds == sorted(bounds)
    assert len(set(bounds)) == 41
    assert lower_bound(30, 40, alpha=0.01) < lower_bound(30, 40, alpha=0.05) < 30 / 40


def test_the_tail_at_its_ends() -> None:
    assert upper_tail(0, 10, 0.3) == 1.0
    assert upper_tail(3, 10, 0.0) == 0.0
    assert upper_tail(10, 10, 0.5) == pytest.approx(2**-10)


@pytest.mark.parametrize(("hits", "draws"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(hits: int, draws: int) -> None:
    with pytest.raises(ConfigError, match=f"got {hits} hits of {draws} draws"):
        lower_bound(hits, draws, alpha=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -0.1, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha must be in \(0, 0.5\); got"):
        lower_bound(1, 2, alpha=alpha)
