"""An inspection as text that fits a terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from robustcompress.pipeline.inspection import Costs, FrozenRow, Inspection, SiteRow

_SHOWN = 4
_UNITS = {"channel": "channels", "block": "blocks"}


def as_text(found: "Inspection", *, width: int, groups: bool) -> str:
    """Return ``found`` as lines of at most ``width`` columns.

    Args:
        found: What to show.
        width: Of a line.
        groups: Name all layers of every group, and every frozen layer.
    """
    console = Console(width=width, force_terminal=False, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(Text(f"{found.network}: {found.parameters:,} parameters, {found.macs:,} MACs an image"))
        console.print(site_table(found))
        if groups and any(row.consumers for row in found.sites):
            console.print(_coupling_table(found.sites))
        if found.frozen:
            console.print(_frozen_table(found.frozen, every=groups))
        for line in _summary(found):
            console.print(Text(line))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def site_table(found: "Inspection") -> Table:
    """Return the places where units are removed, dense and after, as a table for a rich console."""
    channels = found.speed_up is not None
    units = "" if all(row.units == row.weights for row in found.sites) else _UNITS.get(found.pattern, "units")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("group" if channels else "layer", overflow="fold")
    for heading in (units, "weights", "MACs" if channels else "effective MACs", "bytes"):
        if heading:
            table.add_column(heading, justify="right", no_wrap=True)

    def add(name: str, count: str, row: "Costs") -> None:
        macs = _arrow(row.macs, row.macs_after if channels else row.effective_macs_after)
        cells = (_arrow(row.weights, row.weights_after), macs, _arrow(row.bytes, row.bytes_after))
        table.add_row(name, *((count,) if units else ()), *cells)

    for row in found.sites:
        name = row.name if len(row.layers) < 2 else f"{row.name} +{len(row.layers) - 1}"
        add(name or "(network)", _arrow(row.units, row.units - row.removed), row)
    if len(found.sites) + len(found.frozen) > 1:
        table.add_section()
        add("all, frozen too", "", found)
    return table


def _coupling_table(rows: Sequence["SiteRow"]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("made by", "normalised by", "taken in by"):
        table.add_column(heading, overflow="fold", ratio=1)
    for row in rows:
        table.add_row(*(", ".join(names) or "-" for names in (row.layers, row.norms, row.consumers)))
    return table


def _frozen_table(rows: Sequence["FrozenRow"], *, every: bool) -> Table:
    """Return frozen layers, those of one reason together."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("frozen", overflow="fold", ratio=2)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=3)
    reasons: dict[str, list[FrozenRow]] = {}
    for row in rows:
        reasons.setdefault(row.reason, []).append(row)
    for reason, members in reasons.items():
        names = [member.name or "(network)" for member in members]
        if not every and len(names) > _SHOWN:
            names = [*names[: _SHOWN - 1], f"and {len(names) - _SHOWN + 1} more"]
        weights = _arrow(_sum(members, "weights"), _sum(members, "weights_after"))
        macs = _arrow(_sum(members, "macs"), _sum(members, "macs_after"))
        table.add_row(", ".join(names), weights, macs, reason)
    return table


def _sum(rows: Iterable["FrozenRow"], name: str) -> int:
    return sum(int(getattr(row, name)) for row in rows)


def _summary(found: "Inspection") -> list[str]:
    saved = f"{found.bytes:,} bytes of weights, {found.bytes_after:,} after"
    lines = [
        f"pattern {found.pattern}, budget {found.budget}: {found.weights:,} weights, "
        f"{found.weights_after:,} after; {saved} ({_factor(found.bytes, found.bytes_after)} smaller)."
    ]
    if found.speed_up is not None:
        lines.append(
            f"Expected speed-up {found.speed_up:.2f}x, dense MACs over those left: {found.macs:,} an image, "
            f"{found.macs_after:,} after."
        )
    else:
        lines.append(
            f"No speed-up but a smaller file: {found.macs:,} MACs an image, before and after; effective MACs "
            f"{found.effective_macs_after:,} ({_factor(found.macs, found.effective_macs_after)} fewer)."
        )
    return [*lines, *found.notes]


def _factor(before: int, after: int) -> str:
    return f"{before / max(1, after):.2f}x"


def _arrow(before: int, after: int) -> str:
    return short(before) if before == after else f"{short(before)}→{short(after)}"


def short(count: int) -> str:
    """Return a count with three digits at least: ``999``, ``1.23k``, ``45.6M``; k is 1000."""
    value, suffixes = float(count), "kMGTP"
    if count < 1000:
        return str(count)
    for suffix in suffixes:
        value /= 1000
        if value < 999.5 or suffix == suffixes[-1]:
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{suffix}"
    raise AssertionError
