"""Commands that only look: inspect, recipes."""

import json
from typing import Annotated

import typer

from robustcompress.cli.options import (
    AllowImportOption,
    Choices,
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
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    allow_import: AllowImportOption = False,
) -> None:
    """Show what would be pruned, what would stay dense and why, parameters and multiply-adds.

    Example:
      robustcompress inspect --model resnet18 --data fashion-mnist-mini --pattern channel --sparsity 0.5
    """
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
        ignore=ignore,
        settings=settings,
    )
    with tempfile.TemporaryDirectory() as nowhere:
        found = robustcompress.Compressor(
            recipe=choices.to_recipe(),
            run_dir=Path(nowhere) / "plan",
            allow_import=allow_import,
            progress=False,
        ).inspect()
    typer.echo(json.dumps(found.as_dict()) if as_json else str(found))


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
