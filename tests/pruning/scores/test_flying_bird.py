import math

import pytest
import torch

from robustcompress.pruning.scores.flying_bird import FlyingBird

GROWING = [(0.5, 0.4), (0.6, 0.45), (0.7, 0.5)]  # the gap widens, validation rises
STALLED = [(0.5, 0.4), (0.5, 0.4), (0.4, 0.4)]  # validation stands, the gap does not widen


def test_the_exchange_falls_with_a_cosine_from_the_fraction_to_nothing() -> None:
    bird = FlyingBird(fraction=0.3)
    assert bird.exchanged(0.0) == pytest.approx(0.3)
    assert bird.exchanged(1 / 3) == pytest.approx(0.3 * 0.75)
    assert bird.exchanged(0.5) == pytest.approx(0.15)
    assert bird.exchanged(1.0) == pytest.approx(0.0, abs=1e-15)


def test_the_first_masks_are_random_or_those_of_large_weights() -> None:
    weight = torch.randn(5, 4)
    assert torch.equal(FlyingBird(start="magnitude").first(weight, torch.Generator()), weight)
    first = FlyingBird().first(weight, torch.Generator().manual_seed(3))
    assert first.dtype == weight.dtype
    assert torch.equal(first, FlyingBird().first(weight * 2, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, FlyingBird().first(weight, torch.Generator().manual_seed(4)))
    assert first.unique().numel() == 20
    many = FlyingBird().first(torch.zeros(20000), torch.Generator().manual_seed(0))
    assert math.isclose(float(many.mean()), 0.5, abs_tol=0.01)  # uniform: standard error 0.002


def test_a_gap_that_widens_drops_more_and_accuracy_that_stands_grows_more() -> None:
    bird = FlyingBird(plus=True, plus_drop=0.4, plus_grow=0.05)
    assert bird.extra(GROWING, 0.6) == (0.4, 0.0)
    assert bird.extra(STALLED, 0.6) == (0.0, 0.05)
    assert bird.extra([(0.5, 0.4), (0.6, 0.4)], 0.6) == (0.4, 0.05)
    assert bird.extra([(0.5, 0.4), (0.5, 0.45)], 0.6) == (0.0, 0.0)


def test_only_the_window_counts_and_half_of_it_is_enough() -> None:
    bird = FlyingBird(plus=True, plus_window=2)
    assert bird.remembered == 3
    assert bird.extra([*STALLED, (0.5, 0.45), (0.6, 0.5)], 0.6) == (0.4, 0.0)
    assert FlyingBird(plus=True, plus_window=4).extra([*STALLED, (0.5, 0.45), (0.6, 0.5)], 0.6) == (0.4, 0.05)


def test_nothing_is_adapted_without_plus_early_or_after_one_epoch() -> None:
    assert FlyingBird().extra(GROWING, 0.9) == (0.0, 0.0)
    assert FlyingBird().remembered == 0
    assert FlyingBird(plus=True).extra(GROWING, 0.49) == (0.0, 0.0)
    assert FlyingBird(plus=True).extra(GROWING[:1], 0.9) == (0.0, 0.0)
