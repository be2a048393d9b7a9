"""The command that labels images by a network: pseudo-label."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustcompress.cli.options import AllowImportOption, DeviceOption, JsonOption


def pseudo_label(
    images: Annotated[
        Path, typer.Argument(help="A folder of PNG and JPEG files, or an .npy file of images.")
    ],
    artifact: Annotated[Path, typer.Option(help="Folder of the artifact whose network labels.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz file; never overwritten.")],
    image_size: Annotated[
        int | None, typer.Option(help="Scale the shorter side to this and cut out the middle square.")
    ] = None,
    channels: Annotated[int, typer.Option(help="Of a folder's images: 1 or 3.", min=1, max=3)] = 3,
    min_confidence: Annotated[
        float, typer.Option(help="Leave out images whose label has a smaller softmax, 0 to 1.")
    ] = 0.0,
    skip_corrupt: Annotated[
        bool, typer.Option("--skip-corrupt", help="Leave out files that cannot be decoded, and name them.")
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    allow_import: AllowImportOption = False,
) -> None:
    """Label images by a network, for extra_data of a recipe.

    Examples:
      robustcompress pseudo-label images --artifact runs/a/artifact --image-size 32 --out extra.npz

      robustcompress prune --data cifar10 --eps 8/255 --set "extra_data={path: extra.npz, share: 0.5}"
    """
    import robustcompress
    from robustcompress.sinks.console import ConsoleSink

    with ConsoleSink() as console:
        found = robustcompress.pseudo_label(
            images,
            robustcompress.load(artifact, allow_import=allow_import),
            out,
            channels=channels,
            image_size=image_size,
            min_confidence=min_confidence,
            skip_corrupt=skip_corrupt,
            device=device or "auto",
            sinks=[console],
        )
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    typer.echo(
        f"{found.path}  {sum(found.per_class):,} images, by class {', '.join(map(str, found.per_class))}"
    )
    if found.unsure:
        typer.echo(f"left out {found.unsure:,} images of smaller confidence than {min_confidence}")
    for path in found.corrupt:
        typer.echo(f"left out {path}, which is corrupt")
