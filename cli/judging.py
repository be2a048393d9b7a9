"""Commands about finished runs: export, evaluate, report."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustcompress.cli.options import DATA_SETS, AllowImportOption, DataDirOption, DeviceOption, JsonOption
from robustcompress.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from robustcompress import Compressor

_USUAL_ATTACKS = ("pgd", "apgd", "square:queries=500")

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", exists=False)]


def export(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="Name of the format.")] = "onnx",
    style: Annotated[
        str | None, typer.Option(help="compact (weights coded, decoded at load) or dense.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The oldest runtime that is to load the file: onnxruntime>=1.17.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="How weights are stored: float32, float16, int8, int6, int4 or mixed.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting of the format: group=layer; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file. [default: in the run]")] = None,
    as_json: JsonOption = False,
    allow_import: AllowImportOption = False,
) -> None:
    """Write a run's network in a deployment format, and prove that the file equals the network.

    Examples:
      robustcompress export runs/a

      robustcompress export runs/a --style dense --out dense.onnx

      robustcompress export runs/a --values int8 --target 'onnxruntime>=1.17' --out small.onnx

      robustcompress export runs/a --format onnx_int8

      robustcompress export runs/a --format c --out net.c
    """
    asked = {"kind": format, "style": style, "opset": opset, "target": target, "values": values}
    asked.update(_pairs(settings or (), "--set"))
    chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    compressor = _reopen(run, {"export": [chosen]}, allow_import=allow_import)
    written = compressor.export(compressor.recipe.export[0], out)
    if as_json:
        typer.echo(json.dumps(written.as_dict()))
        return
    size = f"{written.size_bytes:,} bytes (dense {written.dense_size_bytes:,})"
    moved = written.details.get("rounding_moved_logits", "0")
    rounded = f", rounded (which moves logits by up to {float(moved):.2g})," if float(moved) else ""
    proof = (
        f"equal to the network{rounded} within {written.largest_difference:.2g} of the largest logit "
        f"on {written.images_compared} images"
    )
    if not written.images_compared:
        proof = "not proven: no C compiler is installed"
    typer.echo(f"{written.path}  {written.style}, {size}; {proof}")


def evaluate(
    target: Annotated[Path, typer.Argument(help="A run's folder, an artifact's folder, or any .onnx file.")],
    data: Annotated[
        str | None,
        typer.Option(help=f"For a file or artifact: {DATA_SETS}."),
    ] = None,
    data_dir: DataDirOption = None,
    eps: Annotated[
        str | None,
        typer.Option(help="Radius on the scale 0 to 1: 0.1 or 8/255. A run has its own; a file needs one."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2. [default: the run's, or linf]")] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack and its settings, pgd or pgd:steps=50,restarts=5; may be repeated. autoattack is "
            "the full suite. [default: the run's, or pgd, apgd and square:queries=500]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Judge only so many test images.")] = None,
    transfer_from: Annotated[
        Path | None,
        typer.Option(
            help="For a file or artifact: an artifact's folder; images that attacks make on its network are "
            "scored on the target, too."
        ),
    ] = None,
    alarms: Annotated[
        bool | None,
        typer.Option(
            "--alarms/--no-alarms",
            help="Look for signs of gradient masking. [default: the run's, or --alarms]",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="For a file or artifact: a folder for what autoattack has made so far; the same command, "
            "given again, goes on with it."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="For a file or artifact: of every random number. [default: 0]")
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    allow_import: AllowImportOption = False,
) -> None:
    """Attack a network or file: how many images does it get right clean, and under each and all attacks?

    A run: its network, and every file that was exported from it; its report is written anew. An .onnx file,
    whoever made it, needs --data and --eps: attacks follow the gradients of the file's own graph, and every
    number is what the file says in its runtime. Where the graph is not understood, black-box attacks remain,
    and the result says so. An artifact is judged alike. What alarms do not believe is withheld.

    Examples:
      robustcompress evaluate runs/a

      robustcompress evaluate runs/a --attack pgd:steps=50,restarts=5 --attack apgd:steps=100 --eps 0.1

      robustcompress evaluate model.onnx --data cifar10 --eps 8/255 --attack autoattack

      robustcompress evaluate model.onnx --data image-folder --data-dir photos --eps 4/255 --limit 1000

      robustcompress evaluate int8.onnx --data cifar10 --eps 8/255 --transfer-from runs/a/artifact
    """
    asked = _Asked(eps, norm, [parse_attack(text) for text in attack or ()], limit, alarms, device)
    of_file = _OfFile(data, data_dir, transfer_from, keep, seed)
    if target.is_dir() and not (target / "artifact.json").is_file():
        of_file.refuse(target)
        _evaluate_run(target, asked, as_json=as_json, allow_import=allow_import)
    elif target.is_dir() or target.suffix == ".onnx":
        _evaluate_file(target, asked, of_file, as_json=as_json, allow_import=allow_import)
    else:
        raise ConfigError(
            f"expected a run's folder, an artifact's folder or an .onnx file; {target} is none of them."
        )


@dataclass(frozen=True)
class _Asked:
    """What may be asked of every evaluation; ``None`` where nothing was."""

    eps: str | None
    norm: str | None
    attacks: list[dict[str, Any]]
    limit: int | None
    alarms: bool | None
    device: str | None


@dataclass(frozen=True)
class _OfFile:
    """What a run knows of itself, and a file does not."""

    data: str | None
    data_dir: Path | None
    transfer_from: Path | None
    keep: Path | None
    seed: int | None

    def refuse(self, run: Path) -> None:
        """Check that nothing of this was asked.

        Raises:
            ConfigError: If something was.
        """
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]
        if given:
            raise ConfigError(
                f"{', '.join(given)} is for an .onnx file or an artifact's folder; {run} is a run, or "
                f"nothing yet, and a run has its own. Give {run / 'artifact'} or a file in {run / 'export'}."
            )


def _evaluate_run(run: Path, asked: _Asked, *, as_json: bool, allow_import: bool) -> None:
    import robustcompress

    changes: dict[str, Any] = {
        "device": asked.device,
        "evaluation.limit": asked.limit,
        "evaluation.alarms": asked.alarms,
        "evaluation.attacks": asked.attacks or None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    compressor = _reopen(run, changes, allow_import=allow_import, eps=asked.eps, norm=asked.norm)
    found = compressor.evaluate()
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        robustcompress.print_report(found)
        typer.echo(f"report    {run / 'report' / 'report.html'}")


def _evaluate_file(
    target: Path, asked: _Asked, of_file: _OfFile, *, as_json: bool, allow_import: bool
) -> None:
    if of_file.data is None:
        raise ConfigError(
            f"--data is needed: on which images is {target} to be judged? {DATA_SETS}, "
            "with --data-dir for their folder."
        )
    if asked.eps is None:
        raise ConfigError("--eps is needed: how far may pixels be moved? On the scale 0 to 1: 8/255.")
    import robustcompress
    from robustcompress.sinks.console import ConsoleSink

    images: dict[str, object] = {"kind": of_file.data}
    if of_file.data_dir is not None:
        images["dir"] = of_file.data_dir

    def network(folder: Path) -> "nn.Module":
        return robustcompress.load(folder, allow_import=allow_import)

    with ConsoleSink() as console:
        found = robustcompress.evaluate_data_set(
            network(target) if target.is_dir() else target,
            images,
            threat={"eps": asked.eps, "norm": asked.norm or "linf"},
            attacks=asked.attacks or [parse_attack(text) for text in _USUAL_ATTACKS],
            subject=target.name,
            limit=asked.limit,
            seed=of_file.seed or 0,
            device=asked.device or "auto",
            transfer_from=None if of_file.transfer_from is None else network(of_file.transfer_from),
            alarms=asked.alarms is not False,
            keep=of_file.keep,
            sinks=[console],
        )
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        robustcompress.print_judgement(found)


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
    kind, _, rest = text.partition(":")
    try:
        return {"kind": kind, **_pairs(filter(None, rest.split(",")), "--attack")}
    except ConfigError:
        raise ConfigError(f"--attack takes kind:name=value,name=value; got {text!r}.") from None


def _pairs(texts: Iterable[str], option: str) -> dict[str, Any]:
    """Return the settings that ``name=value`` means, each value as YAML."""
    import yaml

    settings: dict[str, Any] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"{option} takes name=value; got {text!r}.")
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
