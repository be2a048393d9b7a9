"""Settings of one training stage."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from robustcompress.robustness.attacks import Attack
from robustcompress.training.averaging import Averaging
from robustcompress.training.objectives import Objective
from robustcompress.training.quantisation import QuantisationField
from robustcompress.training.weight_perturbation import WeightPerturbation


class StageSettings(BaseModel):
    """How one of pretrain, prune and finetune trains.

    Attributes:
        epochs: Passes over the training images; 0 skips the training.
        batch_size: Images a step, for data that the library batches itself.
        optimizer: ``sgd`` (with Nesterov off, as in the papers), ``adam`` or ``adamw``.
        lr: Largest learning rate.
        network_lr: In place of ``lr`` for the network's own parameters where scores learn beside them (in
            the prune stage: normalisation layers). Scores and weights live on different scales.
        momentum: Of SGD.
        weight_decay: On everything that learns.
        schedule: ``cosine`` to zero, ``step`` (times ``gamma`` at each of ``milestones``), ``one_cycle``
            (linear up over ``warmup_epochs``, linear down to zero), ``one_cycle_cosine`` (the same along half
            waves, from 1/25 of ``lr`` up over ``warmup_epochs`` and down to 1/250,000) or ``constant``; by
            the step, not by the epoch.
        warmup_epochs: Rise at the start, before the schedule proper; linear from zero, but for
            ``one_cycle_cosine``.
        milestones: Fractions of the stage at which ``step`` lowers the rate.
        gamma: Factor of ``step``.
        clip_gradient: Largest Euclidean length of the whole gradient; ``None`` leaves it alone.
        select: Which epoch's network goes on: best ``robust`` accuracy on validation images under the
            attack, best ``certified`` accuracy (by interval and CROWN-IBP bounds, in place of the attack),
            best ``clean`` accuracy, or the ``last``.
        objective: In place of the recipe's, for this stage.
        awp: Adversarial weight perturbation, in place of the recipe's; ``{gamma: 0}`` for none.
        averaging: Average of the weights that is judged and kept, in place of the recipe's; ``{decay: 0}``
            for none.
        quantise: Train on weights as a quantised file will round them, in finetune alone: ``int8``, ``int6``
            or ``int4`` for weights, ``onnx_int8`` for activations too. The rounded weights are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(ge=0)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(gt=0)
    network_lr: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "step", "one_cycle", "one_cycle_cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(default=0, ge=0)
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0, lt=1)
    clip_gradient: float | None = Field(default=None, gt=0)
    select: Literal["robust", "certified", "clean", "last"] = "robust"
    objective: Annotated[SerializeAsAny[Objective], BeforeValidator(Objective.find)] | None = None
    awp: WeightPerturbation | None = None
    averaging: Averaging | None = None
    quantise: QuantisationField | None = None

    def divided(self, steps_a_batch: int) -> Self:
        """Return these settings with ``epochs`` passes' worth of steps on so many passes fewer.

        Args:
            steps_a_batch: Optimizer steps on each minibatch. Epochs are divided by it and rounded up, and
                those of the warmup shrink in proportion.
        """
        if steps_a_batch == 1 or self.epochs == 0:
            return self
        epochs = -(-self.epochs // steps_a_batch)
        return self.model_copy(
            update={"epochs": epochs, "warmup_epochs": self.warmup_epochs * epochs / self.epochs}
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be below epochs={self.epochs}")
        if self.quantise and self.quantise.activations and self.select == "certified":
            raise ValueError(
                "quantise with activations has no bounds to select epochs by; set select to robust, or "
                "quantise weights alone (int8)"
            )
        if any(not 0 < point < 1 for point in self.milestones):
            raise ValueError(f"milestones are fractions of the stage in (0, 1); got {list(self.milestones)}")
        return self


class StepSettings(BaseModel):
    """How a training step is computed. What is computed stays the same but for rounding and ``bn_updates``.

    Attributes:
        bn_updates: ``once`` moves batch statistics once for every batch that the loss needs; ``hydra``
            repeats the forward passes of HYDRA's published code, so that they move as often as there.
        fold_norms: Fold batch normalisation into the layer before it in the attack's copy of the network,
            wherever that is exact. Changes rounding.
        attack_precision: ``bf16`` runs the attack alone in bfloat16. Changes rounding.
        memory_format: Layout of images and convolutions' weights in training. Changes rounding.
        compile: Run the attack's and the learner's passes through ``torch.compile``, with CUDA graphs for the
            attack on a GPU. Where that fails a warning says why and the step goes on without. Changes
            rounding.
        micro_batches: Parts that each batch is cut into; gradients add up to the whole batch's, memory
            for activations shrinks. Batch normalisation sees each part by itself.
        recompute: Keep only the inputs of the network's blocks and compute the rest again for the
            backward pass: in the ``learner``'s passes, or ``everywhere``, in the attack too. ``nowhere``
            keeps everything.

    Source:
        ``recompute``: Chen et al. 2016, https://arxiv.org/abs/1604.06174.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bn_updates: Literal["once", "hydra"] = "once"
    fold_norms: bool = False
    attack_precision: Literal["same", "bf16"] = "same"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compile: bool = False
    micro_batches: int = Field(default=1, ge=1)
    recompute: Literal["nowhere", "learner", "everywhere"] = "nowhere"


class ValidationSettings(BaseModel):
    """How epochs are judged, on images that are neither trained on nor tested on.

    Attributes:
        fraction: Share of the training images held out when no validation data is given.
        attack: The attack whose robust accuracy selects the epoch.
        limit: Judge on at most so many images; ``None`` for all.
        every: Judge every so many epochs (the last one always).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fraction: float = Field(default=0.1, gt=0, lt=1)
    attack: Annotated[SerializeAsAny[Attack], BeforeValidator(Attack.find)] = Field(
        default_factory=lambda: Attack.find({"kind": "pgd", "steps": 10}), validate_default=True
    )
    limit: int | None = Field(default=None, ge=1)
    every: int = Field(default=1, ge=1)
