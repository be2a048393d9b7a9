"""Several runs in one table: what is small, fast and robust, and what cannot be compared."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from robustcompress.report.model import FileInfo, Report
from robustcompress.robustness.measurement import Count, Measurement

WORST = "worst case"


class Timing(BaseModel):
    """Milliseconds of one call with one image: the median, and the quartiles around it."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    median_ms: float
    low_ms: float
    high_ms: float
    calls: int


class Row(BaseModel):
    """One file, or the network of a run that exported none.

    Attributes:
        name: Run and file.
        size_bytes: Of the file; of the artifact's tensors where there is no file.
        timing: On one thread; ``None`` where it was not measured.
        macs: Multiply-adds of one image in the shapes that are left.
        sparsity: Fraction of the dense network's weights that are gone.
        clean: Right without an attack.
        robust: Right whatever was tried; ``None`` if nothing was, or if alarms say not to believe it.
        certified: Proven at the radius of the attacks; ``None`` if nothing was certified there.
        protocol: How robust accuracy was measured, part by part.
        note: Why the row is not ranked; empty if it is.
        on_front: Whether no ranked row is both as small and as robust, and better in one of the two.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    size_bytes: int
    timing: Timing | None = None
    macs: int
    sparsity: float
    clean: Count | None
    robust: Count | None
    certified: Count | None = None
    protocol: dict[str, str]
    note: str = ""
    on_front: bool = False


class Comparison(BaseModel):
    """Rows by size, smallest first.

    Attributes:
        rows: All that was found.
        protocol: How robust accuracy was measured in the rows that are ranked.
        machine: On which latency was measured.
        left_out: What could not be read, and why.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    rows: tuple[Row, ...]
    protocol: dict[str, str]
    machine: str = ""
    left_out: tuple[str, ...] = ()


def rows_of(report: Report, name: str) -> list[Row]:
    """Return a row for each file of a run that was judged; failing that, one for its network.

    Args:
        report: Of the run.
        name: Of the run.
    """
    judged = {measurement.subject for measurement in report.measurements}
    files = [file for file in report.files if file.name in judged]
    if not files:
        return [_row(report, name, None)]
    return [_row(report, f"{name}/{file.name}", file) for file in files]


def compared(rows: Sequence[Row], *, machine: str = "", left_out: Sequence[str] = ()) -> Comparison:
    """Rank the rows whose robust accuracy was measured alike, and say of the others why they are not.

    The measure is that of most rows; of the first, where several are as frequent.

    Args:
        rows: In any order.
        machine: On which latency was measured.
        left_out: What could not be read, and why.
    """
    usual = _usual([row for row in rows if row.robust is not None and not row.note])
    noted = [row.model_copy(update={"note": row.note or _difference(row, usual)}) for row in rows]
    ranked = [row for row in noted if not row.note]
    marked = [row.model_copy(update={"on_front": row in ranked and _on_front(row, ranked)}) for row in noted]
    return Comparison(
        rows=tuple(sorted(marked, key=lambda row: (row.size_bytes, row.name))),
        protocol=dict(usual),
        machine=machine,
        left_out=tuple(left_out),
    )


def protocol_text(protocol: Mapping[str, str]) -> str:
    """Return in words how robust accuracy was measured."""
    if not protocol:
        return "no robust accuracy was measured"
    attacks, threat, images = protocol["attacks"], protocol["threat"], protocol["images"]
    return f"robust: right under each of {attacks}; {threat}; {images} images"


def percent(count: Count | None) -> str:
    """Return an accuracy for people; empty if there is none."""
    return "" if count is None else f"{count.accuracy:.1%}"


def _row(report: Report, name: str, file: FileInfo | None) -> Row:
    subject = "network" if file is None else file.name
    own = [measurement for measurement in report.measurements if measurement.subject == subject]
    clean = next((item for item in own if item.attack == "clean"), None)
    worst = next((item for item in own if item.attack == WORST), None)
    unreliable = report.unreliable(subject)
    return Row(
        name=name,
        size_bytes=report.artifact_bytes if file is None else file.size_bytes,
        macs=report.network.compact_macs,
        sparsity=report.network.sparsity,
        clean=_count(clean),
        robust=None if unreliable else _count(worst),
        certified=_certified(report, subject, worst),
        protocol=_protocol(report, worst),
        note="alarms: its robust accuracy is not to be believed"
        if unreliable
        else ""
        if worst is not None
        else "it was not attacked",
    )


def _count(measurement: Measurement | None) -> Count | None:
    return None if measurement is None else Count(correct=measurement.correct, count=measurement.count)


def _certified(report: Report, subject: str, worst: Measurement | None) -> Count | None:
    """Return the most that a certifier proved of the subject itself at the attacks' radius."""
    if worst is None or worst.eps is None:
        return None
    proven = [
        Count(correct=item.correct, count=item.count)
        for part in report.certified
        if part.subject == subject and part.norm == worst.norm and not part.smoothed
        for item in part.accuracies
        if abs(item.radius - worst.eps) <= 1e-9
    ]
    return max(proven, key=lambda count: count.accuracy, default=None)


def _protocol(report: Report, worst: Measurement | None) -> dict[str, str]:
    """Return all that must be alike where robust accuracies are compared."""
    if worst is None or worst.eps is None:
        return {}
    recipe = report.run.recipe
    evaluation, data = recipe.get("evaluation"), recipe.get("data")
    settings = evaluation.get("attacks") if isinstance(evaluation, dict) else None
    chosen = (
        {key: data.get(key) for key in ("kind", "test_size", "subset_seed")} if isinstance(data, dict) else {}
    )
    return {
        "threat": f"{'Linf' if worst.norm == 'linf' else 'L2'} eps {worst.eps:.6g}",
        "attacks": str(worst.settings.get("attacks", "")),
        "settings": json.dumps(settings, sort_keys=True),
        "access": worst.access,
        "images": f"{worst.count:,} {report.run.judged_on}",
        "data": report.run.data or "unnamed",
        "subset": json.dumps(chosen, sort_keys=True),
    }


def _usual(rows: Sequence[Row]) -> dict[str, str]:
    counts = Counter(tuple(sorted(row.protocol.items())) for row in rows)
    return dict(counts.most_common(1)[0][0]) if counts else {}


def _difference(row: Row, usual: Mapping[str, str]) -> str:
    """Return in which part a row was measured otherwise; empty if in none."""
    for part in ("data", "subset", "images", "threat", "attacks", "settings", "access"):
        if row.protocol.get(part) != usual.get(part):
            return f"other {part}: {row.protocol.get(part)} instead of {usual.get(part)}"
    return ""


def _on_front(row: Row, ranked: Sequence[Row]) -> bool:
    return not any(_dominates(other, row) for other in ranked)


def _dominates(one: Row, other: Row) -> bool:
    """Return whether ``one`` is as small and as robust as ``other``, and better in one of the two."""
    assert one.robust is not None, "only rows with a robust accuracy are ranked"
    assert other.robust is not None, "only rows with a robust accuracy are ranked"
    as_good = one.size_bytes <= other.size_bytes and one.robust.accuracy >= other.robust.accuracy
    better = one.size_bytes < other.size_bytes or one.robust.accuracy > other.robust.accuracy
    return as_good and better
