"""May an evaluation be believed? A battery of checks for gradient masking, on a few images."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, computed_field
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.alarms.check import Check
from robustcompress.robustness.alarms.tally import Tally
from robustcompress.robustness.batches import Batches, checked_batches
from robustcompress.robustness.predictor import Predictor, as_predictor
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat

Status: TypeAlias = Literal["no alarm", "undecided", "unreliable"]


class Reliability(BaseModel):
    """What all checks found.

    Attributes:
        images: Looked at.
        right: Of these, right clean; the checks are about them.
        alpha: Probability that any alarm fires although every share is within its tolerance.
        checks: One for each alarm.
        numbers: Of the right images: how many each attack left standing, how many have no gradient.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    images: int
    right: int
    alpha: float
    checks: tuple[Check, ...]
    numbers: dict[str, int]

    @computed_field  # type: ignore[prop-decorator]  # pydantic asks for this order
    @property
    def status(self) -> Status:
        """``unreliable`` if one alarm fired; ``undecided`` if none did but one could not be judged.

        The robust accuracy of an unreliable evaluation is not to be reported.
        """
        if self.fired:
            return "unreliable"
        return "undecided" if any(check.verdict == "undecided" for check in self.checks) else "no alarm"

    @property
    def fired(self) -> tuple[Check, ...]:
        """The alarms that went off."""
        return tuple(check for check in self.checks if check.fired)

    def check(self, name: str) -> Check:
        """Return what the alarm called ``name`` found.

        Raises:
            ConfigError: If no alarm has this name.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise ConfigError(f"no alarm is called {name!r}; there are {[item.name for item in self.checks]}.")

    def __str__(self) -> str:
        """Return the status and, one a line, what is behind it."""
        shown = self.fired or tuple(check for check in self.checks if check.verdict == "undecided")
        first = f"{self.status}: {len(self.checks)} checks on {self.right} images"
        return "\n".join([first, *(f"  {check}" for check in shown)])


def check_reliability(
    network: nn.Module | Target,
    batches: Batches,
    *,
    threat: Threat,
    seed: int,
    device: torch.device | str,
    outcomes: Sequence[tuple[str, Tensor]] = (),
    limit: int = 200,
    alpha: float = 0.01,
    progress: Callable[[str, int, int], None] | None = None,
) -> Reliability:
    """Look for signs that a robust accuracy says more about the attack than about the network.

    Attacks fail on networks that hide their gradients, and such networks are not robust. Each check counts
    images in which something shows that honest networks do not show, or hardly: see
    :mod:`~robustcompress.robustness.alarms.kinds`. It fires if their share exceeds what is tolerated beyond
    chance, by an exact test on the images; one that could not have fired on so few images says so.

    The checks cost a few hundred gradients an image, a small part of AutoAttack. They find faults of
    evaluations, and do not prove that there is none: an attack made for the network may do better.

    Args:
        network: Images in [0, 1] to logits, or a predictor with its differentiable twin. Its mode, parameters
            and ``.grad`` stay as they are.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``; read once.
        threat: Of the evaluation.
        seed: Of every random number.
        device: Where the network is judged.
        outcomes: What the evaluation found for this network on the same images in the same order: pairs of
            ``clean`` or an attack, and bool ``[images]``, whether it was right. Without them it is not
            checked whether these attacks break what the evaluation left standing.
        limit: Look at the first ``limit`` images only.
        alpha: Probability of a false alarm, shared among the checks by Bonferroni's inequality.
        progress: Called after each batch with ``alarms``, batches done and batches in all (0 if unknown).

    Raises:
        ConfigError: If ``limit`` or ``alpha`` is out of range.
        DataError: If there are no batches, or one is not what it must be.
        ModelError: If a logit or a gradient is not finite, or there is no gradient to follow.

    Source:
        Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 5; Croce & Hein 2020,
        https://arxiv.org/abs/2003.01690; Tramer et al. 2020, https://arxiv.org/abs/2002.08347.
        Differs: each comparison is a test on the same images, with a tolerance, and not a difference.
    """
    if not 0 < alpha < 0.5:
        raise ConfigError(
            f"alpha must be in (0, 0.5); got {alpha}. 0.01 is a false alarm in a hundred networks."
        )
    tally = Tally(outcomes)
    with _served(network, device) as (judge, white_box):
        for batch in checked_batches(batches, device=device, limit=limit):
            tally.look(batch, judge, white_box, threat, seed)
            if progress is not None:
                progress("alarms", batch.index + 1, batch.total)
    reason = network.reason if isinstance(network, Target) and network.twin is None else None
    return Reliability(
        images=sum(tally.labels.values()),
        right=tally.right,
        alpha=alpha,
        checks=tuple(tally.checks(alpha, no_gradients=reason)),
        numbers=dict(tally.numbers),
    )


@contextmanager
def _served(
    network: nn.Module | Target, device: torch.device | str
) -> Generator[tuple[Predictor, Predictor | None]]:
    """Yield who judges and what attacks with gradients look at."""
    if isinstance(network, nn.Module):
        with as_predictor(network, device) as predictor:
            yield predictor, predictor
    elif network.twin is None:
        yield network.predictor, None
    else:
        with as_predictor(network.twin, device) as twin:
            yield network.predictor, twin
