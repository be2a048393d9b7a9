import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from pydantic import ValidationError

from robustcompress.training.schedule import learning_rate
from robustcompress.training.settings import StageSettings


def rates(
    schedule: Literal["cosine", "step", "one_cycle", "one_cycle_cosine", "constant"], warmup: float = 0
) -> list[float]:
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


def test_one_cycle_is_piecewise_linear() -> None:
    found = rates("one_cycle", warmup=4)
    # Wong et al.: numpy.interp(t, [0, 0.4 * T, T], [0, lr, 0]).
    expected = [0.4 * min((step + 1) / 41, (100 - step) / 60) for step in range(100)]
    assert found == pytest.approx(expected)


def test_one_cycle_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # Torch's last step of the rise is step 0.21 * 100 - 1.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=100, pct_start=0.21)
    expected: list[float] = []
    for _ in range(100):
        expected.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    # Ours ends 25 * 10,000 below the largest rate, torch's 10,000 below the first: the same.
    assert rates("one_cycle_cosine", warmup=2) == pytest.approx(expected)


def test_one_cycle_cosine_without_warmup_only_falls() -> None:
    found = rates("one_cycle_cosine")
    assert found[0] == 0.4
    assert found[-1] == pytest.approx(0.4 / 250_000)
    assert all(later < earlier for earlier, later in pairwise(found))


def test_constant_stays() -> None:
    assert set(rates("constant")) == {0.4}


def test_warmup_must_end_before_the_stage_does() -> None:
    with pytest.raises(ValidationError, match="must be below epochs=2"):
        StageSettings(epochs=2, lr=0.1, warmup_epochs=2)


def test_milestones_are_fractions() -> None:
    with pytest.raises(ValidationError, match="milestones are fractions of the stage"):
        StageSettings(epochs=2, lr=0.1, milestones=(30.0,))
