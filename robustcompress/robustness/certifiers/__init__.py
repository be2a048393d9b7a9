"""Certifiers: prove a radius within which no image changes the predicted class."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from robustcompress.member import Member, class_attribute
from robustcompress.robustness.predictor import Predictor
from robustcompress.robustness.threat import Norm

if TYPE_CHECKING:
    from robustcompress.robustness.certifiers.smoothing import Smoothing as Smoothing


class Certificate(BaseModel):
    """What was proven about one image.

    Attributes:
        index: Position of the image in the data, from 0.
        label: The right class.
        predicted: The class that is certified; ``None`` where the certifier abstained.
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


class Certifier(Member, ABC):
    """Settings of one certifier; each reads as its paper does."""

    family: ClassVar[str] = "robustcompress.robustness.certifiers"
    norm: ClassVar[Norm]
    """In which its radii are measured."""

    @abstractmethod
    def certify(
        self, predictor: Predictor, image: Tensor, label: int, *, index: int, seed: int
    ) -> Certificate:
        """Return what can be proven about one image.

        The result depends on the predictor, the image, ``index`` and ``seed`` alone, so that images may be
        shared out over processes, and a part that is finished need not be computed again.

        Args:
            predictor: The network in the mode in which it is to be used.
            image: float ``[channels, height, width]``: what the predictor takes, without its batch.
            label: The right class.
            index: Position of the image in the data.
            seed: Of every random number.

        Raises:
            DataError: If the predictor does not return logits ``[batch, classes]``.
            ModelError: If a logit is not a finite number.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Return name and settings as tables print them, such as ``smoothing 0.25``."""


def __getattr__(name: str) -> Any:
    return class_attribute(Certifier, name)
