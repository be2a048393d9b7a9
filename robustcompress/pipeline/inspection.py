"""What a run would prune, what it would leave alone and why, before anything is trained."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from robustcompress.graph.cost import count_macs
from robustcompress.pipeline.context import Context
from robustcompress.pruning.patterns import Frozen


@dataclass(frozen=True)
class SiteRow:
    """One place where units are removed.

    Attributes:
        name: Of the layer, or of the first layer of a group.
        layers: Layers that the site masks.
        units: Weights or channels.
        removed: Units that the budget takes away.
        weights: Weights of the site's convolutions and linear layers.
        macs: Multiply-adds for one image of the site's layers, dense.
    """

    name: str
    layers: tuple[str, ...]
    units: int
    removed: int
    weights: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """What is pruned, what is frozen and why, parameters, MACs; prints as a table.

    Attributes:
        network: Class name.
        pattern: What is removed at once.
        parameters: All parameters.
        weights: Weights of all convolutions and linear layers.
        macs: Multiply-adds of one image.
        sites: Where units are removed.
        frozen: What stays dense.
    """

    network: str
    pattern: str
    parameters: int
    weights: int
    macs: int
    sites: tuple[SiteRow, ...]
    frozen: tuple[Frozen, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)

    def table(self) -> Table:
        """Return the sites and the frozen parts as a table for a rich console."""
        table = Table(
            title=f"{self.network}: {self.parameters:,} parameters, {self.macs:,} MACs an image",
            caption=f"pattern {self.pattern}; prunable weights {self.weights:,}",
        )
        for heading in ("site", "units", "removed", "weights", "MACs"):
            table.add_column(heading, justify="left" if heading == "site" else "right")
        for row in self.sites:
            name = row.name if len(row.layers) < 2 else f"{row.name} (+{len(row.layers) - 1} coupled)"
            table.add_row(name, f"{row.units:,}", f"{row.removed:,}", f"{row.weights:,}", f"{row.macs:,}")
        for part in self.frozen:
            table.add_row(part.name, "frozen", "", part.reason, "")
        return table

    def __str__(self) -> str:
        console = Console(width=110, force_terminal=False, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def inspect(context: Context) -> Inspection:
    """Return what the recipe would do to the network.

    Raises:
        ModelError: If nothing can be pruned or the network cannot be called.
    """
    plan = context.plan()
    masking = context.masking()
    costs = count_macs(context.model, context.example_inputs[:1])
    rows: list[SiteRow] = []
    for site, removed in zip(plan.sites, masking.removed, strict=True):
        layers = tuple(name for name in site.layers if name in costs)
        rows.append(
            SiteRow(
                name=site.name,
                layers=layers,
                units=site.units,
                removed=removed,
                weights=sum(costs[name].weights for name in layers),
                macs=sum(costs[name].macs for name in layers),
            )
        )
    return Inspection(
        network=type(context.model).__name__,
        pattern=context.recipe.pattern.kind,
        parameters=sum(parameter.numel() for parameter in context.model.parameters()),
        weights=sum(cost.weights for cost in costs.values()),
        macs=sum(cost.macs for cost in costs.values()),
        sites=tuple(rows),
        frozen=plan.frozen,
    )
