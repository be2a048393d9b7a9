"""Commands that bring other people's weights in and plain ones out: import, state-dict."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from robustcompress.cli.options import AllowImportOption, JsonOption
from robustcompress.errors import ConfigError


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A file of torch.save, or a .safetensors file.")],
    network: Annotated[
        str, typer.Option(help="A network of the zoo, or package.module:factory (with --allow-import).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the artifact; it is made.")],
    k: Annotated[
        float | None,
        typer.Option("--k", help="For HYDRA's: the fraction of weights kept, 0.01 for 99% sparsity."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the network: num_classes=100; may be repeated."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Entry of the checkpoint that holds the tensors. [default: the usual]")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Leave out tensors that match this glob; may be repeated.")
    ] = None,
    keep_removed: Annotated[
        bool,
        typer.Option(
            "--keep-removed",
            help="Keep the values of weights that the masks remove, as the stage prune does; the network is "
            "then dense until a run applies the masks.",
        ),
    ] = False,
    as_json: JsonOption = False,
    allow_import: AllowImportOption = False,
) -> None:
    """Make an artifact of somebody else's checkpoint: HYDRA's, with its masks, or a dense state_dict.

    No code of the file runs: pickles may hold tensors, plain data and NumPy scalars. The artifact is then
    evaluated, or a run begins with it: --weights OUT.

    Examples:
      robustcompress import checkpoint.pth.tar --network wide_resnet_28_4 --k 0.01 --out imported

      robustcompress import resnet50.safetensors --network resnet50 --out dense

      robustcompress import net.pt --network mynet.models:make --allow-import --out dense

      robustcompress evaluate imported --data cifar10 --eps 8/255
    """
    import robustcompress

    found = robustcompress.import_checkpoint(
        checkpoint,
        out,
        network=_network(network, settings or []),
        k=k,
        key=key,
        drop=drop or (),
        keep_removed=keep_removed,
        allow_import=allow_import,
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    typer.echo(f"{found.folder}  {found.tensors} tensors, by the names of {found.naming}")
    if found.masked:
        typer.echo(f"masks of {len(found.masked)} layers remove {found.sparsity:.4%} of their weights")
    if found.without_scores:
        typer.echo(f"dense, for want of scores (name them in ignore): {', '.join(found.without_scores)}")
    if found.dropped:
        typer.echo(f"left out {len(found.dropped)} tensors: {', '.join(found.dropped[:3])} ...")


def state_dict(
    artifact: Annotated[
        Path, typer.Argument(help="Folder of an artifact: RUN/artifact, or an imported one.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file: .pt, .pth or .safetensors.")],
    names: Annotated[
        str, typer.Option(help="Whose names: own, and for networks of the zoo hydra or torchvision.")
    ] = "own",
    as_json: JsonOption = False,
    allow_import: AllowImportOption = False,
) -> None:
    """Write an artifact's network as one plain dense state_dict, and check that it reads back bit for bit.

    Examples:
      robustcompress state-dict runs/a/artifact --out net.pt

      robustcompress state-dict runs/a/stages/finetune --names torchvision --out net.safetensors
    """
    import robustcompress

    found = robustcompress.write_state_dict(artifact, out, names=names, allow_import=allow_import)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    typer.echo(f"{found.path}  {found.size_bytes:,} bytes, {found.tensors} tensors, names: {found.naming}")


def _network(name: str, settings: list[str]) -> dict[str, object]:
    """Return what ``import_checkpoint`` takes for a network and its settings.

    Raises:
        ConfigError: If a setting is not ``name=value``.
    """
    import yaml

    values: dict[str, Any] = {}
    for setting in settings:
        field, found, text = setting.partition("=")
        if not found:
            raise ConfigError(f"--set takes name=value; got {setting!r}.")
        values[field.strip()] = yaml.safe_load(text)
    if ":" in name:
        return {"factory": name, "arguments": values}
    return {"kind": name, **values}
