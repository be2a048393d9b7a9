"""One accuracy and all that is needed to measure it again."""

import math
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from robustcompress.robustness.threat import Norm

Access: TypeAlias = Literal["none", "white-box", "transfer", "black-box"]


class Count(BaseModel):
    """How many of ``count`` images were judged right.

    Attributes:
        correct: Images judged right.
        count: Images judged.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    correct: int = Field(ge=0)
    count: int = Field(gt=0)

    @model_validator(mode="after")
    def _no_more_right_than_judged(self) -> Self:
        if self.correct > self.count:
            raise ValueError(f"correct must be at most count; got {self.correct} of {self.count}")
        return self

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def accuracy(self) -> float:
        """Fraction right."""
        return self.correct / self.count

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy on further images drawn alike."""
        return wilson_interval(self.correct, self.count)


class Measurement(Count):
    """How many of ``count`` images a predictor got right, under which attack.

    Attributes:
        subject: What was judged: ``network`` or the name of an exported file.
        attack: ``clean``, the attack as it prints itself (``PGD-20x1``), or ``worst case`` (an image
            counts as right only if it withstood every attack listed in ``settings``).
        access: ``white-box`` (gradients of the subject itself), ``transfer`` (images made on another
            predictor, scored on this one), ``black-box``, or ``none`` for clean.
        norm: Of the threat; ``None`` for clean.
        eps: Of the threat, pixel scale 0 to 1; ``None`` for clean.
        settings: Steps, restarts, step size and whatever else defines the attack.
        seed: Of the attack's generator.
    """

    subject: str
    attack: str
    access: Access
    norm: Norm | None = None
    eps: float | None = None
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    seed: int


def wilson_interval(correct: int, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion.

    Args:
        correct: Successes, 0 to ``count``.
        count: Trials, 1 or more.
        z: Quantile of the normal distribution; the default gives 95%.

    Returns:
        Lower and upper end, each in [0, 1].

    Source:
        Wilson 1927, https://doi.org/10.2307/2276774; as eq. 4 of Brown, Cai & DasGupta 2001,
        https://doi.org/10.1214/ss/1009213286.
    """
    share = correct / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == count else min(1.0, centre + half)
    return low, high
