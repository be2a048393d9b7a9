"""The command that downloads data sets: fetch."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustcompress.cli.options import JsonOption
from robustcompress.errors import ConfigError


def fetch(
    data: Annotated[str, typer.Argument(help="fashion-mnist, mnist, cifar10, cifar100 or svhn.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the files. [default: where the data set is looked for]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a data set's files, check their sums, and put them where they are looked for.

    Files that are there already are not fetched again. Where there is no network, the message names the
    addresses and the paths. ImageNet's license allows no such download; see docs/data.md.

    Examples:
      robustcompress fetch cifar10

      robustcompress fetch svhn --data-dir data/svhn
    """
    import robustcompress

    values: dict[str, object] = {"kind": data}
    values.update({} if data_dir is None else {"dir": data_dir})
    try:
        chosen = robustcompress.datasets.DataSet.find(values)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def progress(name: str, done: int, total: int) -> None:
        share = f"{done / total:4.0%}" if total else ""
        typer.secho(f"\r{name}  {done / 2**20:,.0f} MiB {share}", err=True, nl=False)

    paths = chosen.fetch(progress=progress)
    typer.secho("", err=True)
    typer.echo(json.dumps([str(path) for path in paths]) if as_json else "\n".join(map(str, paths)))
