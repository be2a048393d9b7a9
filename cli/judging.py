"""Commands about finished runs: export, evaluate, report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustcompress.cli.options import AllowImportOption, DeviceOption, JsonOption, NormOption
from robustcompress.errors import ConfigError

if TYPE_CHECKING:
    from robustcompress import Compressor

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", exists=False)]


def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="Name of the format.")] = "onnx",
    style: Annotated[
        str | None, typer.Option(help="compact (weights coded, decoded at load) or dense.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file. [default: in the run]")] = None,
    as_json: JsonOption = False,
    allow_import: AllowImportOption = False,
) -> None:
    """Write a run's network in a deployment format, and prove that the file equals the network.

    Examples:
      robustcompress export runs/a

      robustcompress export runs/a --style dense --out dense.onnx
    """
    asked = {"kind": format, "style": style, "opset": opset}
    settings: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    compressor = _reopen(run, {"export": [settings]}, allow_import=allow_import)
    written = compressor.export(compressor.recipe.export[0], out)
    if as_json:
        typer.echo(json.dumps(written.as_dict()))
        return
    size = f"{written.size_bytes:,} bytes (dense {written.dense_size_bytes:,})"
    proof = (
        f"equal to the network within {written.largest_difference:.2g} on {written.images_compared} images"
    )
    typer.echo(f"{written.path}  {written.style}, {size}; {proof}")


def evaluate(
    run: RunArgument,
    eps: Annotated[str | None, typer.Option(help="In place of the run's radius: 0.1 or 8/255.")] = None,
    norm: NormOption = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Attack and its settings, pgd or pgd:steps=50,restarts=5; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Judge only so many test images.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    allow_import: AllowImportOption = False,
) -> None:
    """Attack a run's network, and every file that was exported from it, and write the report anew.

    Examples:
      robustcompress evaluate runs/a

      robustcompress evaluate runs/a --attack pgd:steps=50,restarts=5 --attack apgd:steps=100 --eps 0.1
    """
    import robustcompress

    changes: dict[str, Any] = {"device": device, "evaluation.limit": limit}
    changes = {name: value for name, value in changes.items() if value is not None}
    if attack:
        changes["evaluation.attacks"] = [parse_attack(text) for text in attack]
    compressor = _reopen(run, changes, allow_import=allow_import, eps=eps, norm=norm)
    found = compressor.evaluate()
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        robustcompress.print_report(found)
        typer.echo(f"report    {run / 'report' / 'report.html'}")


def report(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show the report of a run that was evaluated.

    Example:
      robustcompress report runs/a
    """
    import robustcompress

    found = robustcompress.Report.read(run / "report" / "report.json")
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        robustcompress.print_report(found)
        typer.echo(f"report    {run / 'report' / 'report.html'}")


def parse_attack(text: str) -> dict[str, Any]:
    """Return the settings that ``pgd:steps=50,restarts=5`` means.

    Raises:
        ConfigError: If a part is not ``name=value``.
    """
    import yaml

    kind, _, rest = text.partition(":")
    settings: dict[str, Any] = {"kind": kind}
    for part in filter(None, rest.split(",")):
        name, found, value = part.partition("=")
        if not found:
            raise ConfigError(f"--attack takes kind:name=value,name=value; got {text!r}.")
        settings[name.strip()] = yaml.safe_load(value)
    return settings


def _reopen(
    run: Path,
    changes: dict[str, Any],
    *,
    allow_import: bool,
    eps: str | None = None,
    norm: str | None = None,
) -> "Compressor":
    import robustcompress
    from robustcompress.recipe import Recipe, with_changes

    path = run / "recipe.yaml"
    if not path.is_file():
        raise ConfigError(f"{run} holds no run: there is no {path}.")
    recipe = Recipe.read(path)
    if eps is not None or norm is not None:
        threat = recipe.evaluation_threat
        changes["evaluation.threat"] = {
            **threat.model_dump(mode="json"),
            "eps": eps if eps is not None else threat.eps,
            "norm": norm or threat.norm,
        }
    values = with_changes(recipe.model_dump(mode="json"), changes)
    return robustcompress.Compressor(
        recipe=Recipe.from_values(values, where="settings"),
        run_dir=run,
        resume=True,
        allow_import=allow_import,
    )
