import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robustcompress.robustness.measurement import Measurement, wilson_interval


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_equals_the_published_ones(correct: int, count: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_ends_of_the_interval_are_where_the_score_test_just_rejects(count: int, share: float) -> None:
    correct = round(share * count)
    for end in wilson_interval(correct, count):
        if 0 < end < 1:
            score = abs(correct / count - end) / math.sqrt(end * (1 - end) / count)
            assert score == pytest.approx(1.959964, rel=1e-6)


def test_the_interval_ends_at_0_and_1_exactly() -> None:
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


def test_a_measurement_survives_json_with_its_computed_fields() -> None:
    measurement = Measurement(
        subject="network",
        attack="PGD-20x1",
        access="white-box",
        norm="linf",
        eps=0.1,
        settings={"steps": 20, "step_size": 0.0125},
        seed=3,
        correct=15,
        count=148,
    )
    text = measurement.model_dump_json()
    assert '"accuracy":0.10135135135135136' in text
    assert '"interval":[0.06' in text
    assert Measurement.model_validate_json(text) == measurement


def test_more_right_than_judged_is_refused() -> None:
    with pytest.raises(ValidationError, match="correct must be at most count; got 3 of 2"):
        Measurement(subject="network", attack="clean", access="none", seed=0, correct=3, count=2)
