"""Options that several commands share, and how they change a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from robustcompress.errors import ConfigError

if TYPE_CHECKING:
    from robustcompress import Recipe

DATA_SETS = (
    "fashion-mnist-mini, fashion-mnist, mnist, cifar10, cifar100, svhn, imagenet, image-folder or numpy-files"
)
"""What ``--data`` takes."""

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", "-r", help="A YAML file, or the name of a recipe (see: robustcompress recipes)."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option(help="A network of the zoo, or package.module:factory (with --allow-import).")
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Begin with these weights: a .safetensors file or an artifact folder.")
]
DataOption = Annotated[str | None, typer.Option(help=f"{DATA_SETS}.")]
DataDirOption = Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(
        help="natural, pgd, trades, smoothing, for proofs ibp, crown-ibp, mixtrain, sabr or mtl-ibp, or to "
        "learn from a dense network ard or rslad."
    ),
]
EpsOption = Annotated[
    str | None, typer.Option(help="How far pixels may be moved, on the scale 0 to 1: 0.1 or 8/255.")
]
NormOption = Annotated[str | None, typer.Option(help="linf or l2.")]
EvalEpsOption = Annotated[str | None, typer.Option(help="Like --eps, for the final evaluation only.")]
SparsityOption = Annotated[
    float | None, typer.Option(help="Fraction removed, 0 to 1: of the weights, or of each group's channels.")
]
ConstraintOption = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        help="What the result may cost at most, in place of --sparsity: macs=25%, weights=10%, bytes=300kB "
        "or latency_ms=2; may be repeated.",
    ),
]
PatternOption = Annotated[str | None, typer.Option(help="unstructured, channel, n_m or block.")]
ScoreOption = Annotated[
    str | None, typer.Option(help="learned (HYDRA), magnitude (LWM), snip, taylor or flying_bird.")
]
IgnoreOption = Annotated[
    list[str] | None, typer.Option(help="Leave layers that match this glob dense; may be repeated.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change any setting of the recipe: finetune.epochs=5; may be repeated."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the run; it is made. [default: runs/NAME]")
]
StagesOption = Annotated[
    str | None,
    typer.Option(help="Only these, by comma: pretrain,prune,finetune,compact,export,evaluate."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on stdout; everything else goes to stderr.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SeedOption = Annotated[int | None, typer.Option(help="Of every random number.")]
PrecisionOption = Annotated[str | None, typer.Option(help="fp32, tf32 or bf16, in training.")]
AllowImportOption = Annotated[
    bool, typer.Option("--allow-import", help="Let the recipe run the code of the factory that it names.")
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard files into the run's folder too.")
]


@dataclass(frozen=True)
class Choices:
    """What was said on the command line; ``None`` where nothing was."""

    recipe: str | None = None
    model: str | None = None
    weights: Path | None = None
    data: str | None = None
    data_dir: Path | None = None
    objective: str | None = None
    eps: str | None = None
    norm: str | None = None
    eval_eps: str | None = None
    sparsity: float | None = None
    constraints: list[str] | None = None
    pattern: str | None = None
    score: str | None = None
    ignore: list[str] | None = None
    settings: list[str] | None = None
    stages: str | None = None
    device: str | None = None
    seed: int | None = None
    precision: str | None = None

    def to_recipe(self) -> "Recipe":
        """Return the recipe named (or the embedded default), with these choices in place of its own.

        Raises:
            ConfigError: If a choice is unknown or out of range.
        """
        from robustcompress.recipe import Recipe, with_changes

        values = self._base()
        if self.data_dir is not None and self.data is None:
            known = values.get("data")
            if isinstance(known, dict):
                values = with_changes(values, {"data.dir": str(self.data_dir)})
        changed = with_changes(values, self._changes())
        return Recipe.from_values(self._fit_sparsity(changed), where="settings")

    def _fit_sparsity(self, values: dict[str, Any]) -> dict[str, Any]:
        """Let a pattern that was chosen here, and says its own sparsity, replace the recipe's."""
        from robustcompress import patterns

        said = self.sparsity is not None or any(item.startswith("sparsity") for item in self.settings or [])
        if self.pattern is None or said:
            return values
        try:
            fixed = patterns.Pattern.find(values["pattern"]).fixed_sparsity
        except ValueError:
            return values  # the recipe says what is wrong, with the field's path
        return values if fixed is None else {**values, "sparsity": fixed}

    def _base(self) -> dict[str, Any]:
        from robustcompress.recipe import Recipe

        if self.recipe is not None:
            path = Path(self.recipe)
            named = path.suffix in (".yaml", ".yml") or path.exists()
            return (Recipe.read(path) if named else Recipe.preset(self.recipe)).model_dump(mode="json")
        if self.model is None and self.data is None:
            return Recipe.preset("default").model_dump(mode="json")
        if self.eps is None:
            raise ConfigError("--eps is needed along with --model or --data: how far may pixels be moved?")
        return Recipe.from_values({"threat": {"eps": self.eps}}, where="--eps").model_dump(mode="json")

    def _changes(self) -> dict[str, Any]:
        changes: dict[str, Any] = {
            "model": self.model,
            "weights": None if self.weights is None else str(self.weights),
            "objective": self.objective,
            "threat.eps": self.eps,
            "threat.norm": self.norm,
            "sparsity": self.sparsity,
            "pattern": self.pattern,
            "score": self.score,
            "ignore": self.ignore,
            "stages": None if self.stages is None else [name.strip() for name in self.stages.split(",")],
            "device": self.device,
            "seed": self.seed,
            "precision": self.precision,
        }
        if self.data is not None:
            changes["data"] = {"kind": self.data}
            if self.data_dir is not None:
                changes["data"]["dir"] = str(self.data_dir)
        changes = {name: value for name, value in changes.items() if value is not None}
        if self.eval_eps is not None:
            changes["evaluation.threat"] = {"norm": self.norm or "linf", "eps": self.eval_eps}
        for constraint in self.constraints or []:
            name, found, text = constraint.partition("=")
            if not found:
                raise ConfigError(f"--constraint takes name=value, such as macs=25%; got {constraint!r}.")
            changes[f"constraints.{name.strip()}"] = yaml.safe_load(text)
        for setting in self.settings or []:
            name, found, text = setting.partition("=")
            if not found:
                raise ConfigError(f"--set takes name=value; got {setting!r}.")
            changes[name.strip()] = yaml.safe_load(text)
        return changes


def free_folder(name: str) -> Path:
    """Return ``runs/NAME``, or the first of ``runs/NAME-2``, ``-3``, ... that does not exist."""
    base = Path("runs") / (name or "robustcompress")
    number, folder = 1, base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder
