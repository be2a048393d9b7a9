import math
from itertools import pairwise
from typing import Literal

import pytest
from pydantic import ValidationError

from robustcompress.training.schedule import learning_rate
from robustcompress.training.settings import StageSettings


def rates(schedule: Literal["cosine", "step", "one_cycle", "constant"], warmup: float = 0) -> list[float]:
    settings = StageSettings(epochs=10, lr=0.4, schedule=schedule, warmup_epochs=warmup)
    return [learning_rate(settings, step, 10) for step in range(100)]


def test_cosine_follows_its_formula() -> None:
    expected = [0.4 * 0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(100)]
    assert rates("cosine") == pytest.approx(expected)


def test_step_divides_at_each_milestone() -> None:
    found = rates("step")
    assert found[:50] == [0.4] * 50
    assert found[50:75] == pytest.approx([0.04] * 25)
    assert found[75:] == pytest.approx([0.004] * 25)


def test_warmup_rises_linearly_to_the_largest_rate() -> None:
    found = rates("one_cycle", warmup=2)
    assert found[:20] == pytest.approx([0.4 * (step + 1) / 21 for step in range(20)])
    assert found[20] == 0.4
    assert all(later < earlier for earlier, later in pairwise(found[20:]))
    assert found[-1] == pytest.approx(0.4 / 80)


def test_constant_stays() -> None:
    assert set(rates("constant")) == {0.4}


def test_warmup_must_end_before_the_stage_does() -> None:
    with pytest.raises(ValidationError, match="must be below epochs=2"):
        StageSettings(epochs=2, lr=0.1, warmup_epochs=2)


def test_milestones_are_fractions() -> None:
    with pytest.raises(ValidationError, match="milestones are fractions of the stage"):
        StageSettings(epochs=2, lr=0.1, milestones=(30.0,))
