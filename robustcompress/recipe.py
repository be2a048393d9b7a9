"""A recipe: every setting of one run, typed, as YAML in and out."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from torch import nn

from robustcompress.errors import ConfigError
from robustcompress.export.formats import Format
from robustcompress.families import suggestion
from robustcompress.fractions import Number
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.constraints import Constraints
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import MovingScore, Score
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.certifiers import Certifier
from robustcompress.robustness.threat import Threat
from robustcompress.training.augmentation import Augmentation
from robustcompress.training.averaging import Averaging
from robustcompress.training.extra import ExtraData
from robustcompress.training.objectives import Objective
from robustcompress.training.settings import StageSettings, StepSettings, ValidationSettings
from robustcompress.training.step import Precision
from robustcompress.training.weight_perturbation import WeightPerturbation
from robustcompress.zoo.datasets import DataSet
from robustcompress.zoo.networks import Network

StageName: TypeAlias = Literal["pretrain", "prune", "finetune", "compact", "export", "evaluate"]

STAGES: tuple[StageName, ...] = ("pretrain", "prune", "finetune", "compact", "export", "evaluate")
"""Every stage, in order."""


class Factory(BaseModel):
    """A function that returns a network: ``package.module:function`` and its keyword arguments.

    Attributes:
        factory: Imported only where the caller allows it.
        arguments: Plain values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    factory: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    arguments: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> nn.Module:
        """Import the function and call it.

        Raises:
            ConfigError: If it cannot be imported, fails, or returns no ``nn.Module``.
        """
        module, _, name = self.factory.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"model {self.factory!r} cannot be imported: {error}.") from error
        try:
            network = function(**self.arguments)
        except TypeError as error:
            raise ConfigError(f"model {self.factory!r} cannot be called: {error}.") from error
        if not isinstance(network, nn.Module):
            got = type(network).__name__
            raise ConfigError(f"model {self.factory!r} must return a torch.nn.Module; got {got}.")
        return network


def _find_model(value: object) -> object:
    """Read ``package.module:function``, a factory's mapping, or whatever names a network of the zoo."""
    if value is None or isinstance(value, Factory):
        return value
    if isinstance(value, str) and ":" in value:
        return Factory(factory=value)
    if isinstance(value, dict) and "factory" in value:
        return Factory.model_validate(value)
    return Network.find(value)


def _network_or_factory(value: object) -> object:
    if value is not None and not isinstance(value, Network | Factory):
        raise ValueError(f"expected a network or a factory; got {value!r}")
    return value


