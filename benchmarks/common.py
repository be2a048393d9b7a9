"""What the benchmarks share: rows taken up where they were left, CPU-seconds, how figures are told."""

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
