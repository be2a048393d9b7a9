"""The command that proves: certify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcompress.cli.options import AllowImportOption, DeviceOption, JsonOption
from robustcompress.errors import ConfigError

if TYPE_CHECKING:
    from robustcompress import Certification

_IN_SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def certify(
    target: Annotated[Path, typer.Argument(help="An artifact's folder, or an exported .onnx file.")],
    data: Annotated[str, typer.Option(help="fashion-mnist-mini, fashion-mnist, cifar10 or image-folder.")],
    sigma: Annotated[
        float, typer.Option(help="Standard deviation of the noise, pixel scale 0 to 1: that of training.")
    ],
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    n: Annotated[int, typer.Option("--n", help="Draws that bound the class's probability.")] = 100_000,
    n0: Annotated[int, typer.Option("--n0", help="Draws that guess the class.")] = 100,
    alpha: Annotated[
        float, typer.Option(help="Probability, for each image, that its certificate is wrong.")
    ] = 0.001,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            help="Count images certified as far as this (L2); may be repeated. [default: some sigmas]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Certify only so many test images.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Noisy images computed at once.")] = 512,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Keep each certificate in this file, and go on with what it holds."),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    allow_import: AllowImportOption = False,
) -> None:
    """Certify a network or an exported file by randomized smoothing: radii that hold for every attack.

    Examples:
      robustcompress certify runs/a/artifact --data fashion-mnist-mini --sigma 0.25 --n 1000 --limit 100

      robustcompress certify runs/a/export/model.onnx --data cifar10 --data-dir D --sigma 0.25 --out a.jsonl
    """
    import robustcompress
    from robustcompress.sinks.console import ConsoleSink

    if target.suffix != ".onnx" and not target.is_dir():
        raise ConfigError(f"expected an artifact's folder or an .onnx file; {target} is neither.")
    network = (
        robustcompress.load(target, allow_import=allow_import)
        if target.is_dir()
        else robustcompress.OnnxSession(target)
    )
    images: dict[str, object] = {"kind": data}
    if data_dir is not None:
        images["dir"] = data_dir
    settings = {"sigma": sigma, "n": n, "n0": n0, "alpha": alpha, "batch_size": batch_size}
    with ConsoleSink() as console:
        found = robustcompress.certify_data_set(
            network,
            images,
            certifier={"kind": "smoothing", **settings},
            radii=radius or [factor * sigma for factor in _IN_SIGMAS],
            subject=target.name,
            limit=limit,
            seed=seed,
            device=device or "auto",
            keep=out,
            fingerprint=_sha256(target / "model.safetensors" if target.is_dir() else target),
            sinks=[console],
        )
    typer.echo(found.model_dump_json() if as_json else _table(found))


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(found: "Certification") -> str:
    count = len(found.certificates)
    lines = [
        f"{found.subject}  smoothed with sigma {found.certifier['sigma']:g}, n {found.certifier['n']}, "
        f"alpha {found.certifier['alpha']:g}; {count} images of {found.data}, {found.abstained} abstained",
        f"{'radius (L2)':>11}  certified accuracy (95% interval)",
    ]
    for item in found.accuracies:
        low, high = item.interval
        lines.append(f"{item.radius:>11.4g}  {item.accuracy:.1%} ({low:.1%} to {high:.1%})")
    return "\n".join(lines)
