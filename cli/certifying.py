"""The command that proves: certify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustcompress.cli.options import DATA_SETS, AllowImportOption, DeviceOption, JsonOption
from robustcompress.errors import ConfigError

if TYPE_CHECKING:
    from robustcompress import Certification

_OF_SMOOTHING = ("sigma", "n", "n0", "alpha", "radius")
_OF_BOUNDS = ("eps", "slack", "dtype", "memory_mib")


def certify(
    target: Annotated[Path, typer.Argument(help="An artifact's folder, or an exported .onnx file.")],
    data: Annotated[str, typer.Option(help=f"{DATA_SETS}.")],
    certifier: Annotated[
        str | None,
        typer.Option(
            help="smoothing, or by bounds: interval, crown-ibp, crown or best. "
            "[default: best with --eps, smoothing with --sigma]"
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="By bounds: a radius to prove (Linf), on the scale 0 to 1: 0.1 or 8/255; may be repeated."
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Smoothing: standard deviation of the noise, pixel scale 0 to 1: that of training."
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="Smoothing: draws that bound the class's probability. [default: 100000]"),
    ] = None,
    n0: Annotated[
        int | None, typer.Option("--n0", help="Smoothing: draws that guess the class. [default: 100]")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Smoothing: probability, for each image, that its certificate is wrong. [default: 0.001]"
        ),
    ] = None,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            help="Smoothing: count images certified as far as this (L2); may be repeated. "
            "[default: some sigmas]"
        ),
    ] = None,
    slack: Annotated[
        float | None,
        typer.Option(
            help="By bounds: how far above zero a margin must lie, in units of the largest logit, for the "
            "network's own rounding. [default: 0.0001]"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="By bounds: float64, or float32, faster and rounded. [default: float64]"),
    ] = None,
    memory_mib: Annotated[
        int | None,
        typer.Option(help="By bounds: memory that they may take besides the weights. [default: 1024]"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Noisy images computed at once, or images searched together. [default: 512, by bounds 64]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Certify only so many test images.")] = None,
    share: Annotated[
        str | None, typer.Option(help="i/n: only the i-th of every n images, from 0/n to (n-1)/n.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Keep each certificate in this file, and go on with what it holds."),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(help="Take what this file of certificates holds, too, as of a share; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    allow_import: AllowImportOption = False,
) -> None:
    """Certify a network or an exported file: radii that hold for every attack.

    With --eps by bounds on the network's operations, those of an .onnx file being read from the file. With
    --sigma by randomized smoothing, which needs logits alone.

    Examples:
      robustcompress certify runs/a/artifact --data fashion-mnist-mini --eps 0.05 --eps 0.1

      robustcompress certify runs/a/export/model.onnx --data fashion-mnist --eps 0.1 --share 0/2 --out a.jsonl

      robustcompress certify runs/a/export/model.onnx --data fashion-mnist --eps 0.1
        --merge a.jsonl --merge b.jsonl

      robustcompress certify runs/a/artifact --data fashion-mnist-mini --sigma 0.25 --n 1000 --limit 100
    """
    import robustcompress
    from robustcompress.sinks.console import ConsoleSink

    asked = {
        "eps": eps or None,
        "slack": slack,
        "dtype": dtype,
        "memory_mib": memory_mib,
        "sigma": sigma,
        "n": n,
        "n0": n0,
        "alpha": alpha,
        "radius": radius or None,
        "batch_size": batch_size,
    }
    settings = _settings(certifier, {name: value for name, value in asked.items() if value is not None})
    chosen_share = _share(share)
    if target.suffix != ".onnx" and not target.is_dir():
        raise ConfigError(f"expected an artifact's folder or an .onnx file; {target} is neither.")
    by_bounds = settings["kind"] != "smoothing"
    is_file = not target.is_dir()
    images: dict[str, object] = {"kind": data}
    if data_dir is not None:
        images["dir"] = data_dir
    with ConsoleSink() as console:
        found = robustcompress.certify_data_set(
            robustcompress.OnnxSession(target)
            if is_file
            else robustcompress.load(target, allow_import=allow_import),
            images,
            certifier=settings,
            radii=radius or None,
            structure=robustcompress.read_network(target) if is_file and by_bounds else None,
            subject=target.name,
            limit=limit,
            share=chosen_share,
            seed=seed,
            device=device or "auto",
            keep=out,
            merge=merge or (),
            fingerprint=_sha256(target if is_file else target / "model.safetensors"),
            sinks=[console],
        )
    typer.echo(found.model_dump_json() if as_json else _table(found))


def _settings(kind: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the certifier's settings.

    Raises:
        ConfigError: If no certifier can be told from the options, or some are not the certifier's.
    """
    if kind is None:
        if ("sigma" in asked) == ("eps" in asked):
            got = "both" if "sigma" in asked else "neither"
            raise ConfigError(
                f"expected --eps (proofs by bounds, Linf) or --sigma (randomized smoothing, L2); got {got}."
            )
        kind = "smoothing" if "sigma" in asked else "best"
    kind = kind.replace("-", "_")
    foreign = [name for name in (_OF_BOUNDS if kind == "smoothing" else _OF_SMOOTHING) if name in asked]
    if foreign:
        what = "certifiers by bounds" if kind == "smoothing" else "smoothing"
        options = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ConfigError(f"{options} is for {what}, not for {kind}. Leave it out, or change --certifier.")
    needed = "sigma" if kind == "smoothing" else "eps"
    if needed not in asked:
        raise ConfigError(f"--certifier {kind} needs --{needed}.")
    settings = {name: value for name, value in asked.items() if name not in ("eps", "radius")}
    if kind != "smoothing":
        settings["radii"] = _ascending(asked["eps"])
    return {"kind": kind, **settings}


def _ascending(radii: list[str]) -> list[str]:
    """Return radii in the order that certifiers ask for, each once; what is no number last, to be refused."""
    from fractions import Fraction

    def value(text: str) -> float:
        try:
            return float(Fraction(text.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return float("inf")

    return list({value(text): text for text in sorted(radii, key=value)}.values())


def _share(text: str | None) -> tuple[int, int]:
    part, slash, of = (text or "0/1").partition("/")
    if not (slash and part.isdecimal() and of.isdecimal() and int(part) < int(of)):
        raise ConfigError(f"--share takes i/n with i from 0 to n - 1, such as 0/4; got {text!r}.")
    return int(part), int(of)


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(found: "Certification") -> str:
    part, of = found.share
    images = f"{len(found.certificates)} images of {found.data}"
    if of > 1:
        images += f", share {part}/{of}"
    lines = [f"{found.subject}  {_how(found)}; {images}, {found.abstained} abstained"]
    if found.clean is not None:
        wrong = sum(item.predicted not in (None, item.label) for item in found.certificates)
        lines.append(f"{found.clean} right clean, {wrong} proven to be wrong at the least radius")
    norm = "Linf" if found.norm == "linf" else "L2"
    lines.append(f"{f'radius ({norm})':>13}  certified accuracy (95% interval)")
    for item in found.accuracies:
        low, high = item.interval
        lines.append(f"{item.radius:>13.4g}  {item.accuracy:.1%} ({low:.1%} to {high:.1%})")
    return "\n".join(lines)


def _how(found: "Certification") -> str:
    chosen = found.certifier
    if chosen["kind"] == "smoothing":
        return f"smoothed with sigma {chosen['sigma']:g}, n {chosen['n']}, alpha {chosen['alpha']:g}"
    return f"{chosen['kind']} bounds in {chosen['dtype']}, slack {chosen['slack']:g}"
