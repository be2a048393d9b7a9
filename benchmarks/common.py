"""What the benchmarks share: rows taken up where they were left, CPU-seconds, how figures are told."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import robustcompress


def run(values: dict[str, Any], folder: Path, stages: list[str]) -> Any:
    """Run (or take up) one row and return its result; wait while another process works on it."""
    recipe = robustcompress.Recipe.from_values({**values, "stages": stages})
    while True:
        try:
            return robustcompress.Compressor(recipe=recipe, run_dir=folder, resume=True).compress()
        except robustcompress.errors.RunLockedError:
            time.sleep(5)


ONE_EPOCH_EACH: dict[str, Any] = {
    f"{stage}.{name}": value
    for stage in ("pretrain", "prune", "finetune")
    for name, value in (("epochs", 1), ("warmup_epochs", 0))
}
"""Changes to a recipe for a quick look."""


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the row that was finished in a folder earlier, if one was."""
    done = folder / "row.json"
    if not done.exists():
        return None
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def finish(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Keep a row for :func:`finished`, and return it."""
    (folder / "row.json").write_text(json.dumps(row))
    return row


def grouped(rows: list[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return rows by their values under ``names``, in the order in which they first come."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def accuracy(row: dict[str, Any], attack: str, *, network: bool = False) -> float:
    """Return one accuracy of a row, of the exported file or of the network.

    Args:
        row: With ``measurements``.
        attack: Beginning of its name. A file that faced it both white-box and by transfer gets the lower.
        network: Of the network.
    """
    measured = [
        float(item["accuracy"])
        for item in row["measurements"]
        if item["attack"].startswith(attack) and (item["subject"] == "network") == network
    ]
    if not measured:
        raise LookupError(f"{attack} was not measured")
    return min(measured)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return CPU-seconds, or seconds on the GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000
    begun = time.process_time()
    run()
    return time.process_time() - begun


def spread(values: list[float]) -> str:
    """Return mean and, of more than one value, standard deviation in percent."""
    middle = 100 * statistics.mean(values)
    return f"{middle:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{middle:.1f}"


def commit() -> str:
    """Return the commit that the figures were measured at; empty outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
