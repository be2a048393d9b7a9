"""The command that puts runs beside each other: compare."""

from pathlib import Path
from typing import Annotated

import typer

from robustcompress.cli.options import JsonOption


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs that were evaluated.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write an HTML page with a picture, too.")
    ] = None,
    latency: Annotated[
        bool, typer.Option(help="Time each file with ONNX Runtime, one image on one thread.")
    ] = True,
    seconds: Annotated[float, typer.Option(help="To time each file, about.", min=0)] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: bytes, latency, clean, robust and certified accuracy, and the Pareto front.

    Robust accuracies are ranked only where the same attacks, with the same settings, radius and images, are
    behind them; of the other rows the table says what differs.

    Examples:
      robustcompress compare runs/*

      robustcompress compare runs/a runs/b --out comparison.html
    """
    import robustcompress

    found = robustcompress.compare(runs, latency=latency, page=out, seconds=seconds)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    robustcompress.print_comparison(found)
    if out is not None:
        typer.echo(f"page      {out}")
