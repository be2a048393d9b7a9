"""The command that makes plain files of compact ones: densify."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustcompress.cli.options import JsonOption
from robustcompress.errors import ConfigError

_STYLES = ("dense", "sparse-initializer")


def densify(
    source: Annotated[Path, typer.Argument(help="A compact .onnx file.")],
    out: Annotated[Path | None, typer.Option(help="Where to. [default: NAME.dense.onnx beside it]")] = None,
    style: Annotated[str, typer.Option(help="dense, or sparse-initializer for ONNX Runtime.")] = "dense",
    as_json: JsonOption = False,
) -> None:
    """Write a copy of a compact file with plain weights, for tools that do not fold constants.

    Both files are run in ONNX Runtime and must give the same logits, bit for bit. Claims of robust accuracy
    are not copied: they are about the file that was attacked.

    Examples:
      robustcompress densify runs/a/export/model.onnx

      robustcompress densify model.onnx --out sparse.onnx --style sparse-initializer
    """
    import robustcompress

    if style not in _STYLES:
        raise ConfigError(f"expected --style {' or '.join(_STYLES)}; got {style!r}.")
    target = out or source.with_suffix(".dense.onnx")
    if target.resolve() == source.resolve():
        raise ConfigError(f"--out {target} is the file itself; it is never overwritten.")
    found = robustcompress.densify(
        source, target, style="dense" if style == "dense" else "sparse-initializer"
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    typer.echo(f"{found.path}  {found.size_bytes:,} bytes ({found.source_bytes:,} before), {found.style}")
    if found.images_compared:
        typer.echo(f"same logits on {found.images_compared} random images, bit for bit")
    else:
        typer.echo("not compared: the file leaves open which image size it takes")
