"""The command that measures claims again: verify."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcompress.cli.options import DATA_SETS, AllowImportOption, DeviceOption, JsonOption
from robustcompress.errors import ConfigError

if TYPE_CHECKING:
    from robustcompress import Verification


def verify(
    target: Annotated[Path, typer.Argument(help="An exported .onnx file, or an artifact's folder.")],
    data: Annotated[str, typer.Option(help=f"{DATA_SETS}.")],
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    test_size: Annotated[
        int | None, typer.Option(help="Test images of the balanced subset that was judged, if it was one.")
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    allow_import: AllowImportOption = False,
) -> None:
    """Measure again what a file claims of itself: the same attacks, seed and images.

    A claim is confirmed (the same number of images), within the 95% interval of what was found, conservative
    (more images withstand than it says) or refuted. The exit code is 1 if one is refuted.

    Examples:
      robustcompress verify runs/a/export/model.onnx --data fashion-mnist-mini

      robustcompress verify model.onnx --data cifar10 --data-dir data --json
    """
    import robustcompress
    from robustcompress.sinks.console import ConsoleSink

    if target.suffix != ".onnx" and not target.is_dir():
        raise ConfigError(f"expected an artifact's folder or an .onnx file; {target} is neither.")
    images: dict[str, object] = {"kind": data}
    images.update({} if data_dir is None else {"dir": data_dir})
    images.update({} if test_size is None else {"test_size": test_size})
    with ConsoleSink() as console:
        found = robustcompress.verify(
            target,
            images,
            network=robustcompress.load(target, allow_import=allow_import) if target.is_dir() else None,
            device=device or "auto",
            sinks=[console],
        )
    typer.echo(json.dumps(found.model_dump(mode="json")) if as_json else _table(found))
    if found.refuted:
        raise typer.Exit(1)


def _table(found: "Verification") -> str:
    claims = found.claims
    lines = [
        f"{found.subject}  {claims.count} {claims.judged_on} images of {claims.data or 'unnamed data'}, "
        f"{claims.threat}, seed {claims.seed}"
    ]
    for item in found.checked:
        claim = item.claim
        name = f"{claim.attack} ({claim.part_of})" if claim.part_of else claim.attack
        text = (
            f"  {item.verdict:<13} {name:<34} {claim.access:<10} claimed {claim.correct / claims.count:6.1%}"
        )
        if item.found is not None:
            low, high = item.found.interval
            text += f", found {item.found.accuracy:6.1%} ({low:.1%} to {high:.1%})"
        lines.append(f"{text}: {item.reason}" if item.reason else text)
    for name, (claimed, now) in found.differing.items():
        lines.append(f"  {name} was {claimed} then and is {now} now")
    if found.device != claims.device:
        lines.append(f"  gradients were computed on {claims.device} then and on {found.device} now")
    return "\n".join(lines)
