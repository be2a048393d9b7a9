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
