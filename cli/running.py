"""Commands that run stages: prune, pretrain, finetune, run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustcompress.cli.options import (
    AllowImportOption,
    Choices,
    ConstraintOption,
    DataDirOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    EpsOption,
    EvalEpsOption,
    IgnoreOption,
    JsonOption,
    ModelOption,
    NormOption,
    ObjectiveOption,
    OutOption,
    PatternOption,
    PrecisionOption,
    RecipeOption,
    ResumeOption,
    ScoreOption,
    SeedOption,
    SetOption,
    SparsityOption,
    StagesOption,
    TensorboardOption,
    WeightsOption,
    free_folder,
)

if TYPE_CHECKING:
    from robustcompress import Recipe, Result


def prune(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    objective: ObjectiveOption = None,
    eps: EpsOption = None,
    norm: NormOption = None,
    eval_eps: EvalEpsOption = None,
    sparsity: SparsityOption = None,
    constraint: ConstraintOption = None,
    pattern: PatternOption = None,
    score: ScoreOption = None,
    ignore: IgnoreOption = None,
    settings: SetOption = None,
    out: OutOption = None,
    stages: StagesOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    allow_import: AllowImportOption = False,
    tensorboard: TensorboardOption = False,
) -> None:
    """Compress a network: pretrain, prune, finetune, compact, export, evaluate.

    Without options it runs the embedded example: a small CNN on bundled Fashion-MNIST images, pruned to 90%
    under TRADES at Linf eps 0.1, in a few minutes on a laptop.

    Examples:
      robustcompress prune

      robustcompress prune --sparsity 0.95 --pattern channel --out runs/thin

      robustcompress prune --pattern channel --constraint macs=25% --constraint bytes=300kB

      robustcompress prune --model resnet18 --data cifar10 --data-dir D --eps 8/255 --out runs/a

      robustcompress prune --model mynet.models:make --allow-import --weights f.safetensors
      --data image-folder --data-dir D --eps 4/255 --out runs/b
      --stages prune,finetune,compact,export,evaluate
    """
    choices = Choices(
        recipe=recipe,
        model=model,
        weights=weights,
        data=data,
        data_dir=data_dir,
        objective=objective,
        eps=eps,
        norm=norm,
        eval_eps=eval_eps,
        sparsity=sparsity,
        constraints=constraint,
        pattern=pattern,
        score=score,
        ignore=ignore,
        settings=settings,
        stages=stages,
        device=device,
        seed=seed,
        precision=precision,
    )
    execute(
        choices.to_recipe(),
        out=out,
        resume=resume,
        dry_run=dry_run,
        as_json=as_json,
        allow_import=allow_import,
        tensorboard=tensorboard,
    )


def pretrain(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    objective: ObjectiveOption = None,
    eps: EpsOption = None,
    norm: NormOption = None,
    settings: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    allow_import: AllowImportOption = False,
    tensorboard: TensorboardOption = False,
) -> None:
    """Train a dense network under the robust objective, and stop there.

    The run's folder can be gone on with: robustcompress run OUT/recipe.yaml --out OUT --resume

    Example:
      robustcompress pretrain --model resnet18 --data cifar10 --data-dir D --eps 8/255 --out runs/dense
    """
    choices = Choices(
        recipe=recipe,
        model=model,
        weights=weights,
        data=data,
        data_dir=data_dir,
        objective=objective,
        eps=eps,
        norm=norm,
        settings=settings,
        device=device,
        seed=seed,
        precision=precision,
    )
    execute(
        choices.to_recipe(),
        stages=["pretrain"],
        out=out,
        resume=resume,
        dry_run=dry_run,
        as_json=as_json,
        allow_import=allow_import,
        tensorboard=tensorboard,
    )


def finetune(
    weights: Annotated[
        Path, typer.Option(help="Artifact folder of a pruned network: its masks stay as they are.")
    ],
    recipe: RecipeOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    objective: ObjectiveOption = None,
    eps: EpsOption = None,
    norm: NormOption = None,
    eval_eps: EvalEpsOption = None,
    pattern: PatternOption = None,
    settings: SetOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    allow_import: AllowImportOption = False,
    tensorboard: TensorboardOption = False,
) -> None:
    """Train the weights that a mask kept, then compact, export and evaluate.

    Example:
      robustcompress finetune --weights runs/a/stages/prune --set finetune.epochs=10 --out runs/longer
    """
    choices = Choices(
        recipe=recipe,
        model=model,
        weights=weights,
        data=data,
        data_dir=data_dir,
        objective=objective,
        eps=eps,
        norm=norm,
        eval_eps=eval_eps,
        pattern=pattern,
        settings=settings,
        device=device,
        seed=seed,
        precision=precision,
    )
    execute(
        choices.to_recipe(),
        stages=["finetune", "compact", "export", "evaluate"],
        out=out,
        resume=resume,
        dry_run=dry_run,
        as_json=as_json,
        allow_import=allow_import,
        tensorboard=tensorboard,
    )


def run_recipe(
    recipe: Annotated[Path, typer.Argument(help="The YAML file; every run writes its own as recipe.yaml.")],
    settings: SetOption = None,
    out: OutOption = None,
    stages: StagesOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    seed: SeedOption = None,
    precision: PrecisionOption = None,
    allow_import: AllowImportOption = False,
    tensorboard: TensorboardOption = False,
) -> None:
    """Run a recipe.

    Examples:
      robustcompress recipes default > mine.yaml

      robustcompress run mine.yaml --out runs/mine

      robustcompress run runs/mine/recipe.yaml --out runs/mine --resume
    """
    choices = Choices(
        recipe=str(recipe), settings=settings, stages=stages, device=device, seed=seed, precision=precision
    )
    execute(
        choices.to_recipe(),
        out=out,
        resume=resume,
        dry_run=dry_run,
        as_json=as_json,
        allow_import=allow_import,
        tensorboard=tensorboard,
    )


def execute(
    recipe: "Recipe",
    *,
    stages: Sequence[str] | None = None,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    allow_import: bool,
    tensorboard: bool,
) -> None:
    """Run ``recipe`` and print what came out."""
    import robustcompress
    from robustcompress.events import Sink
    from robustcompress.recipe import Recipe

    if stages is not None:
        recipe = Recipe.from_values({**recipe.model_dump(mode="json"), "stages": list(stages)})
    folder = out or free_folder(recipe.name)
    if dry_run:
        show_plan(recipe, folder, as_json=as_json, allow_import=allow_import)
        return
    sinks: list[Sink] = []
    if tensorboard:
        sinks.append(robustcompress.TensorboardSink(folder / "tensorboard"))
    compressor = robustcompress.Compressor(
        recipe=recipe, run_dir=folder, resume=resume, allow_import=allow_import, sinks=sinks
    )
    result = compressor.compress()
    if compressor.workers.is_main:
        show_result(result, as_json=as_json)


def show_plan(recipe: "Recipe", folder: Path, *, as_json: bool, allow_import: bool) -> None:
    """Print what a run would do; nothing is written."""
    import tempfile

    import robustcompress

    with tempfile.TemporaryDirectory() as nowhere:
        planned = robustcompress.Compressor(
            recipe=recipe, run_dir=Path(nowhere) / "plan", allow_import=allow_import, progress=False
        )
        inspection = planned.inspect()
    if not planned.workers.is_main:
        return
    if as_json:
        plan: dict[str, Any] = {
            "out": str(folder),
            "recipe": planned.recipe.model_dump(mode="json"),
            "inspection": inspection.as_dict(),
        }
        typer.echo(json.dumps(plan))
        return
    typer.echo(str(inspection))
    typer.echo(planned.recipe.to_yaml())
    typer.echo(f"would run {', '.join(recipe.stages)} into {folder}")


def show_result(result: "Result", *, as_json: bool) -> None:
    """Print a finished run: the report's table, or everything as JSON."""
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    if result.report is not None:
        import robustcompress

        robustcompress.print_report(result.report)
    typer.echo(f"artifact  {result.artifact}")
    for file in result.files:
        typer.echo(f"exported  {file.path}  {file.size_bytes:,} bytes (dense {file.dense_size_bytes:,})")
    if result.report is not None:
        typer.echo(f"report    {result.run_dir / 'report' / 'report.html'}")
