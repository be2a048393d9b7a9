"""Training objectives: what one optimizer step minimises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.member import Member, class_attribute
from robustcompress.robustness.threat import Threat
from robustcompress.training.collapse import CollapseWatch
from robustcompress.training.findings import Findings

if TYPE_CHECKING:
    from robustcompress.training.objectives.ard import Ard as Ard
    from robustcompress.training.objectives.crown_ibp import CrownIbp as CrownIbp
    from robustcompress.training.objectives.fgsm_rs import FgsmRs as FgsmRs
    from robustcompress.training.objectives.free import Free as Free
    from robustcompress.training.objectives.ibp import Ibp as Ibp
    from robustcompress.training.objectives.mart import Mart as Mart
    from robustcompress.training.objectives.mixtrain import MixTrain as MixTrain
    from robustcompress.training.objectives.mtl_ibp import MtlIbp as MtlIbp
    from robustcompress.training.objectives.natural import Natural as Natural
    from robustcompress.training.objectives.pgd import Pgd as Pgd
    from robustcompress.training.objectives.rslad import Rslad as Rslad
    from robustcompress.training.objectives.sabr import Sabr as Sabr
    from robustcompress.training.objectives.smoothing import Smoothing as Smoothing
    from robustcompress.training.objectives.trades import Trades as Trades

Forward: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moment:
    """Where in its stage a step stands; schedules of objectives read it."""

    epoch: int
    epochs: int
    step: int
    steps: int


@dataclass(frozen=True)
class StepView:
    """What an objective may call within one optimizer step.

    Attributes:
        learning: The network in train mode; gradients reach whatever learns (weights or scores).
        frozen: The same weights, constant, in eval mode: for attacks. Gradients reach the images only.
        model: The module itself, for objectives that need its structure.
        tensors: Effective parameters by name (masked weights in place of raw ones), as ``learning``
            uses them.
        threat: What the adversary may do in training.
        generator: Source of every random number of the step, on the images' device.
        moment: Position within the stage.
        rows: Which rows of the step's whole batch the images at hand are; ``None`` if they are all of it.
            :meth:`normal` and :meth:`random_point` draw for the whole batch, so that an image gets the
            same numbers however the batch is divided over parts and processes.
        batch: Rows of the whole batch.
        bn_updates: ``hydra`` asks for as many forward passes in train mode as HYDRA's published code does.
        teacher: A network to learn from, constant, in eval mode; nothing receives a gradient through it.
            ``None`` for objectives that need none.
        carried: For objectives that carry a perturbation over: that of the images at hand, of their shape.
            What the objective writes there, in place, it finds at the next step; zeros at first.
        findings: Where :meth:`found` keeps what was found, if the loss is computed more than once.
    """

    learning: Forward
    frozen: Forward
    model: nn.Module
    tensors: Mapping[str, Tensor]
    threat: Threat
    generator: torch.Generator
    moment: Moment
    rows: slice | None = None
    batch: int = 0
    bn_updates: Literal["once", "hydra"] = "once"
    teacher: Forward | None = None
    carried: Tensor | None = None
    findings: Findings | None = None

    def found(self, find: Callable[[], Tensor]) -> Tensor:
        """Return ``find()``: the images that an attack on ``frozen`` finds.

        Where the loss of a step is computed more than once, the attack runs the first time only.
        """
        return find() if self.findings is None else self.findings.get(find, self.generator)

    def teacher_logits(self, images: Tensor) -> Tensor:
        """Return what the teacher says to ``images``, ``[batch, classes]``.

        Raises:
            ConfigError: If there is no teacher.
        """
        if self.teacher is None:
            raise ConfigError(
                "this objective learns from a teacher, and none was given. Name the artifact folder of a "
                "robust network as the recipe's teacher, or choose another objective."
            )
        return self.teacher(images)

    def normal(self, images: Tensor) -> Tensor:
        """Return standard normal noise, shaped and placed like ``images``."""
        like = self._whole(images)
        noise = torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)
        return noise if self.rows is None else noise[self.rows]

    def random_point(self, images: Tensor) -> Tensor:
        """Return a point drawn uniformly from the threat around each image."""
        offset = self.threat.random_offset(self._whole(images), self.generator)
        offset = offset if self.rows is None else offset[self.rows]
        return (images + offset).clamp_(self.threat.lower, self.threat.upper)

    def repeat_for_statistics(self, images: Tensor, times: int) -> None:
        """Move batch statistics ``times`` more, if HYDRA's count of updates was asked for."""
        if self.bn_updates == "hydra":
            with torch.no_grad():
                for _ in range(times):
                    self.learning(images)

    def _whole(self, images: Tensor) -> Tensor:
        """Return a tensor, of no memory, that stands for the whole batch of which ``images`` are rows."""
        if self.rows is None:
            return images
        return images.new_empty(1).expand(self.batch, *images.shape[1:])


class Objective(Member, ABC):
    """A robust training technique: its settings, and its loss."""

    family: ClassVar[str] = "robustcompress.training.objectives"
    needs_teacher: ClassVar[bool] = False
    """Whether the loss asks ``view.teacher_logits``."""
    carries: ClassVar[bool] = False
    """Whether the loss uses ``view.carried``."""

    @property
    def steps_a_batch(self) -> int:
        """Optimizer steps on each minibatch, in a row; epochs are divided by it."""
        return 1

    @property
    def collapse_watch(self) -> CollapseWatch | None:
        """Which fall of robust accuracy the loop looks for after each epoch; ``None`` for none."""
        return None

    @abstractmethod
    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar to minimise, a mean over images.

        A batch may come in parts: the step weights each part's loss by its share of the images.

        Args:
            view: The network and the surroundings of this step.
            images: float ``[batch, channels, height, width]`` in [0, 1].
            labels: int64 ``[batch]``.
        """


def __getattr__(name: str) -> Any:
    return class_attribute(Objective, name)
