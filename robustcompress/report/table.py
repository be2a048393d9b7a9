"""The report as a table for terminals."""

from collections.abc import Container, Sequence

from rich.console import Console, Group
from rich.table import Table

from robustcompress.report.model import Report
from robustcompress.robustness.measurement import Measurement


def accuracy_table(report: Report) -> Table:
    """Return the rows of accuracy: subject, attack, access, result with its 95% interval."""
    doubted = {row.subject for row in report.measurements if report.unreliable(row.subject)}
    return measurement_table(report.measurements, judged_on=report.run.judged_on, doubted=doubted)


def measurement_table(
    measurements: Sequence[Measurement], *, judged_on: str, doubted: Container[str] = ()
) -> Table:
    """Return a row for each measurement.

    Args:
        measurements: One or more, those of a subject together.
        judged_on: Which images, ``test`` for example.
        doubted: Subjects whose worst case is not to be believed; it is not shown.
    """
    threat = next((m for m in measurements if m.eps is not None), None)
    against = f", {'Linf' if threat.norm == 'linf' else 'L2'} eps {threat.eps:.4g}" if threat else ""
    table = Table(title=f"accuracy on {measurements[0].count} {judged_on} images{against}")
    table.add_column("subject")
    table.add_column("attack")
    table.add_column("access")
    table.add_column("accuracy", justify="right")
    table.add_column("95% interval", justify="right")
    last = ""
    for row in measurements:
        if last and row.subject != last:
            table.add_section()
        low, high = row.interval
        withheld = row.attack == "worst case" and row.subject in doubted
        part = "  " if "part of" in row.settings else ""
        table.add_row(
            row.subject if row.subject != last else "",
            part + row.attack,
            "" if row.access == "none" else row.access,
            "unreliable" if withheld else f"{row.accuracy:.1%}",
            "" if withheld else f"{low:.1%} to {high:.1%}",
        )
        last = row.subject
    return table


def certified_table(report: Report) -> Table:
    """Return the rows of certified accuracy: subject, certifier, radius, result with its 95% interval."""
    count = report.certified[0].accuracies[0].count
    table = Table(title=f"certified accuracy on {count} {report.run.judged_on} images")
    table.add_column("subject")
    table.add_column("certifier")
    table.add_column("radius", justify="right")
    table.add_column("certified", justify="right")
    table.add_column("95% interval", justify="right")
    last = ("", "")
    for part in report.certified:
        who = (part.subject, f"{part.certifier}{' (under noise)' if part.smoothed else ''}")
        if last[0] and who[0] != last[0]:
            table.add_section()
        for item in part.accuracies:
            low, high = item.interval
            shown = who if who != last else ("", "")
            radius = f"{'Linf' if part.norm == 'linf' else 'L2'} {item.radius:.4g}"
            table.add_row(*shown, radius, f"{item.accuracy:.1%}", f"{low:.1%} to {high:.1%}")
            last = who
    return table


def size_table(report: Report) -> Table:
    """Return the rows of size: what was there before, and each file."""
    table = Table(title="size")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    table.add_column("if dense", justify="right")
    table.add_column("dense network", justify="right")
    table.add_column("smaller", justify="right")
    size, dense = report.artifact_bytes, report.dense_bytes
    table.add_row("artifact", f"{size:,}", "", f"{dense:,}", f"{dense / size:.1f}x")
    for file in report.files:
        original = f"{file.original_size_bytes:,}" if file.original_size_bytes else ""
        name, smaller = f"{file.name} ({file.style})", f"{file.before_bytes / file.size_bytes:.1f}x"
        table.add_row(name, f"{file.size_bytes:,}", f"{file.dense_size_bytes:,}", original, smaller)
    return table


def summary(report: Report) -> str:
    """Return one line on what was removed."""
    network = report.network
    line = (
        f"{network.name}: {network.sparsity:.1%} of {network.weights:,} weights removed, "
        f"{network.kept_weights:,} kept"
    )
    if network.compact_macs < network.macs:
        line += f"; {network.compact_macs:,} of {network.macs:,} multiply-adds left"
    return line


def render(report: Report) -> Group:
    """Return summary, size and accuracy for a rich console."""
    warnings = [f"warning: {text}" for text in report.run.warnings]
    tables = [size_table(report), accuracy_table(report)]
    if report.certified:
        tables.append(certified_table(report))
    alarms = [
        f"{subject}: {found}" for subject, found in report.reliability.items() if found.status != "no alarm"
    ]
    return Group(summary(report), *tables, *worst_classes(report), *alarms, *warnings)


def worst_classes(report: Report) -> list[str]:
    """Return a line for each subject on the class that fared worst, and one on the dense network."""
    lines = [
        f"{subject}: worst class {worst.label}, {worst.standing / worst.count:.1%} of {worst.count} images "
        f"stand, {worst.clean / worst.count:.1%} clean"
        for subject in dict.fromkeys(item.subject for item in report.classes)
        if (worst := report.worst_class(subject)) is not None and not report.unreliable(subject)
    ]
    if report.agreement is not None:
        share = report.agreement.same / report.agreement.count
        lines.append(f"same class as the dense network on {share:.1%} of {report.agreement.count} images")
    return lines


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the report's tables, by default on stdout."""
    (console or Console(highlight=False)).print(render(report), markup=False)
