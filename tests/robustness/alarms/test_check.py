import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from robustcompress.robustness.alarms import kinds
from robustcompress.robustness.alarms.check import Alarm, Check, images_needed, judged, not_made, power

ALPHA = 0.001


def alarm(tolerance: float = 0.05, concern: float = 0.2) -> Alarm:
    return Alarm("name", "something is wrong", tolerance, concern, "Do something.", "someone")


def tail(least: int, count: int, probability: float) -> float:
    """Return the probability of ``least`` hits or more, term by term."""
    return sum(
        math.comb(count, k) * probability**k * (1 - probability) ** (count - k)
        for k in range(least, count + 1)
    )


@given(
    st.integers(1, 120).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))),
    st.sampled_from([0.01, 0.05, 0.3]),
)
def test_an_alarm_fires_where_chance_explains_the_hits_less_often_than_alpha(
    pair: tuple[int, int], tolerance: float
) -> None:
    hits, count = pair
    check = judged(alarm(tolerance, 0.5), hits, count, alpha=ALPHA)
    assert check.fired == (tail(hits, count, tolerance) < ALPHA)
    assert (check.hits, check.count, check.tolerance, check.alpha) == (hits, count, tolerance, ALPHA)


@given(st.integers(0, 40), st.integers(0, 40))
def test_of_two_attacks_one_is_better_only_beyond_the_toss_of_a_coin(hits: int, against: int) -> None:
    check = judged(alarm(), hits, 100, alpha=ALPHA, against=against)
    exceeds = tail(hits, 100, 0.05) < ALPHA
    mcnemar = hits > 0 and tail(hits, hits + against, 0.5) < ALPHA
    assert check.fired == (exceeds and mcnemar)


@given(st.integers(1, 150), st.sampled_from([0.12, 0.2, 0.5, 0.9]))
def test_power_is_how_often_the_concern_sets_the_alarm_off(count: int, concern: float) -> None:
    fires = [hits for hits in range(count + 1) if judged(alarm(), hits, count, alpha=ALPHA).fired]
    expected = tail(min(fires), count, concern) if fires else 0.0
    assert power(count, 0.05, concern, alpha=ALPHA) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("found", kinds.ALL, ids=lambda found: found.name)
def test_images_needed_see_the_concern_nine_times_in_ten_and_half_of_them_do_not(found: Alarm) -> None:
    needed = images_needed(found.tolerance, found.concern, alpha=ALPHA)
    assert power(needed, found.tolerance, found.concern, alpha=ALPHA) >= 0.9
    assert power(needed // 2, found.tolerance, found.concern, alpha=ALPHA) < 0.9
    assert needed <= 130  # of the 200 that are looked at, so many are right where most are


def test_too_few_images_are_undecided_and_say_how_many_would_do() -> None:
    few = judged(alarm(), 0, 20, alpha=ALPHA)
    assert few.verdict == "undecided"
    assert str(few) == (
        f"name: too few images to tell (0 of 20 images; tolerated 5%); {few.needed} that are right would do"
    )
    assert judged(alarm(), 0, few.needed, alpha=ALPHA).verdict == "quiet"
    assert judged(alarm(), 0, 0, alpha=ALPHA).verdict == "undecided"


def test_few_images_suffice_where_all_of_them_speak() -> None:
    assert judged(alarm(), 10, 10, alpha=ALPHA).fired


def test_a_fired_alarm_says_what_was_found_and_what_to_do() -> None:
    text = str(judged(alarm(), 60, 100, alpha=ALPHA, against=3))
    assert text.startswith("something is wrong (60 of 100 images, 3 the other way; tolerated 5%, surely more")
    assert text.endswith("Do something.")


def test_a_quiet_one_says_so() -> None:
    assert str(judged(alarm(), 1, 200, alpha=ALPHA)) == "name: quiet (1 of 200 images; tolerated 5%)"


def test_a_check_that_could_not_be_made_is_undecided_and_says_why() -> None:
    check = not_made(alarm(), "no gradients", alpha=ALPHA)
    assert (check.verdict, check.fired, check.needed) == ("undecided", False, 0)
    assert str(check) == "name: not checked: no gradients"


def test_a_check_is_the_same_after_json() -> None:
    check = judged(alarm(), 60, 100, alpha=ALPHA, against=3)
    assert Check.model_validate_json(check.model_dump_json()) == check


def test_more_hits_than_images_are_refused() -> None:
    with pytest.raises(ValidationError, match="hits must be at most count; got 3 of 2"):
        Check.model_validate({**not_made(alarm(), "x", alpha=ALPHA).model_dump(), "hits": 3, "count": 2})


def test_every_alarm_has_a_name_of_its_own_and_tolerates_less_than_it_must_not_miss() -> None:
    assert len({found.name for found in kinds.ALL}) == len(kinds.ALL)
    for found in kinds.ALL:
        assert 0 < found.tolerance < found.concern < 1
        assert found.claim
        assert found.advice
        assert "https://" in found.source
    assert {*kinds.NEED_GRADIENTS, *kinds.COMPARISONS} <= set(kinds.ALL)
