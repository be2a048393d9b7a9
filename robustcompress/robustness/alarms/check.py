"""One alarm: how many images speak against an evaluation, and whether chance explains them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from robustcompress.robustness.binomial import lower_bound, upper_tail

Verdict: TypeAlias = Literal["quiet", "fired", "undecided"]

_POWER = 0.9
_MOST_IMAGES = 1 << 20


@dataclass(frozen=True)
class Alarm:
    """What is looked for, and how much of it chance and honest networks explain.

    Attributes:
        name: For machines.
        claim: What it says when it fires, for people.
        tolerance: Share of the images, 0 to 1, that may speak against an honest network.
        concern: Share that must not be missed: with too few images to see it, silence proves nothing.
        advice: What to do.
        source: Who proposed to look.
    """

    name: str
    claim: str
    tolerance: float
    concern: float
    advice: str
    source: str


class Check(BaseModel):
    """What one alarm found.

    Attributes:
        name: Of the alarm, for machines.
        claim: What it says if it fired.
        verdict: ``fired``; ``quiet``; or ``undecided``: it did not fire, but would not have either if a share
            of ``concern`` were hit.
        hits: Images that speak against the network.
        count: Images looked at.
        against: Images that speak the other way, where two attacks are compared; ``None`` where not.
        tolerance: Share that an honest network may have.
        bound: Share of all images like these that speak against it at least; wrong with probability
            ``alpha``. The alarm fires where it exceeds ``tolerance``, and hits outnumber ``against`` beyond
            chance.
        alpha: Probability that the alarm fires although the share is within the tolerance.
        concern: Share that silence is to exclude.
        needed: Images with which a share of ``concern`` is seen nine times in ten; 0 where the check could
            not be made for another reason.
        reason: Why the check could not be made; empty if it was.
        advice: What to do.
        source: Who proposed to look.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: str
    claim: str
    verdict: Verdict
    hits: int = Field(ge=0)
    count: int = Field(ge=0)
    against: int | None = None
    tolerance: float
    bound: float
    alpha: float
    concern: float
    needed: int
    reason: str = ""
    advice: str
    source: str

    @model_validator(mode="after")
    def _no_more_hits_than_images(self) -> Self:
        if self.hits > self.count:
            raise ValueError(f"hits must be at most count; got {self.hits} of {self.count}")
        return self

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def fired(self) -> bool:
        """Whether the evaluation is not to be believed."""
        return self.verdict == "fired"

    def __str__(self) -> str:
        """Return one line: verdict, numbers, and what to do where it matters."""
        if self.reason:
            return f"{self.name}: not checked: {self.reason}"
        opposite = "" if self.against is None else f", {self.against} the other way"
        measured = f"{self.hits} of {self.count} images{opposite}; tolerated {self.tolerance:.0%}"
        if self.verdict == "fired":
            return f"{self.claim} ({measured}, surely more than {self.bound:.1%}). {self.advice}"
        if self.verdict == "undecided":
            return f"{self.name}: too few images to tell ({measured}); {self.needed} that are right would do"
        return f"{self.name}: quiet ({measured})"


def judged(alarm: Alarm, hits: int, count: int, *, alpha: float, against: int | None = None) -> Check:
    """Return whether more images than tolerated speak against the network, beyond chance.

    The test is exact: the images are draws, the number of hits is binomial, and the alarm fires if the
    Clopper-Pearson lower bound of its share exceeds the tolerance. Where two attacks are compared on the
    same images, those that one alone breaks must also outnumber those that the other alone breaks: the exact
    McNemar test, for which every image of the two kinds is the toss of a fair coin.

    Args:
        alarm: What was looked for.
        hits: Images in which it was found.
        count: Images looked at.
        alpha: Probability of a false alarm.
        against: Images in which the opposite was found; ``None`` where there is none.

    Source:
        Clopper & Pearson 1934, https://doi.org/10.2307/2331986; McNemar 1947,
        https://doi.org/10.1007/BF02295996, in its exact form.
    """
    bound = lower_bound(hits, count, alpha=alpha) if count else 0.0
    outnumbers = against is None or (hits > 0 and lower_bound(hits, hits + against, alpha=alpha) > 0.5)
    fired = bound > alarm.tolerance and outnumbers
    seen = fired or power(count, alarm.tolerance, alarm.concern, alpha=alpha) >= _POWER
    return Check(
        name=alarm.name,
        claim=alarm.claim,
        verdict="fired" if fired else "quiet" if seen else "undecided",
        hits=hits,
        count=count,
        against=against,
        tolerance=alarm.tolerance,
        bound=bound,
        alpha=alpha,
        concern=alarm.concern,
        needed=images_needed(alarm.tolerance, alarm.concern, alpha=alpha),
        advice=alarm.advice,
        source=alarm.source,
    )


def not_made(alarm: Alarm, reason: str, *, alpha: float) -> Check:
    """Return a check that could not be made, because of ``reason``."""
    return Check(
        name=alarm.name,
        claim=alarm.claim,
        verdict="undecided",
        hits=0,
        count=0,
        tolerance=alarm.tolerance,
        bound=0.0,
        alpha=alpha,
        concern=alarm.concern,
        needed=0,
        reason=reason,
        advice=alarm.advice,
        source=alarm.source,
    )


def power(count: int, tolerance: float, concern: float, *, alpha: float) -> float:
    """Return the probability that ``count`` images set the alarm off if a share of ``concern`` is hit."""
    least = _least_hits(count, tolerance, alpha)
    if least > count:
        return 0.0
    # Of the two tails, the one whose terms fall from the first on.
    if least > concern * count:
        return upper_tail(least, count, concern)
    return 1 - upper_tail(count - least + 1, count, 1 - concern)


@lru_cache(maxsize=256)
def images_needed(tolerance: float, concern: float, *, alpha: float) -> int:
    """Return with how many images a share of ``concern`` sets the alarm off nine times in ten."""
    high = 1
    while power(high, tolerance, concern, alpha=alpha) < _POWER and high < _MOST_IMAGES:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if power(middle, tolerance, concern, alpha=alpha) < _POWER:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=4096)
def _least_hits(count: int, tolerance: float, alpha: float) -> int:
    """Return with how many hits the alarm fires; ``count + 1`` if it cannot."""
    low, high = 0, count + 1  # fires not at low, fires at high
    while high - low > 1:
        middle = (low + high) // 2
        if lower_bound(middle, count, alpha=alpha) > tolerance:
            high = middle
        else:
            low = middle
    return high
