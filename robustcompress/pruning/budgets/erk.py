"""Large layers lose more than small ones, by their shapes alone: Erdős-Rényi-Kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.patterns import Site


class Erk(Budget):
    """Keep in each layer a fraction that is proportional to ``(inputs + outputs + kernel sides) / weights``.

    Layers that would keep more than everything stay dense, and the others make up for it.

    Source:
        Evci et al. 2020 (RigL), https://arxiv.org/abs/1911.11134, section 3, (1) Sparsity distribution.
        Differs: every site keeps its minimum; a site of channels takes the shape of its first layer.
    """

    def wanted(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[float]:
        if not sites:
            return []
        units = torch.tensor([site.units for site in sites], dtype=torch.float64)
        raw = torch.tensor([_raw(site.weight_shape) for site in sites], dtype=torch.float64)
        dense = torch.zeros(len(sites), dtype=torch.bool)
        density = torch.ones_like(raw)
        while not bool(dense.all()):
            left = (1 - sparsity) * units.sum() - units[dense].sum()
            density = torch.where(dense, 1.0, raw * left / (raw * units)[~dense].sum())
            if float(density.max()) <= 1:
                break
            # One at a time, the largest first, as the authors do: capping it changes all others.
            dense |= density == density.max()
        kept: list[float] = (density * units).tolist()
        return kept


def _raw(shape: Sequence[int]) -> float:
    """Return the density of a layer up to the factor that all share."""
    weights = 1
    for length in shape:
        weights *= length
    return sum(shape) / weights
