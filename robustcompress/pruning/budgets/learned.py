"""How much each site keeps is learned along with what it keeps (HARP)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Budget, Rates
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.rounding import nearest_kept, next_kept

if TYPE_CHECKING:
    from robustcompress.pruning.costs import Limit, NetworkCosts

_HALVINGS = 50
_FARTHEST = 30.0  # sigmoid is flat beyond
_MARGIN = 1e-3  # of the range: a rate at its very end would get no gradient


class Learned(Budget):
    """Train the fraction that each site keeps, under a penalty on what the network costs.

    The penalty is ``g * max(cost / target - 1, 0)``. ``target`` is what the network costs with the same
    sparsity in every site, so that budgets are compared at equal cost; where a run has constraints they are
    the targets. ``g`` grows after every epoch at whose end the cost exceeds the target.

    Attributes:
        cost: What costs: ``weights`` that are left, or ``macs``, the multiply-adds with them.
        initial: Budget whose allocation the rates begin with.
        floor: Smallest fraction that a site may come to, as a multiple of ``1 - sparsity``.
        penalty: ``g`` in the first epoch.
        growth: Added to ``g`` after an epoch that ended above the target.

    Source:
        Zhao & Wressnegger 2023 (HARP), https://arxiv.org/abs/2412.14714: kept fraction
        ``sigmoid(r) * (1 - k_min) + k_min``, whose gradient is that of all gates of the site. Floor, penalty
        and growth are the defaults of the authors' code; its commands take 0.01 for the last two on CIFAR-10
        and 0.1 on ImageNet.
        Differs: the masks meet the target at every step. Where the rates cost more (or less), all logits
        are shifted by one number until the masks fit, and rates begin at the target; in the paper they
        begin at 10% of every layer, and the network exceeds its target until the penalty has grown. The
        shift does not enter the penalty or the gradient. There ``g`` is fixed for good once the target is
        met; here it goes on growing if the rates come to cost more again.
    """

    learns: ClassVar[bool] = True

    cost: Literal["weights", "macs"] = "weights"
    initial: Literal["uniform", "erk", "lamp"] = "uniform"
    floor: float = Field(default=0.1, gt=0, lt=1)
    penalty: float = Field(default=1.0, ge=0)
    growth: float = Field(default=1.0, ge=0)

    def wanted(self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float) -> list[float]:
        """Return what the rates begin with."""
        return Budget.find(self.initial).wanted(sites, scores, sparsity)

    def rates(
        self,
        sites: Sequence[Site],
        scores: Sequence[Tensor],
        sparsity: float,
        *,
        costs: "NetworkCosts | None" = None,
    ) -> Rates | None:
        """Return the rates.

        Raises:
            ConfigError: If ``costs`` is missing.
        """
        if costs is None:
            raise ConfigError("a budget that learns needs the network's costs; got none. Pass costs=.")
        first = self.counts(sites, scores, sparsity)
        kept = [site.units - count for site, count in zip(sites, first, strict=True)]
        limits = costs.limits or (self._own_limit(sites, scores, sparsity, costs),)
        return LearnedRates(self, sites, kept, sparsity, limits)

    def _own_limit(
        self, sites: Sequence[Site], scores: Sequence[Tensor], sparsity: float, costs: "NetworkCosts"
    ) -> "Limit":
        """Return what the same sparsity in every site costs."""
        from robustcompress.pruning.costs import Limit

        removed = Budget.find("uniform").counts(sites, scores, sparsity)
        kept = [site.units - count for site, count in zip(sites, removed, strict=True)]
        form = costs.weights if self.cost == "weights" else costs.effective_macs
        return Limit(form, form(kept))


class LearnedRates(Rates):
    """The logits ``r`` of the kept fractions, float32 ``[sites]``, and the growing weight of the penalty.

    Args:
        settings: Of the budget.
        sites: In the network's order.
        kept: Units that each site keeps at first.
        sparsity: Fraction of units to remove.
        limits: What the masks may cost.
    """

    weight: Tensor

    def __init__(
        self,
        settings: Learned,
        sites: Sequence[Site],
        kept: Sequence[int],
        sparsity: float,
        limits: "Sequence[Limit]",
    ) -> None:
        super().__init__()
        self._growth = settings.growth
        self._limits = tuple(limits)
        self._smallest = settings.floor * (1 - sparsity)
        self._fixed = {
            index: 1 - (site.fixed_removed or 0) / site.units
            for index, site in enumerate(sites)
            if site.fixed_removed is not None
        }
        fractions = torch.tensor([count / site.units for site, count in zip(sites, kept, strict=True)])
        share = (fractions - self._smallest) / (1 - self._smallest)
        self.logits = nn.Parameter(share.clamp(_MARGIN, 1 - _MARGIN).logit())
        self.register_buffer("weight", torch.tensor(settings.penalty))

    def fractions(self) -> Tensor:
        """Return ``sigmoid(r) * (1 - k_min) + k_min``, ``[sites]``; what a pattern fixes is constant."""
        return self._shifted(self.logits)

    def penalty(self) -> Tensor:
        """Return ``g * max(cost / target - 1, 0)``, summed over the limits."""
        fractions = self.fractions()
        excesses = [limit.cost.ratio(fractions, limit.target) - 1 for limit in self._limits]
        return self.weight * torch.stack(excesses).clamp_min(0).sum()

    @torch.no_grad()
    def after_epoch(self) -> None:
        """Let ``g`` grow unless every limit holds."""
        fractions = self.fractions()
        if any(float(limit.cost.ratio(fractions, limit.target)) > 1 for limit in self._limits):
            self.weight += self._growth

    @torch.no_grad()
    def counts(self, sites: Sequence[Site]) -> list[int]:
        """Return how many units of each site go, so that the limits just hold.

        All logits are shifted by one number, the largest at which they do; then sites that were rounded
        down get another unit while the limits allow it. If even the smallest counts exceed a limit, those
        are returned.
        """
        logits = self.logits.detach().double().cpu()

        def kept_at(shift: float) -> list[int]:
            return [
                site.units - site.fixed_removed
                if site.fixed_removed is not None
                else nearest_kept(fraction * site.units, site)
                for site, fraction in zip(sites, self._shifted(logits + shift).tolist(), strict=True)
            ]

        low, high = -_FARTHEST - float(logits.max()), _FARTHEST - float(logits.min())
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._holds(kept_at(middle)):
                low = middle
            else:
                high = middle
        wanted = [
            share * site.units
            for site, share in zip(sites, self._shifted(logits + low).tolist(), strict=True)
        ]
        kept = self._filled(kept_at(low), wanted, sites)
        return [site.units - count for site, count in zip(sites, kept, strict=True)]

    def _filled(self, kept: list[int], wanted: Sequence[float], sites: Sequence[Site]) -> list[int]:
        """Return ``kept`` with one step more wherever the limits allow, those that lack most first."""
        found = list(kept)
        free = [index for index, site in enumerate(sites) if site.fixed_removed is None]
        for index in sorted(free, key=lambda i: (found[i] - wanted[i]) / sites[i].granularity):
            before, found[index] = found[index], next_kept(found[index], sites[index])
            if not self._holds(found):
                found[index] = before
        return found

    def _holds(self, kept: Sequence[int]) -> bool:
        return all(limit.holds(kept) for limit in self._limits)

    def _shifted(self, logits: Tensor) -> Tensor:
        found = logits.sigmoid() * (1 - self._smallest) + self._smallest
        if not self._fixed:
            return found
        constant = found.new_tensor([self._fixed.get(index, 0.0) for index in range(len(found))])
        learns = found.new_tensor([index not in self._fixed for index in range(len(found))])
        return found * learns + constant
