"""Make every check, batch by batch, and count."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustcompress.errors import DataError
from robustcompress.robustness.alarms import kinds
from robustcompress.robustness.alarms.check import Alarm, Check, judged, not_made
from robustcompress.robustness.alarms.constancy import changes_by_batch, changes_by_call
from robustcompress.robustness.alarms.gradients import look_at_gradients
from robustcompress.robustness.alarms.trials import Bench, Trials, try_attacks
from robustcompress.robustness.attacks.square import Square
from robustcompress.robustness.batches import Batch
from robustcompress.robustness.predictor import Predictor, predicted_classes
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import generator_for

QUERIES = 500
"""Of the attack without gradients."""

_ONE_CLASS = 0.75
_ABOVE_CHANCE = 0.2


class Tally:
    """What was counted so far, batch by batch.

    Attributes:
        outcomes: What an evaluation found on the same images, if anything.
        labels: How many images of each class were seen.
        right: How many were right clean; all else is about these.
        hits: Images that speak for an alarm.
        against: Images that speak against it, where two attacks are compared.
        numbers: What else was counted.
    """

    def __init__(self, outcomes: Sequence[tuple[str, Tensor]]) -> None:
        self.outcomes = outcomes
        self.labels: Counter[int] = Counter()
        self.right = 0
        self.hits: Counter[Alarm] = Counter()
        self.against: Counter[Alarm] = Counter()
        self.numbers: Counter[str] = Counter()

    def look(
        self, batch: Batch, judge: Predictor, white_box: Predictor | None, threat: Threat, seed: int
    ) -> None:
        """Make every check that can be made on the images that are right clean."""
        found = predicted_classes(judge, batch.images, batch.labels, where=f"batch {batch.index} (clean)")
        rows = (found == batch.labels).nonzero().flatten()
        withstood = self._withstood(rows)
        self.labels.update(batch.labels.tolist())
        self.right += len(rows)
        if len(rows) == 0:
            return
        kept = Batch(batch.index, batch.images[rows], batch.labels[rows], batch.total)
        bench = Bench(kept, judge, threat, seed)
        self._look_at_logits(bench)
        by_square = bench.broken(Square(queries=QUERIES), judge)
        self.numbers[f"standing, Square with {QUERIES} queries"] += int((~by_square).sum())
        broken = by_square
        if white_box is not None:
            self._look_at_gradients(bench, white_box)
            tried = try_attacks(bench, white_box)
            self._compare(tried, by_square)
            broken = tried.broken | by_square
        self._count(kinds.HEADLINE, withstood & broken)

    def checks(self, alpha: float, *, no_gradients: str | None) -> Iterator[Check]:
        """Yield what each alarm found; those that need gradients say so if there are none."""
        images = sum(self.labels.values())
        chance = max(self.labels.values()) / images
        alarms = [alarm for alarm in kinds.ALL if self.outcomes or alarm is not kinds.HEADLINE]
        share = alpha / len(alarms)
        for alarm in alarms:
            if no_gradients is not None and alarm in kinds.NEED_GRADIENTS:
                yield not_made(alarm, f"there are no gradients: {no_gradients}", alpha=share)
            elif alarm is kinds.WHOLE_RANGE and chance > _ONE_CLASS:
                yield not_made(alarm, f"{chance:.0%} of the images are of one class", alpha=share)
            elif alarm is kinds.WHOLE_RANGE:
                # A network that always gives one answer is right about that class, and cannot be broken.
                least = max(chance, alarm.tolerance)
                above_chance = replace(alarm, tolerance=least, concern=least + _ABOVE_CHANCE)
                yield judged(above_chance, self.hits[alarm], images, alpha=share)
            else:
                against = self.against[alarm] if alarm in kinds.COMPARISONS else None
                yield judged(alarm, self.hits[alarm], self.right, alpha=share, against=against)

    def _look_at_logits(self, bench: Bench) -> None:
        images = bench.batch.images
        generator = generator_for(images.device, bench.seed, "alarms", bench.batch.index)
        by_call = changes_by_call(bench.judge, images)
        self._count(kinds.RANDOM, by_call)
        self._count(kinds.BATCH, changes_by_batch(bench.judge, images, generator) & ~by_call)

    def _look_at_gradients(self, bench: Bench, white_box: Predictor) -> None:
        seen = look_at_gradients(white_box, bench.batch.images, bench.batch.labels, bench.threat)
        self._count(kinds.BLIND_GRADIENT, seen.misleads)
        self._count(kinds.BLIND_CROSS_ENTROPY, seen.loses_cross_entropy)
        self.numbers["zero gradient of the margin"] += int(seen.is_flat.sum())

    def _compare(self, tried: Trials, by_square: Tensor) -> None:
        on_margin, on_cross_entropy = tried.margin & ~tried.cross_entropy, tried.cross_entropy & ~tried.margin
        self._count(kinds.MARGIN_BETTER, on_margin, on_cross_entropy)
        self._count(kinds.CROSS_ENTROPY_BETTER, on_cross_entropy, on_margin)
        self._count(kinds.BLACK_BOX, by_square & ~tried.broken, tried.broken & ~by_square)
        self._count(kinds.STEPS, tried.more_steps)
        self._count(kinds.RESTARTS, tried.more_starts)
        self._count(kinds.WHOLE_RANGE, ~tried.unlimited)
        smaller, within, larger = tried.smaller, tried.cross_entropy, tried.larger
        self._count(kinds.MONOTONE, (smaller & ~within) | (within & ~larger))
        for name, broken in tried.by_name().items():
            self.numbers[f"standing, {name}"] += int((~broken).sum())

    def _count(self, alarm: Alarm, found: Tensor, opposite: Tensor | None = None) -> None:
        self.hits[alarm] += int(found.sum())
        if opposite is not None:
            self.against[alarm] += int(opposite.sum())

    def _withstood(self, rows: Tensor) -> Tensor:
        """Return which of a batch's ``rows`` withstood the whole evaluation."""
        places = rows + sum(self.labels.values())
        standing = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for attack, right in self.outcomes:
            if len(rows) and int(places.max()) >= len(right):
                raise DataError(
                    f"the outcomes of {attack} are about {len(right)} images, and the batches hold more. "
                    "Give the images that were evaluated, or a lower limit."
                )
            standing &= right.to(rows.device)[places]
        return standing
