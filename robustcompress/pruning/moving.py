"""Masks that move while weights train: weak weights go, removed ones come back, as many as before."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.patterns.unstructured import WeightSite
from robustcompress.pruning.scores import MovingScore
from robustcompress.pruning.selection import keep_largest


class _Dense(torch.autograd.Function):
    """Mask in the forward pass; in the backward pass removed weights get gradients too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class MovingMasks:
    """The masks of a network whose weights train while masks move; a training stage's overrides.

    Removed weights are 0 in the network itself, and so are their gradients and momenta whenever the
    optimizer steps: it leaves them alone. Their gradients are complete before, and decide what grows.

    Args:
        masking: First masks; moved in place.
        score: How masks move.
        parameters: The network's own, by name; removed weights are set to 0.
        steps: Of the whole stage.
        training_robust: Returns the present robust accuracy on training images, 0 to 1; asked after each
            epoch if the score remembers accuracies.

    Raises:
        ConfigError: If units are not single weights, or the budget learns.
    """

    def __init__(
        self,
        masking: Masking,
        score: MovingScore,
        *,
        parameters: Mapping[str, Tensor],
        steps: int,
        training_robust: Callable[[], float],
    ) -> None:
        for site in masking.sites:
            if not isinstance(site, WeightSite):
                raise ConfigError(
                    f"masks move between single weights; {site.name!r} has units of another kind. Use the "
                    "pattern 'unstructured' or 'n_m'."
                )
        if masking.rates is not None:
            raise ConfigError(
                "masks that move keep what each layer was given; this budget learns it. Use the budget 'erk'."
            )
        self._masking = masking
        self._score = score
        self._parameters = {site.parameters[0]: parameters[site.parameters[0]] for site in masking.sites}
        self._steps = steps
        self._training_robust = training_robust
        self._done = 0
        self._followed = True  # whether an exchange has followed the last judgement
        self._accuracies: list[tuple[float, float]] = []
        self._most = [site.units - removed for site, removed in self._counted()]
        for site, mask in zip(masking.sites, masking.masks, strict=True):
            site.bake(parameters, mask)

    def tensors(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masked weights by name; gradients flow to all weights, removed ones included."""
        found: dict[str, Tensor] = {}
        for site, mask in zip(self._masking.sites, self._masking.masks, strict=True):
            name = site.parameters[0]
            found[name] = _Dense.apply(parameters[name], mask)  # type: ignore[no-untyped-call]  # torch's own
        return found

    def learnable(self) -> Iterator[nn.Parameter]:
        """Yield nothing: only the network's own parameters learn."""
        return iter(())

    def penalty(self) -> Tensor | None:
        """Return nothing."""
        return None

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the masks if it is time; then take gradients and momenta from removed weights."""
        self._done += 1
        if self._done % self._score.update_steps == 0 and self._done < self._steps:
            self._exchange(optimizer)
        for site, mask in zip(self._masking.sites, self._masking.masks, strict=True):
            gradient = self._parameters[site.parameters[0]].grad
            if gradient is not None:
                gradient.masked_fill_(~mask, 0)

    def after_step(self) -> None:
        """Do nothing: masks moved before."""

    def after_epoch(self, validation_robust: float | None) -> None:
        """Remember the accuracies that the score asks for."""
        if self._score.remembered and validation_robust is not None:
            self._accuracies.append((self._training_robust(), validation_robust))
            del self._accuracies[: -self._score.remembered]
            self._followed = False

    def state(self) -> dict[str, Tensor]:
        """Return scores and masks as ``Masking.state`` does, and what the next exchanges depend on."""
        accuracies = torch.zeros(self._score.remembered, 2, dtype=torch.float64)
        for row, pair in enumerate(self._accuracies):
            accuracies[row] = torch.tensor(pair, dtype=torch.float64)
        device = self._masking.scores[0].device
        return self._masking.state() | {
            "moves.counts": torch.tensor([self._done, int(self._followed), len(self._accuracies)]).to(device),
            "moves.most": torch.tensor(self._most).to(device),
            "moves.accuracies": accuracies.to(device),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state()`` gave.

        Raises:
            ConfigError: If it is of another network or of masks that did not move.
        """
        self._masking.restore(state)
        wanted = {
            "counts": [3],
            "most": [len(self._masking.sites)],
            "accuracies": [self._score.remembered, 2],
        }
        for part, shape in wanted.items():
            got = state.get(f"moves.{part}")
            if got is None or list(got.shape) != shape:
                found = "none" if got is None else str(list(got.shape))
                raise ConfigError(
                    f"moves.{part} must be {shape}; the saved state has {found}. Was it made with other "
                    "settings of the score?"
                )
        self._done, followed, judged = (int(value) for value in state["moves.counts"])
        self._followed = bool(followed)
        self._most = [int(value) for value in state["moves.most"]]
        self._accuracies = [(float(a), float(b)) for a, b in state["moves.accuracies"][:judged].tolist()]

    def _counted(self) -> Iterator[tuple[Site, int]]:
        return zip(self._masking.sites, self._masking.removed, strict=True)

    def _exchange(self, optimizer: torch.optim.Optimizer) -> None:
        """Move every site's mask, and clear what goes: weights, and whatever the optimizer remembers."""
        progress = self._done / self._steps
        extra = (0.0, 0.0) if self._followed else self._score.extra(self._accuracies, progress)
        self._followed = True
        removed: list[int] = []
        for index, (site, gone) in enumerate(self._counted()):
            mask, kept = self._masking.masks[index], site.units - gone
            exchanged = round(self._score.exchanged(progress) * kept)
            dropped = min(kept, exchanged + round(extra[0] * exchanged))
            staying = kept - dropped + exchanged + round(extra[1] * exchanged)
            least = max(site.minimum_kept, math.ceil(self._score.least * self._most[index]))
            staying = min(max(staying, least), self._most[index])
            parameter = self._parameters[site.parameters[0]]
            moved = exchange(site, parameter, parameter.grad, mask, dropped, staying)
            self._masking.scores[index].copy_(moved)
            removed.append(site.units - staying)
            parameter.masked_fill_(~moved, 0)
            for remembered in optimizer.state.get(parameter, {}).values():
                if isinstance(remembered, Tensor) and remembered.shape == parameter.shape:
                    remembered.masked_fill_(~moved, 0)
        self._masking.removed = removed
        self._masking.refresh()


def exchange(
    site: Site, weight: Tensor, gradient: Tensor | None, mask: Tensor, dropped: int, staying: int
) -> Tensor:
    """Return the mask in which weak weights of a site have given way to others.

    Args:
        site: Chooses what grows, within its groups if it has any.
        weight: Shaped as the site.
        gradient: Of the loss at the effective weights, removed ones included; ``None`` for all 0.
        mask: The present one.
        dropped: Of the kept weights, those of smallest magnitude go.
        staying: Weights that the new mask keeps: those that were not dropped, and of all others those of
            largest ``|gradient|``.
    """
    positions = mask.reshape(-1).nonzero().reshape(-1)
    strong = keep_largest(weight.detach().reshape(-1)[positions], dropped)
    merit = torch.zeros_like(weight) if gradient is None else gradient.detach().abs()
    # Infinity is for those that stay in any case.
    merit = merit.nan_to_num(0.0, posinf=torch.finfo(merit.dtype).max).reshape(-1).contiguous()
    merit[positions[strong]] = torch.inf
    return site.select(merit.reshape(site.shape), site.units - staying)
