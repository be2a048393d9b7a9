"""Patterns: what a mask removes at once (single weights, whole channels, ...)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from robustcompress.errors import ConfigError, ModelError
from robustcompress.families import suggestion
from robustcompress.member import Member, class_attribute
from robustcompress.pruning.selection import keep_largest

if TYPE_CHECKING:
    from robustcompress.pruning.patterns.block import Block as Block
    from robustcompress.pruning.patterns.channel import Channel as Channel
    from robustcompress.pruning.patterns.n_m import NM as NM
    from robustcompress.pruning.patterns.unstructured import Unstructured as Unstructured

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights a mask may remove; biases and norms are masked only along with whole channels."""


@dataclass(frozen=True)
class Frozen:
    """A part of the network that the pattern leaves dense, and why."""

    name: str
    reason: str


class Site(ABC):
    """A set of units (weights or channels) of which a budget says how many go.

    Attributes:
        name: Of the layer, or of the group's first layer.
        shape: Of the scores and of the mask: one entry a unit.
        fan_in: Inputs that one output of the layer sums over; scales the initial scores.
        parameters: Names of the model's parameters that the mask touches.
        minimum_kept: Units that must stay whatever the budget says.
        granularity: Kept counts are multiples of it, wherever a budget may choose them.
        fixed_removed: How many units go where the pattern itself says it; budgets are not asked then.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int
    parameters: tuple[str, ...]
    minimum_kept: int = 1
    granularity: int = 1
    fixed_removed: int | None = None

    @property
    def units(self) -> int:
        """How many things can be removed here."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose outputs or weights are removed here."""
        return (self.name,)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the (first) layer's weight: outputs, inputs, sides of the kernel where they are known."""
        return self.shape if len(self.shape) > 1 else (self.units, self.fan_in)

    def select(self, scores: Tensor, removed: int) -> Tensor:
        """Return the mask (bool, shaped ``shape``, True where kept) that drops ``removed`` units."""
        return keep_largest(scores, removed)

    @abstractmethod
    def saliency(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the magnitude of each unit, shaped ``shape``; the sign carries over to scores."""

    @abstractmethod
    def apply(self, tensors: MutableMapping[str, Tensor], gate: Tensor) -> None:
        """Replace the touched entries of ``tensors`` (parameters by name) by their gated values.

        ``gate`` is shaped ``shape`` and holds ones and zeros; gradients flow to it.
        """

    @abstractmethod
    def bake(self, parameters: Mapping[str, Tensor], mask: Tensor) -> None:
        """Set everything that ``mask`` (bool, shaped ``shape``) removes to +0.0 in place."""


@dataclass(frozen=True)
class Plan:
    """What a pattern found in a network.

    Attributes:
        sites: Where masks go.
        frozen: What stays dense, and why.
    """

    sites: tuple[Site, ...]
    frozen: tuple[Frozen, ...] = field(default=())


class Pattern(Member, ABC):
    """The granularity of a mask."""

    family: ClassVar[str] = "robustcompress.pruning.patterns"
    removes_structure: ClassVar[bool] = False
    """Whether what is masked can be physically removed, so that layers become smaller."""
    units_are_weights: ClassVar[bool] = False
    """Whether every unit is one weight, so that masks may move while weights train."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that the pattern itself says, if it does."""
        return None

    @property
    def round_widths_to(self) -> int:
        """What widths are multiples of where channels go, as the channel pattern rounds them."""
        # Where single weights went, a few empty channels more cost next to no bytes in a sparse file; an odd
        # width costs time.
        return 16

    @abstractmethod
    def plan(self, model: nn.Module, example_inputs: Tensor, ignore: Sequence[str]) -> Plan:
        """Return the sites of ``model`` and the parts that stay dense.

        Args:
            model: Left unchanged.
            example_inputs: float ``[batch, ...]``, for patterns that trace the network.
            ignore: Globs of module names that stay dense.

        Raises:
            ModelError: If nothing can be pruned.
            ConfigError: If a glob of ``ignore`` matches no layer.
        """


def split_prunable(model: nn.Module, ignore: Sequence[str]) -> tuple[dict[str, nn.Module], list[Frozen]]:
    """Return the layers that may be masked, by name, and those that may not, with reasons.

    A weight shared by several layers belongs to the first one.

    Raises:
        ConfigError: If a glob of ``ignore`` matches no prunable layer.
    """
    layers: dict[str, nn.Module] = {}
    frozen: list[Frozen] = []
    owners: dict[int, str] = {}
    unmatched = set(ignore)
    names: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, PRUNABLE):
            continue
        names.append(name)
        own = dict(module.named_parameters(recurse=False))
        matching = [pattern for pattern in ignore if fnmatchcase(name, pattern)]
        unmatched.difference_update(matching)
        if matching:
            frozen.append(Frozen(name, f"ignored by {matching[0]!r}"))
        elif "weight" not in own:
            frozen.append(Frozen(name, "its weight is computed by a parametrization"))
        elif id(own["weight"]) in owners:
            frozen.append(Frozen(name, f"shares its weight with {owners[id(own['weight'])]!r}"))
        else:
            owners[id(own["weight"])] = name
            layers[name] = module
    for pattern in sorted(unmatched):
        raise ConfigError(f"ignore={pattern!r} matches no layer.{suggestion(pattern, names)}")
    return layers, frozen


def plan_layers(
    model: nn.Module, ignore: Sequence[str], site_of: Callable[[str, nn.Module], Site | str]
) -> Plan:
    """Return a plan with one site for each layer's weight.

    Args:
        model: The network.
        ignore: Globs of module names that stay dense.
        site_of: Returns a layer's site, or why it stays dense.

    Raises:
        ModelError: If no layer is left.
        ConfigError: If a glob of ``ignore`` matches no prunable layer.
    """
    layers, frozen = split_prunable(model, ignore)
    sites: list[Site] = []
    for name, module in layers.items():
        found = site_of(name, module)
        if isinstance(found, Site):
            sites.append(found)
        else:
            frozen.append(Frozen(name, found))
    if not sites:
        raise ModelError(
            "the network has no Conv1d, Conv2d, Conv3d or Linear layer left to prune"
            + (f" ({len(frozen)} are left alone: {frozen[0].name}: {frozen[0].reason})." if frozen else ".")
        )
    return Plan(tuple(sites), tuple(frozen))


def __getattr__(name: str) -> Any:
    return class_attribute(Pattern, name)
