"""Training objectives: what one optimizer step minimises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from robustcompress.member import Member, class_attribute
from robustcompress.robustness.threat import Threat

if TYPE_CHECKING:
    from robustcompress.training.objectives.natural import Natural as Natural
    from robustcompress.training.objectives.pgd import Pgd as Pgd
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
    """

    learning: Forward
    frozen: Forward
    model: nn.Module
    tensors: Mapping[str, Tensor]
    threat: Threat
    generator: torch.Generator
    moment: Moment


class Objective(Member, ABC):
    """A robust training technique: its settings, and its loss."""

    family: ClassVar[str] = "robustcompress.training.objectives"

    @abstractmethod
    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar to minimise.

        Args:
            view: The network and the surroundings of this step.
            images: float ``[batch, channels, height, width]`` in [0, 1].
            labels: int64 ``[batch]``.
        """


def __getattr__(name: str) -> Any:
    return class_attribute(Objective, name)