class EvaluationSettings(BaseModel):
    """How the network and its exports are attacked at the end.

    Attributes:
        threat: In place of the training threat.
        attacks: Each is run on every image; their pointwise worst case is reported too.
        limit: Judge at most so many test images; ``None`` for all.
        certifiers: Prove radii of the network and of every ONNX file. Bounds name theirs, such as
            ``{kind: best, radii: [8/255]}``.
        certify_limit: Certify at most so many test images; ``None`` for all that are judged.
        curve: Radii, as multiples of the threat's, at which the first attack is repeated for the picture
            of robust accuracy against eps; empty for none.
        curve_limit: Images for that picture.
        alarms: Look for signs that the robust accuracy is not to be believed.
        alarm_limit: Images looked at for that.
        examples: Adversarial images to show in the report.
        batch_size: Images judged at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    threat: Threat | None = None
    attacks: tuple[Annotated[SerializeAsAny[Attack], BeforeValidator(Attack.find)], ...] = Field(
        default_factory=lambda: (Attack.find("pgd"), Attack.find("apgd"))
    )
    limit: int | None = Field(default=None, ge=1)
    certifiers: tuple[Annotated[SerializeAsAny[Certifier], BeforeValidator(Certifier.find)], ...] = ()
    certify_limit: int | None = Field(default=None, ge=1)
    curve: tuple[Number, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    curve_limit: int = Field(default=500, ge=1)
    alarms: bool = True
    alarm_limit: int = Field(default=200, ge=1)
    examples: int = Field(default=8, ge=0)
    batch_size: int = Field(default=500, ge=1)


class Recipe(BaseModel):
    """Every setting of one run.

    Attributes:
        name: For people.
        model: A network of the zoo, or an importable factory; ``None`` where a module is passed in Python.
        weights: Safetensors file or artifact folder to begin with.
        teacher: Artifact folder of the network that objectives such as ``ard`` learn from; ``None`` takes the
            run's own dense network: what pretrain made, or the weights that the run began with.
        data: A data set of the zoo; ``None`` where data are passed in Python.
        augmentation: Of training images that the library holds in memory.
        extra_data: Pseudo-labelled images at a set share of each training batch; ``None`` for none.
        threat: What the adversary may do, in training and, unless ``evaluation.threat`` differs, at the end.
        objective: The robust training technique of all three training stages.
        awp: Adversarial weight perturbation in all three; ``None`` perturbs nothing.
        averaging: Average of the weights that each of them judges and keeps; ``None`` keeps the last ones.
        sparsity: Fraction of units to remove (weights, or channels of each group), 0 <= sparsity < 1; where
            the pattern itself says it, that.
        constraints: What the result may cost at most; where any is given, the smallest sparsity that meets
            them is searched and ``sparsity`` is not used.
        score: Where the importance of units comes from.
        pattern: What is removed at once.
        budget: How sparsity is spread over layers.
        ignore: Globs of layers that stay dense.
        pretrain: Of all weights.
        prune: Of the scores, while weights stand still; skipped by scores that do not learn.
        finetune: Of the weights that were kept.
        prune_norms: Whether normalisation layers' weight and bias learn in the prune stage, as in HYDRA.
        validation: How epochs are judged.
        export: Formats to write, each to a file of its own ``name``; one format may be written several times.
        evaluation: How the result is attacked.
        stages: Which to run, in their fixed order.
        seed: Of everything.
        device: ``auto`` takes a GPU if there is one.
        step: How a training step is computed: speed and memory.
        precision: ``fp32`` exact, ``tf32`` or ``bf16`` autocast in training.
        loader_workers: Processes that decode images of files and items of a Dataset; ``None`` takes a
            suitable number for image folders, a DataLoader's own, and none for any other Dataset.
        checkpoint_steps: Save the state within a stage after so many steps; ``None`` goes by time alone.
        checkpoint_seconds: Save the state within a stage at least that often.
        keep_checkpoints: How many states of a stage stay on the disk while it trains.
        worker_timeout: Seconds that a process of several waits for the others before it gives up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = ""
    model: Annotated[
        SerializeAsAny[Network] | Factory | None,
        BeforeValidator(_find_model),
        AfterValidator(_network_or_factory),
    ] = None
    weights: Path | None = None
    teacher: Path | None = None
    data: Annotated[SerializeAsAny[DataSet], BeforeValidator(DataSet.find)] | None = None
    augmentation: Augmentation = Augmentation()
    extra_data: ExtraData | None = None
    threat: Threat
    objective: Annotated[SerializeAsAny[Objective], BeforeValidator(Objective.find)] = Field(
        default="trades", validate_default=True
    )
    awp: WeightPerturbation | None = None
    averaging: Averaging | None = None
    sparsity: float = Field(default=0.9, ge=0, lt=1)
    constraints: Constraints = Constraints()
    score: Annotated[SerializeAsAny[Score], BeforeValidator(Score.find)] = Field(
        default="learned", validate_default=True
    )
    pattern: Annotated[SerializeAsAny[Pattern], BeforeValidator(Pattern.find)] = Field(
        default="unstructured", validate_default=True
    )
    budget: Annotated[SerializeAsAny[Budget], BeforeValidator(Budget.find)] = Field(
        default="uniform", validate_default=True
    )
    ignore: tuple[str, ...] = ()
    pretrain: StageSettings = StageSettings(epochs=100, lr=0.1)
    prune: StageSettings = StageSettings(epochs=20, lr=0.1)
    finetune: StageSettings = StageSettings(epochs=100, lr=0.01)
    prune_norms: bool = True
    validation: ValidationSettings = Field(default_factory=ValidationSettings)
    export: tuple[Annotated[SerializeAsAny[Format], BeforeValidator(Format.find)], ...] = Field(
        default=("onnx",), validate_default=True
    )
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    stages: tuple[StageName, ...] = STAGES
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    step: StepSettings = StepSettings()
    precision: Precision = "fp32"
    loader_workers: int | None = Field(default=None, ge=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    checkpoint_seconds: float = Field(default=300, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    worker_timeout: float = Field(default=1800, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _complete_stages(cls, values: object) -> object:
        """Let a stage be given in part: epochs and learning rate that are not said are HYDRA's."""
        if not isinstance(values, dict):
            return values
        completed: dict[object, object] = dict(cast("dict[object, object]", values))
        for stage in ("pretrain", "prune", "finetune"):
            given, usual = completed.get(stage), cls.model_fields[stage].default
            if isinstance(given, dict):
                completed[stage] = {"epochs": usual.epochs, "lr": usual.lr, **given}
        return completed

    @model_validator(mode="after")
    def _order_stages(self) -> Self:
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages name each stage once; got {list(self.stages)}")
        files = [format.file_name for format in self.export]
        if len({name.lower() for name in files}) != len(files):
            raise ValueError(f"each file of export needs its own name, such as 'name: small'; got {files}")
        return self

    @model_validator(mode="after")
    def _fit_quantise(self) -> Self:
        for stage in ("pretrain", "prune"):
            if self.settings_of(stage).quantise is not None:
                raise ValueError(
                    f"quantise belongs to finetune, whose weights are those of the file; got it in {stage}. "
                    "Set finetune.quantise"
                )
        return self

    @model_validator(mode="after")
    def _fit_pattern(self) -> Self:
        fixed = self.pattern.fixed_sparsity
        if fixed is None:
            return self
        if "sparsity" in self.model_fields_set and abs(self.sparsity - fixed) > 1e-9:
            raise ValueError(
                f"the pattern {self.pattern.kind!r} removes exactly {fixed:g} of every layer it fits; got "
                f"sparsity={self.sparsity:g}. Leave sparsity out, or choose another pattern"
            )
        object.__setattr__(self, "sparsity", fixed)  # settings are frozen for everybody else
        return self

    @model_validator(mode="after")
    def _fit_score(self) -> Self:
        score = self.score
        if not isinstance(score, MovingScore):
            return self
        if not self.pattern.units_are_weights:
            raise ValueError(
                f"the score {score.kind!r} moves masks between single weights; the pattern "
                f"{self.pattern.kind!r} has other units. Use 'unstructured' or 'n_m'"
            )
        if self.budget.learns:
            raise ValueError(
                f"the score {score.kind!r} keeps what each layer was given; the budget {self.budget.kind!r} "
                "learns that. Use 'erk' or 'uniform'"
            )
        if score.remembered and self.pattern.fixed_sparsity is not None:
            raise ValueError(
                f"plus changes how many weights stay, which the pattern {self.pattern.kind!r} fixes. Leave "
                "plus out"
            )
        if score.remembered and self.settings_of("prune").averaging is not None:
            raise ValueError(
                "plus compares training and validation accuracy of one network; averaging judges another "
                "than the one that trains. Leave plus or averaging out"
            )
        if score.remembered and self.prune.select not in ("robust", "clean"):
            raise ValueError(
                "plus follows the robust accuracy of every epoch, which prune.select "
                f"{self.prune.select!r} does not measure. Set prune.select to robust"
            )
        return self

    def objective_of(self, stage: str) -> Objective:
        """Return the objective of pretrain, prune or finetune."""
        return self.settings_of(stage).objective or self.objective

    def settings_of(self, stage: str) -> StageSettings:
        """Return the settings of pretrain, prune or finetune, with the recipe's where they say nothing."""
        own = {"pretrain": self.pretrain, "prune": self.prune, "finetune": self.finetune}[stage]
        usual = {"awp": own.awp or self.awp, "averaging": own.averaging or self.averaging}
        return own.model_copy(update=usual)

    @property
    def evaluation_threat(self) -> Threat:
        """The threat of the final evaluation."""
        return self.evaluation.threat or self.threat

    def to_yaml(self) -> str:
        """Return the recipe, every field written out, as YAML that :meth:`from_yaml` reads back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, *, where: str = "recipe") -> Self:
        """Read a recipe.

        Raises:
            ConfigError: If it is no YAML mapping or a field is wrong; names the field's path.
        """
        try:
            values: object = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: expected a mapping of settings; got {type(values).__name__}.")
        return cls.from_values(cast("dict[str, Any]", values), where=where)

    @classmethod
    def from_values(cls, values: dict[str, Any], *, where: str = "recipe") -> Self:
        """Read a recipe from plain data.

        Raises:
            ConfigError: If a field is wrong; names its path, what was expected and what came.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error, where)) from error

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return a recipe that comes with the library.

        Raises:
            ConfigError: If there is none of that name.
        """
        known = preset_names()
        if name not in known:
            raise ConfigError(f"unknown recipe {name!r}.{suggestion(name, known)} Known: {', '.join(known)}.")
        text = files("robustcompress.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        return cls.from_yaml(text, where=name)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a recipe from a YAML file.

        Raises:
            ConfigError: If the file cannot be read or a field is wrong.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {path} cannot be read: {error}") from error
        return cls.from_yaml(text, where=str(path))


def preset_names() -> list[str]:
    """Return the names of the recipes that come with the library."""
    folder = files("robustcompress.presets")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def with_changes(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with dotted paths replaced: ``{"finetune.epochs": 5}``.

    A member that is named by its kind alone takes settings too: ``model: resnet18`` and
    ``{"model.width": 8}`` give ``{"kind": "resnet18", "width": 8}``.
    """
    merged: dict[str, Any] = {**values}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        if not rest:
            merged[head] = value
            continue
        inner: object = merged.get(head)
        if isinstance(inner, str):
            inner = {"kind": inner}
        known = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
        merged[head] = with_changes(known, {rest: value})
    return merged


def _explain(error: ValidationError, where: str) -> str:
    lines: list[str] = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
        path = ".".join(place) or "(whole recipe)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"no such setting.{_near_field(place)}"
        elif problem["type"] != "value_error":
            message = f"{message}; got {problem['input']!r}"
        lines.append(f"{path}: {message}")
    return f"{where}: " + "\n".join(lines)


def _near_field(place: list[str]) -> str:
    """Suggest the field that an unknown one was meant to be."""
    model: type[BaseModel] = Recipe
    for part in place[:-1]:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        model = inner
    return suggestion(place[-1], list(model.model_fields))
