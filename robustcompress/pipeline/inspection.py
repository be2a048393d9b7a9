"""What a run would remove, what it would leave alone and why, and what that saves, before anything trains."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from robustcompress.errors import ModelError, RobustCompressError, first_line
from robustcompress.pipeline.constraints import within_constraints
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.failing_layer import failing_layer
from robustcompress.pipeline.inspection_text import as_text, site_table
from robustcompress.pruning.costs import CostForm, network_costs
from robustcompress.pruning.patterns import Plan, Site
from robustcompress.pruning.patterns.channel import ChannelSite
from robustcompress.pruning.scores import GradientScore
from robustcompress.pruning.second_opinion import AGREES, second_opinion

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Costs:
    """What layers cost, dense and with everything removed that the budget takes away.

    Attributes:
        weights: Entries of the weights of convolutions and linear layers; biases are not counted. One that
            several layers share counts in the first.
        weights_after: Of them, those that are left.
        macs: Multiply-adds for one image.
        macs_after: Likewise, as a runtime computes that knows no sparse weights.
        effective_macs_after: Those with weights that are not masked.
        bytes: Of the weights as float32.
        bytes_after: Of those left, and of their positions at the entropy of independent ones; biases, graph
            and metadata are not counted.
    """

    weights: int
    weights_after: int
    macs: int
    macs_after: int
    effective_macs_after: int
    bytes: int
    bytes_after: int


@dataclass(frozen=True)
class SiteRow(Costs):
    """One place where units are removed, with the costs of ``layers``.

    Attributes:
        name: Of the layer, or of the first layer of a group.
        layers: Layers that the site masks: those that put its channels out.
        norms: Normalisations that lose channels along with them.
        consumers: Layers that take the channels in, and lose those inputs.
        units: Weights, blocks or channels.
        removed: Units that the budget takes away.
    """

    name: str
    layers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    units: int
    removed: int


@dataclass(frozen=True)
class FrozenRow(Costs):
    """A layer of which nothing is removed; it may still lose inputs.

    Attributes:
        name: Of the layer.
        reason: Why.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Inspection(Costs):
    """What is removed, what is frozen and why, and what that saves; prints as a table.

    The costs are those of all convolutions and linear layers.

    Attributes:
        network: Class name.
        pattern: What is removed at once.
        budget: How it is spread over layers.
        parameters: All parameters.
        speed_up: Dense multiply-adds over those after removal; ``None`` where the pattern removes no
            structure, so that stock runtimes multiply as before.
        sites: Where units are removed.
        frozen: What stays as it is.
        notes: What to know of these numbers.
    """

    network: str
    pattern: str
    budget: str
    parameters: int
    speed_up: float | None
    sites: tuple[SiteRow, ...]
    frozen: tuple[FrozenRow, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)

    def table(self) -> Table:
        """Return the sites as a table for a rich console."""
        return site_table(self)

    def text(self, *, width: int = 110, groups: bool = False) -> str:
        """Return everything as text of at most ``width`` columns, 60 or more.

        Args:
            width: Of a line.
            groups: List all layers of every group, and every frozen layer, by name.
        """
        return as_text(self, width=max(width, 60), groups=groups)

    def __str__(self) -> str:
        return self.text()


def inspect(context: Context, *, with_opinion: bool = False) -> Inspection:
    """Return what the recipe would do to the network.

    Args:
        context: Of the run.
        with_opinion: Ask torch-pruning which channels it would couple, and note where it differs.

    Raises:
        ModelError: If nothing can be pruned, or the network cannot be called or looked through; names the
            layer.
        ConfigError: If no sparsity meets the recipe's constraints.
    """
    try:
        found = _inspect(context)
        if with_opinion:
            found = replace(found, notes=(*found.notes, *_opinions(context)))
        return found
    except ModelError as error:
        layer = failing_layer(error.__cause__)
        if layer is None:
            raise
        raise ModelError(f"{error} It happened in {layer}.{_advice(context)}") from error
    except RobustCompressError:
        raise
    except Exception as error:  # whatever the user's own code raises while it is looked through
        layer = failing_layer(error)
        raise ModelError(
            f"the network cannot be looked through for the pattern {context.recipe.pattern.kind!r}: "
            f"{first_line(error)}{f' It happened in {layer}.' if layer else ''}{_advice(context)}"
        ) from error


def _advice(context: Context) -> str:
    if not context.recipe.pattern.removes_structure:
        return ""
    return (
        " Channels are looked for, and their removal is tried out, in float64: change that part so that it "
        "runs there (constants belong in buffers), or use the pattern 'unstructured', which only looks at "
        "weights. Naming layers in ignore does not help here: what is ignored still runs."
    )


def _inspect(context: Context) -> Inspection:
    plan = context.plan()
    removed = within_constraints(context, context.masking()).removed
    table = _Costs(context, plan, removed)
    structured = context.recipe.pattern.removes_structure
    total = table.of(table.layers, plan.sites)
    return Inspection(
        **total,
        network=type(context.model).__name__,
        pattern=context.recipe.pattern.kind,
        budget=context.recipe.budget.kind,
        parameters=sum(parameter.numel() for parameter in context.model.parameters()),
        speed_up=total["macs"] / max(1, total["macs_after"]) if structured else None,
        sites=tuple(
            SiteRow(
                **table.of(site.layers, [site]),
                name=site.name,
                layers=site.layers,
                norms=_layers(site, "norms"),
                consumers=_layers(site, "consumers"),
                units=site.units,
                removed=count,
            )
            for site, count in zip(plan.sites, removed, strict=True)
        ),
        frozen=tuple(
            FrozenRow(**table.of([part.name], ()), name=part.name, reason=part.reason) for part in plan.frozen
        ),
        notes=_notes(context, table.uncalled),
    )


class _Costs:
    """Costs of every layer, dense and with ``removed`` units gone from the plan's sites."""

    def __init__(self, context: Context, plan: Plan, removed: Sequence[int]) -> None:
        forms = network_costs(context.model, context.example_inputs, plan.sites)
        dense = [site.units for site in plan.sites]
        left = [units - count for units, count in zip(dense, removed, strict=True)]
        self.layers = forms.weights.layers
        self._left = {site.name: count for site, count in zip(plan.sites, left, strict=True)}
        self._structured = context.recipe.pattern.removes_structure
        self._columns: dict[str, Mapping[str, int]] = {
            "weights": by_layer(forms.weights, dense),
            "weights_after": by_layer(forms.weights, left),
            "macs": by_layer(forms.macs, dense),
            "macs_after": by_layer(forms.macs, left),
            "effective_macs_after": by_layer(forms.effective_macs, left),
        }

    @property
    def uncalled(self) -> list[str]:
        """Layers that have weights and were not called as layers: their multiply-adds are not known."""
        weights, macs = self._columns["weights"], self._columns["macs"]
        return [layer for layer in self.layers if weights[layer] and not macs[layer]]

    def of(self, layers: Sequence[str], sites: Sequence[Site]) -> dict[str, int]:
        """Return the fields of :class:`Costs` for these layers, masked at these sites."""
        sums = {name: sum(column.get(layer, 0) for layer in layers) for name, column in self._columns.items()}
        positions = 0.0
        if not self._structured:
            positions = sum(position_bytes(site.units, self._left[site.name]) for site in sites)
        sums["bytes"] = _FLOAT_BYTES * sums["weights"]
        sums["bytes_after"] = _FLOAT_BYTES * sums["weights_after"] + math.ceil(positions)
        return sums


def by_layer(form: CostForm, kept: Sequence[int]) -> dict[str, int]:
    """Return what each layer costs if every site keeps so many units."""
    counts = np.append(np.asarray(kept, float), 1.0)
    values = form.scale * (form.rows @ counts) * (form.columns @ counts)
    return dict(zip(form.layers, (round(value) for value in values.tolist()), strict=True))


def position_bytes(units: int, kept: int) -> float:
    """Return the bytes that say which of the units are kept, at the entropy of independent positions."""
    bits = sum(count * math.log2(units / count) for count in (kept, units - kept) if 0 < count < units)
    return bits / 8


def _layers(site: Site, role: str) -> tuple[str, ...]:
    if not isinstance(site, ChannelSite):
        return ()
    places = site.group.norms if role == "norms" else site.group.consumers
    return tuple(place.layer for place in places)


def _opinions(context: Context) -> Iterator[str]:
    """Say what torch-pruning thinks of the groups."""
    groups = [site.group for site in context.plan().sites if isinstance(site, ChannelSite)]
    if not groups:
        yield "torch-pruning knows channels only; it was not asked."
        return
    opinions = second_opinion(context.model, context.example_inputs, groups)
    agreeing = sum(text == AGREES for text in opinions.values())
    yield f"torch-pruning couples the same channels in {agreeing} of {len(groups)} groups."
    yield from (f"Of {name!r}: {text}." for name, text in opinions.items() if text != AGREES)


def _notes(context: Context, uncalled: Sequence[str]) -> tuple[str, ...]:
    recipe = context.recipe
    notes: list[str] = []
    if not recipe.pattern.removes_structure:
        notes.append(
            f"Stock runtimes multiply by the zeros of the pattern {recipe.pattern.kind!r}; only those that "
            "skip them need the effective MACs alone."
        )
    if recipe.pattern.units_are_weights and recipe.pattern.fixed_sparsity is None:
        notes.append("Channels that the masks leave dead go too: what comes out may be smaller, and faster.")
    if recipe.budget.learns:
        notes.append(f"The budget {recipe.budget.kind!r} learns: these are the counts that it begins with.")
    if recipe.budget.ranks and isinstance(recipe.score, GradientScore):
        notes.append(
            f"How much each layer loses is shown as magnitudes rank it: scores of {recipe.score.kind!r} are "
            "measured in the prune stage and may rank it otherwise."
        )
    if recipe.constraints:
        notes.append("Removed are as many units as the constraints ask for.")
    if uncalled:
        shown = ", ".join(repr(name) for name in uncalled[:3]) + (", ..." if len(uncalled) > 3 else "")
        notes.append(
            f"{len(uncalled)} layers compute through functions or not at all ({shown}): their MACs are not "
            "counted."
        )
    return tuple(notes)
