"""Put runs beside each other: what their reports say, and latency measured side by side."""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch

from robustcompress.errors import StorageError
from robustcompress.export.latency import measure_latencies, one_image
from robustcompress.export.session import OnnxSession
from robustcompress.report.comparison import Comparison, Row, Timing, compared, rows_of
from robustcompress.report.comparison_page import render_comparison
from robustcompress.report.model import Report
from robustcompress.storage.atomic import write_bytes


def compare(
    runs: Sequence[str | Path], *, latency: bool = True, page: str | Path | None = None, seconds: float = 2.0
) -> Comparison:
    """Compare evaluated runs: bytes, latency, clean, robust and certified accuracy, and the Pareto front.

    Only files whose robust accuracy was measured alike are ranked: the same images, threat and attacks with
    the same settings. The others are shown with what differs.

    Args:
        runs: Their folders. Those without a report are left out, with the reason.
        latency: Whether to time each file with ONNX Runtime, one image on one thread, in turn.
        page: An HTML file to write the comparison to, too.
        seconds: To time each file, about.

    Raises:
        StorageError: If no run has a report, or the page cannot be written.
        ExportError: If a file cannot be loaded.
    """
    rows: list[Row] = []
    places: list[Path | None] = []
    left_out: list[str] = []
    for run in map(Path, runs):
        try:
            report = Report.read(run / "report" / "report.json")
        except StorageError as error:
            left_out.append(str(error))
            continue
        digests = {file.name: file.sha256 for file in report.files}
        for row in rows_of(report, str(run)):
            file = run / "export" / Path(row.name).name
            row, place = _checked(row, file, digests.get(file.name))
            rows.append(row)
            places.append(place)
    if not rows:
        reasons = " ".join(left_out) or "no folder was given."
        raise StorageError(f"there is nothing to compare: {reasons}")
    machine = ""
    if latency and any(places):
        rows, machine = _timed(rows, places, seconds), _machine()
    found = compared(rows, machine=machine, left_out=left_out)
    if page is not None:
        write_bytes(Path(page), render_comparison(found).encode())
    return found


def _checked(row: Row, file: Path, sha256: str | None) -> tuple[Row, Path | None]:
    """Return the row, and its file if there is one to be timed."""
    if sha256 is None or file.suffix != ".onnx":
        return row, None
    if not file.is_file():
        return row.model_copy(update={"note": "the file is gone"}), None
    with file.open("rb") as content:
        now = hashlib.file_digest(content, "sha256").hexdigest()
    if now != sha256:
        return row.model_copy(update={"note": "the file was changed since it was judged"}), None
    return row, file


def _timed(rows: Sequence[Row], places: Sequence[Path | None], seconds: float) -> list[Row]:
    """Return the rows with the latency of those that have a file."""
    sessions = {index: OnnxSession(place, threads=1) for index, place in enumerate(places) if place}
    images = {index: one_image(session) for index, session in sessions.items()}
    timed = {index: image for index, image in images.items() if image is not None}
    found = measure_latencies([sessions[index] for index in timed], list(timed.values()), seconds=seconds)
    timings = {index: Timing(**vars(item)) for index, item in zip(timed, found, strict=True)}
    return [row.model_copy(update={"timing": timings.get(index)}) for index, row in enumerate(rows)]


def _machine() -> str:
    return (
        f"ONNX Runtime {onnxruntime.__version__}, {platform.machine()} with "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
