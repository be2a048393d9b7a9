"""Certifiers: prove a radius within which no image changes the predicted class."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from robustcompress.member import Member, class_attribute
from robustcompress.robustness.predictor import Predictor
from robustcompress.robustness.threat import Norm

if TYPE_CHECKING:
    from robustcompress.robustness.certifiers.best import Best as Best
    from robustcompress.robustness.certifiers.crown import Crown as Crown
    from robustcompress.robustness.certifiers.crown_ibp import CrownIbp as CrownIbp
    from robustcompress.robustness.certifiers.interval import Interval as Interval
    from robustcompress.robustness.certifiers.smoothing import Smoothing as Smoothing


class Certificate(BaseModel):
    """What was proven about one image.

    Attributes:
        index: Position of the image in the data, from 0.
        label: The right class.
        predicted: The class that is certified, right or wrong; ``None`` where the certifier abstained.
        radius: No image nearer than this, in the certifier's norm, gets another class; pixel scale 0 to 1.
            0.0 where the certifier abstained.
        counts: What the statement rests on, such as draws and hits; each certifier names its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    index: int = Field(ge=0)
    label: int = Field(ge=0)
    predicted: int | None
    radius: float = Field(ge=0)
    counts: dict[str, int] = Field(default_factory=dict)

    def holds(self, radius: float) -> bool:
        """Return whether the right class is certified as far as ``radius``."""
        return self.predicted == self.label and self.radius >= radius


@dataclass(frozen=True, eq=False)
class Subject:
    """What is certified, and what a certifier may look at.

    Attributes:
        predictor: Images to logits, in the mode in which it is to be used.
        network: The module whose operations ``predictor`` computes, for certifiers that need them; ``None``
            where there is none, as for a user's function.
    """

    predictor: Predictor
    network: nn.Module | None = None


class Certifier(Member, ABC):
    """Settings of one certifier; each reads as its paper does."""

    family: ClassVar[str] = "robustcompress.robustness.certifiers"
    norm: ClassVar[Norm]
    """In which its radii are measured."""
    needs_structure: ClassVar[bool] = False
    """Whether it looks into the network: logits alone do not suffice."""
    speed_settings: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    """Fields that change time and memory, but no certificate."""

    @property
    def images_at_once(self) -> int:
        """How many images ``certify`` should get at once."""
        return 1

    @property
    def usual_radii(self) -> tuple[float, ...]:
        """Radii at which to count, where nobody asks for others; at 0 all that is certified counts."""
        return (0.0,)

    @abstractmethod
    def certify(
        self, subject: Subject, images: Tensor, labels: Tensor, *, indices: Sequence[int], seed: int
    ) -> list[Certificate]:
        """Return what can be proven about each of the images.

        What one image gets depends on the subject, the image, its index and ``seed`` alone, not on the
        others, so that images may be shared out over processes, and a part that is finished need not be
        computed again.

        Args:
            subject: What is certified; no gradient is computed.
            images: float ``[batch, channels, height, width]`` in [0, 1].
            labels: The right classes, int64 ``[batch]``.
            indices: Positions of the images in the data.
            seed: Of every random number.

        Raises:
            ConfigError: If it needs the network's structure and the subject has none.
            DataError: If the predictor does not return logits ``[batch, classes]``.
            ModelError: If a logit is not a finite number, or the network has an operation that the certifier
                does not know.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return name and settings as tables print them, such as ``smoothing 0.25``."""


def __getattr__(name: str) -> Any:
    return class_attribute(Certifier, name)
