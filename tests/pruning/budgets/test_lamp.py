import numpy as np
import torch

from robustcompress.pruning.budgets import Lamp
from robustcompress.pruning.budgets.lamp import lamp_scores
from robustcompress.pruning.patterns import Site
from tests.pruning.budgets.plain import PlainSite


def test_scores_are_the_papers_by_hand() -> None:
    weights = torch.tensor([[3.0, -1.0], [2.0, -4.0]])
    expected = torch.tensor([[9 / 25, 1 / 30], [4 / 29, 16 / 16]], dtype=torch.float64)
    assert torch.allclose(lamp_scores(weights), expected)


def test_scores_follow_the_definition_in_numpy() -> None:
    weights = np.random.default_rng(0).normal(size=(7, 11))
    squares = weights**2
    expected = [[one / squares[squares >= one].sum() for one in row] for row in squares]
    assert np.allclose(lamp_scores(torch.from_numpy(weights)).numpy(), expected)


def test_counts_are_those_of_one_threshold_over_all_lamp_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(50, generator=generator), 7 * torch.rand(200, generator=generator), torch.ones(30)]
    sites: list[Site] = [PlainSite(len(values)) for values in weights]
    for sparsity in (0.3, 0.8, 0.95):
        worth = [lamp_scores(values).numpy() for values in weights]
        total = 280 - round(280 * sparsity)
        threshold = np.sort(np.concatenate(worth))[-total]
        removed = Lamp().removed(sites, weights, sparsity)
        assert removed == [int((part < threshold).sum()) for part in worth]


def test_counts_do_not_depend_on_the_scale_of_a_layer() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(60, generator=generator), torch.randn(90, generator=generator)]
    sites: list[Site] = [PlainSite(60), PlainSite(90)]
    scaled = [1000 * weights[0], weights[1]]
    assert Lamp().removed(sites, weights, 0.8) == Lamp().removed(sites, scaled, 0.8)


def test_no_layer_is_emptied_and_zeros_are_no_trouble() -> None:
    sites: list[Site] = [PlainSite(5), PlainSite(100)]
    removed = Lamp().removed(sites, [torch.zeros(5), torch.rand(100)], 0.95)
    assert removed[0] == 4
    assert sum(removed) == 100
