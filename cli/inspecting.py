"""Commands that only look: inspect, recipes."""

import json
from typing import Annotated

import typer

from robustcompress.cli.options import (
    AllowImportOption,
    Choices,
    ConstraintOption,
    DataDirOption,
    DataOption,
    EpsOption,
    IgnoreOption,
    JsonOption,
    ModelOption,
    PatternOption,
    RecipeOption,
    SetOption,
    SparsityOption,
)


def inspect(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    eps: EpsOption = None,
    sparsity: SparsityOption = None,
    pattern: PatternOption = None,
    constraint: ConstraintOption = None,
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="List every layer of every group, and every frozen layer.")
    ] = False,
    second_opinion: Annotated[
        bool, typer.Option("--second-opinion", help="Note where torch-pruning would couple other channels.")
    ] = False,
    as_json: JsonOption = False,
    allow_import: AllowImportOption = False,
) -> None:
    """Show what would be removed, what would stay and why, and what weights, MACs and bytes are left.

    Groups are named by their first layer; +2 says that two more layers lose the same channels.

    Examples:
      robustcompress inspect --model resnet18 --data fashion-mnist-mini --pattern channel --sparsity 0.5

      robustcompress inspect --model mynet.models:make --allow-import --data image-folder --data-dir D
      --pattern channel --groups
    """
    import shutil
    import tempfile
    from pathlib import Path

    import robustcompress

    choices = Choices(
        recipe=recipe,
        model=model,
        data=data,
        data_dir=data_dir,
        # The radius changes nothing here; a recipe merely needs one.
        eps=eps or ("0.1" if recipe is None else None),
        sparsity=sparsity,
        pattern=pattern,
        constraints=constraint,
        ignore=ignore,
        settings=settings,
    )
    with tempfile.TemporaryDirectory() as nowhere:
        found = robustcompress.Compressor(
            recipe=choices.to_recipe(),
            run_dir=Path(nowhere) / "plan",
            allow_import=allow_import,
            progress=False,
        ).inspect(second_opinion=second_opinion)
    width = shutil.get_terminal_size((110, 24)).columns
    typer.echo(json.dumps(found.as_dict()) if as_json else found.text(width=width, groups=groups), nl=as_json)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one as YAML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes that come with the library, or print one.

    Example:
      robustcompress recipes default > mine.yaml
    """
    from robustcompress.recipe import Recipe, preset_names

    if name is not None:
        recipe = Recipe.preset(name)
        typer.echo(json.dumps(recipe.model_dump(mode="json")) if as_json else recipe.to_yaml().rstrip())
        return
    names = preset_names()
    typer.echo(json.dumps(names) if as_json else "\n".join(names))
