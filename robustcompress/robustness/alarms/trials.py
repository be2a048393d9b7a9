"""Modest attacks on a few images, to be compared with each other.

Each fact is about the images that the predictor gets right clean, bool ``[right]``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustcompress.robustness.attacking import attack_batch
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.batches import Batch
from robustcompress.robustness.predictor import Predictor, predicted_classes
from robustcompress.robustness.threat import Threat

STEPS = 20
MORE_STEPS = 100
MORE_STARTS = 4

_FROM_THE_IMAGE = {"random_start": False}
# Noise as large as the whole range breaks networks whose gradients tell nothing, too.


@dataclass(frozen=True)
class Trials:
    """Which images each attack broke.

    Attributes:
        cross_entropy: PGD on the cross-entropy, :data:`STEPS` steps from one random start.
        margin: The same on the margin.
        more_steps: With :data:`MORE_STEPS` steps, of those that the first left standing.
        more_starts: From :data:`MORE_STARTS` more random starts, of the same.
        smaller: The first within half the radius.
        larger: The first within twice the radius.
        unlimited: Within the whole pixel range, from the image itself, by cross-entropy or margin.
    """

    cross_entropy: Tensor
    margin: Tensor
    more_steps: Tensor
    more_starts: Tensor
    smaller: Tensor
    larger: Tensor
    unlimited: Tensor

    @property
    def broken(self) -> Tensor:
        """Images that an attack within the threat broke."""
        return self.cross_entropy | self.margin | self.more_steps | self.more_starts | self.smaller

    def by_name(self) -> dict[str, Tensor]:
        """Return what each attack broke in the end, by a name for people."""
        first, starts = self.cross_entropy, 1 + MORE_STARTS
        return {
            f"PGD-{STEPS}x1 within half the radius": self.smaller,
            f"PGD-{STEPS}x1": first,
            f"PGD-{STEPS}x1 within twice the radius": self.larger,
            f"PGD-{MORE_STEPS}x1": first | self.more_steps,
            f"PGD-{STEPS}x{starts}": first | self.more_starts,
            f"PGD-margin-{STEPS}x1": self.margin,
            f"PGD-{STEPS}x1 within the whole range": self.unlimited,
        }


@dataclass(frozen=True)
class Bench:
    """Images that are right clean, who attacks them and who judges.

    Attributes:
        batch: The images.
        judge: Whose classes count.
        threat: What attacks may do.
        seed: Of every random number.
    """

    batch: Batch
    judge: Predictor
    threat: Threat
    seed: int

    def broken(
        self,
        attack: Attack,
        looked_at: Predictor,
        *,
        among: Tensor | None = None,
        threat: Threat | None = None,
    ) -> Tensor:
        """Return which images ``attack`` breaks, bool ``[batch]``.

        Args:
            attack: The attack.
            looked_at: What it sees.
            among: Only these are attacked; the others count as not broken. ``None`` attacks all.
            threat: In place of the bench's.
        """
        found = torch.zeros(len(self.batch.labels), dtype=torch.bool, device=self.batch.labels.device)
        rows = (torch.ones_like(found) if among is None else among).nonzero().flatten()
        if len(rows) == 0:
            return found
        batch = Batch(self.batch.index, self.batch.images[rows], self.batch.labels[rows], self.batch.total)
        moved = attack_batch(attack, looked_at, batch, threat=threat or self.threat, seed=self.seed)
        where = f"batch {batch.index} ({attack})"
        found[rows] = predicted_classes(self.judge, moved, batch.labels, where=where) != batch.labels
        return found


def try_attacks(bench: Bench, white_box: Predictor) -> Trials:
    """Attack the bench's images through ``white_box``, the judge or a differentiable twin of it."""
    threat, first = bench.threat, Pgd(steps=STEPS)
    on_margin = Pgd(steps=STEPS, loss="margin")
    cross_entropy = bench.broken(first, white_box)
    smaller, larger = (
        bench.broken(first, white_box, threat=threat.model_copy(update={"eps": factor * threat.eps}))
        for factor in (0.5, 2.0)
    )
    whole = threat.model_copy(update={"eps": _whole_range(threat, bench.batch.images)})
    unlimited = bench.broken(on_margin.model_copy(update=_FROM_THE_IMAGE), white_box, threat=whole)
    unlimited |= bench.broken(
        first.model_copy(update=_FROM_THE_IMAGE), white_box, threat=whole, among=~unlimited
    )
    return Trials(
        cross_entropy=cross_entropy,
        margin=bench.broken(on_margin, white_box),
        more_steps=bench.broken(Pgd(steps=MORE_STEPS), white_box, among=~cross_entropy),
        more_starts=bench.broken(Pgd(steps=STEPS, restarts=MORE_STARTS), white_box, among=~cross_entropy),
        smaller=smaller,
        larger=larger,
        unlimited=unlimited,
    )


def _whole_range(threat: Threat, images: Tensor) -> float:
    """Return the radius within which every image lies."""
    length = threat.upper - threat.lower
    return length if threat.norm == "linf" else length * math.sqrt(images[0].numel())
