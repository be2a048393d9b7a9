"""Masks on a network that stays as it is: effective parameters are computed beside it.

The network's own modules are never replaced or hooked. ``Masking.tensors`` returns the masked parameters
by name, and ``torch.func.functional_call`` runs the network with them; so any ``nn.Module`` works, masks
are computed once a step however often the network runs, and no memory format can disable a mask.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Budget, Rates
from robustcompress.pruning.costs import NetworkCosts
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.scores import Score


class _StraightThrough(torch.autograd.Function):
    """Mask in the forward pass, ``|score|`` in the backward pass: dL/ds = dL/dmask * sign(s).

    A kept fraction that learns gets what all gates of its site get: dL/dfraction = sum of dL/dmask.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor, fraction: Tensor | None) -> Tensor:
        ctx.save_for_backward(scores)
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (scores,) = ctx.saved_tensors
        of_scores = gradients[0] * scores.sign() if ctx.needs_input_grad[0] else None
        of_fraction = gradients[0].sum() if ctx.needs_input_grad[2] else None
        return of_scores, None, of_fraction


class Masking(nn.Module):
    """Scores and masks of one network.

    Args:
        sites: Where masks go, from a pattern's plan.
        score: Gives the first scores.
        budget: Spreads ``sparsity`` over the sites.
        sparsity: Fraction of units to remove, 0 <= sparsity < 1.
        parameters: The network's parameters by name.
        initial: First scores, one tensor a site, in place of those that ``score`` makes of magnitudes.
        costs: What the network costs, for a budget that learns.

    Raises:
        ConfigError: If ``sparsity`` is outside [0, 1).
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        score: Score,
        budget: Budget,
        sparsity: float,
        parameters: Mapping[str, Tensor],
        initial: Sequence[Tensor] | None = None,
        costs: NetworkCosts | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= sparsity < 1 or math.isnan(sparsity):
            raise ConfigError(f"sparsity must be in [0, 1); got {sparsity}. 0.9 removes 90%.")
        self.sites = tuple(sites)
        if initial is None:
            initial = [score.initial(site.saliency(parameters), site.fan_in) for site in self.sites]
        # Contiguous whatever the weight's memory format: scores and masks are then one plain array each.
        self.scores = nn.ParameterList(
            nn.Parameter(scores.reshape(site.shape).contiguous(), requires_grad=score.learns)
            for site, scores in zip(self.sites, initial, strict=True)
        )
        self.removed = budget.counts(self.sites, list(self.scores), sparsity)
        self.rates = budget.rates(self.sites, list(self.scores), sparsity, costs=costs)
        self.learns = score.learns or self.rates is not None
        self._masks: list[Tensor] = []
        self.refresh()

    @property
    def masks(self) -> list[Tensor]:
        """Bool masks, one a site, True where kept."""
        return self._masks

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the masks from the scores; done once after each step that changed them."""
        if self.rates is not None:
            self.removed = self.rates.counts(self.sites)
        self._masks = [
            site.select(scores, removed)
            for site, scores, removed in zip(self.sites, self.scores, self.removed, strict=True)
        ]

    def freeze(self) -> None:
        """Fix the masks: neither scores nor rates learn any more."""
        self.learns = False
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def learnable(self) -> Iterator[nn.Parameter]:
        """Yield the scores, and the rates of a budget that learns, that the optimizer should train."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the effective value of every parameter that a mask touches, by name.

        Gradients flow to the parameters that require them and, straight through the mask, to the scores.
        """
        effective = {name: parameters[name] for site in self.sites for name in site.parameters}
        fractions: Sequence[Tensor | None] = [None] * len(self.sites)
        if self.rates is not None:
            fractions = self.rates.fractions().unbind()
        for site, scores, mask, fraction in zip(self.sites, self.scores, self._masks, fractions, strict=True):
            gate: Tensor
            learns = scores.requires_grad or (fraction is not None and fraction.requires_grad)
            if learns and torch.is_grad_enabled():
                gate = _StraightThrough.apply(scores, mask, fraction)  # type: ignore[no-untyped-call]  # torch's own
            else:
                gate = mask.to(scores.dtype)
            site.apply(effective, gate)
        return effective

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: masks that move look at the gradients here."""

    def after_step(self) -> None:
        """Bring the masks up to date with scores that learn."""
        if self.learns:
            self.refresh()

    def after_epoch(self, validation_robust: float | None) -> None:
        """Let a budget that learns know that an epoch is over."""
        if self.rates is not None and self.learns:
            self.rates.after_epoch()

    def penalty(self) -> Tensor | None:
        """Return what to add to the loss: what a budget that learns asks for."""
        return self.rates.penalty() if self.rates is not None and self.learns else None

    def bake(self, model: nn.Module) -> None:
        """Set everything that is masked to +0.0 in ``model`` itself."""
        parameters = dict(model.named_parameters())
        for site, mask in zip(self.sites, self._masks, strict=True):
            site.bake(parameters, mask)

    def state(self) -> dict[str, Tensor]:
        """Return scores and masks by site name, ``scores.NAME`` and ``mask.NAME``; rates as ``rates.*``."""
        found: dict[str, Tensor] = {}
        for site, scores, mask in zip(self.sites, self.scores, self._masks, strict=True):
            found[f"scores.{site.name}"] = scores.detach()
            found[f"mask.{site.name}"] = mask
        if self.rates is not None:
            found |= {f"rates.{name}": tensor.detach() for name, tensor in self.rates.state_dict().items()}
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave; masks are taken as they are, not recomputed.

        Raises:
            ConfigError: If a site is missing or its shape differs.
        """
        masks: list[Tensor] = []
        for site, scores in zip(self.sites, self.scores, strict=True):
            for part in ("scores", "mask"):
                got = state.get(f"{part}.{site.name}")
                if got is None or tuple(got.shape) != site.shape:
                    found = "none" if got is None else str(list(got.shape))
                    raise ConfigError(
                        f"{part} of {site.name!r} must be {list(site.shape)}; the saved state has {found}. "
                        "Was it made with another network, pattern or ignore?"
                    )
            scores.copy_(state[f"scores.{site.name}"])
            masks.append(state[f"mask.{site.name}"].to(device=scores.device, dtype=torch.bool))
        self._masks = masks
        self.removed = [site.units - int(mask.sum()) for site, mask in zip(self.sites, masks, strict=True)]
        if self.rates is not None:
            self._restore_rates(self.rates, state)

    @staticmethod
    def _restore_rates(rates: Rates, state: Mapping[str, Tensor]) -> None:
        for name, tensor in rates.state_dict().items():
            got = state.get(f"rates.{name}")
            if got is None or got.shape != tensor.shape:
                found = "none" if got is None else str(list(got.shape))
                raise ConfigError(
                    f"rates.{name} must be {list(tensor.shape)}; the saved state has {found}. "
                    "Was it made with another budget?"
                )
            tensor.copy_(got)
