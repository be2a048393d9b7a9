from fractions import Fraction

import pytest
import torch

from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.patterns.unstructured import WeightSite


def test_exact_products_are_met_exactly() -> None:
    """Flooring (1 - sparsity) * units in floats would miss some of these by one."""
    missed_by_a_float_floor = 0
    for percent in range(100):
        sparsity = percent / 100
        for units in (100, 300, 700, 2300):
            site = WeightSite("layer", torch.empty(units, 1))
            exact = Fraction(percent, 100) * units
            assert Uniform().removed([site], [torch.empty(units, 1)], sparsity) == [min(exact, units - 1)]
            missed_by_a_float_floor += int((1 - sparsity) * units) != units - exact
    assert missed_by_a_float_floor > 0


@pytest.mark.parametrize(
    ("units", "sparsity", "removed"), [(10, 0.96, 9), (1, 0.99, 0), (3, 0.5, 2), (8, 0.99, 7), (7, 0.1, 1)]
)
def test_other_products_are_rounded_and_one_unit_stays(units: int, sparsity: float, removed: int) -> None:
    site = WeightSite("layer", torch.empty(units, 1))
    assert Uniform().removed([site], [torch.empty(units, 1)], sparsity) == [removed]


def test_layers_are_rounded_so_that_the_whole_is_exact() -> None:
    """Each layer for itself would lose 2 of 5 three times, so 6 of 15; 0.45 * 15 is 6.75."""
    sites = [WeightSite(str(index), torch.empty(5, 1)) for index in range(3)]
    removed = Uniform().removed(sites, [torch.empty(5, 1)] * 3, 0.45)
    assert sorted(removed) == [2, 2, 3]
