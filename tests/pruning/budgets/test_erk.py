import itertools

import pytest
import torch

from robustcompress.pruning.budgets import Erk
from robustcompress.pruning.patterns import Site
from tests.pruning.budgets.plain import PlainSite


def sites_of(*shapes: tuple[int, ...]) -> tuple[list[Site], list[torch.Tensor]]:
    scores = [torch.rand(shape) for shape in shapes]
    return [PlainSite(values.numel(), shape=tuple(values.shape)) for values in scores], scores


def test_without_capping_the_published_formula_holds_by_hand() -> None:
    """Densities share one factor: (64 + 32 + 3 + 3) / (64 * 32 * 9) and (100 + 128) / (100 * 128)."""
    sites, scores = sites_of((64, 32, 3, 3), (100, 128))
    convolution, linear = 64 * 32 * 9, 100 * 128
    factor = 0.1 * (convolution + linear) / (102 + 228)
    removed = Erk().removed(sites, scores, 0.9)
    kept = [site.units - count for site, count in zip(sites, removed, strict=True)]
    assert kept == pytest.approx([factor * 102, factor * 228], abs=1)
    assert sum(removed) == round(0.9 * (convolution + linear))


def test_capped_layers_stay_dense_and_the_others_make_up_for_it() -> None:
    """Brute force over which layers are dense: one set alone is consistent with the formula."""
    shapes = [(8, 3, 3, 3), (16, 8, 3, 3), (64, 16, 3, 3), (128, 64, 3, 3), (10, 128)]
    sites, scores = sites_of(*shapes)
    units = [site.units for site in sites]
    raw = [sum(shape) / size for shape, size in zip(shapes, units, strict=True)]
    for sparsity in (0.3, 0.5, 0.8, 0.9, 0.97):
        total = (1 - sparsity) * sum(units)
        consistent: list[list[float]] = []
        for dense in itertools.product([False, True], repeat=len(sites)):
            if all(dense):
                continue
            left = total - sum(size for size, full in zip(units, dense, strict=True) if full)
            share = sum(r * n for r, n, full in zip(raw, units, dense, strict=True) if not full)
            factor = left / share
            fits = left > 0 and all((r * factor > 1) == full for r, full in zip(raw, dense, strict=True))
            if fits:
                consistent.append(
                    [
                        float(n) if full else factor * r * n
                        for r, n, full in zip(raw, units, dense, strict=True)
                    ]
                )
        (expected,) = consistent
        assert Erk().wanted(sites, scores, sparsity) == pytest.approx(expected)


def test_nothing_to_remove_leaves_everything_and_no_sites_are_no_trouble() -> None:
    sites, scores = sites_of((4, 4), (3, 5))
    assert Erk().removed(sites, scores, 0.0) == [0, 0]
    assert Erk().removed([], [], 0.5) == []
