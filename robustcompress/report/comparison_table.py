"""A comparison for a terminal: what all rows share is said once, and empty columns are left out."""

import os
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.table import Table

from robustcompress.report.comparison import Comparison, Row, percent, protocol_text

_COLUMNS: dict[str, Callable[[Row], str]] = {
    "bytes": lambda row: f"{row.size_bytes:,}",
    "ms": lambda row: "" if row.timing is None else f"{row.timing.median_ms:.3g}",
    "MACs": lambda row: _thousands(row.macs),
    "sparse": lambda row: f"{row.sparsity:.1%}",
    "clean": lambda row: percent(row.clean),
    "robust": lambda row: percent(row.robust),
    "proven": lambda row: percent(row.certified),
}


def comparison_table(comparison: Comparison) -> Table:
    """Return the rows; an asterisk marks the Pareto front of bytes and robust accuracy.

    A row that is not ranked has a number, under which ``print_comparison`` says why.
    """
    rows = comparison.rows
    table = Table(title=protocol_text(comparison.protocol), title_justify="left")
    table.add_column("")
    table.add_column("file", overflow="fold")
    columns = {head: [cell(row) for row in rows] for head, cell in _COLUMNS.items()}
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    for head in shown:
        table.add_column(head, justify="right", no_wrap=True)
    marks = _marks(rows)
    for mark, name, *cells in zip(marks, _short([row.name for row in rows]), *shown.values(), strict=True):
        table.add_row(mark, name, *cells)
    return table


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table, by default on stdout, and beneath it notes, what was left out and what was timed."""
    notes = [row.note for row in comparison.rows if row.note]
    lines = [f"{number}: not ranked: {note}" for number, note in enumerate(notes, start=1)]
    lines += [f"left out: {text}" for text in comparison.left_out]
    if comparison.machine:
        lines.append(f"ms: one image on one thread, median; {comparison.machine}")
    if folder := _folder([row.name for row in comparison.rows]):
        lines.append(f"files are in {folder}")
    lines.append("*: on the Pareto front of bytes and robust accuracy")
    (console or Console(highlight=False)).print(Group(comparison_table(comparison), *lines), markup=False)


def _marks(rows: Sequence[Row]) -> list[str]:
    """Return for each row an asterisk, the number of its note, or nothing."""
    marks: list[str] = []
    notes = 0
    for row in rows:
        notes += bool(row.note)
        marks.append(str(notes) if row.note else "*" if row.on_front else "")
    return marks


def _folder(names: Sequence[str]) -> str:
    """Return the folder that all files lie in, somewhere; empty if that says nothing."""
    if len(names) < 2:
        return ""
    try:
        return os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # relative and absolute ones, or several drives
        return ""


def _short(names: Sequence[str]) -> list[str]:
    """Return names without the folder that all share."""
    folder = _folder(names)
    return [os.path.relpath(name, folder) if folder else name for name in names]


def _thousands(count: int) -> str:
    """Return a count in three digits or so."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
