"""One subject of an evaluation: what attacks may look at, and what it got right."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.attacking import attack_batch
from robustcompress.robustness.attacks import Attack, Ensemble, Settings
from robustcompress.robustness.batches import Batch
from robustcompress.robustness.measurement import Access, Measurement
from robustcompress.robustness.pixels import eight_bit, holds_pixels
from robustcompress.robustness.predictor import Predictor, finite_logits, predicted_classes
from robustcompress.robustness.reachable import Reachable
from robustcompress.robustness.threat import Threat

EIGHT_BIT = "8-bit pixels"
WORST = "worst case"


@dataclass(frozen=True)
class Column:
    """One way in which every image of a subject was tried.

    Attributes:
        attack: As tables print it.
        access: What the attack could see of the subject.
        part_of: The ensemble of which the attack is one member; empty if it stands alone.
    """

    attack: str
    access: Access
    part_of: str = ""

    @property
    def title(self) -> str:
        """The attack, and for images made on another network that they were."""
        return f"{self.attack} (transfer)" if self.access == "transfer" else self.attack


_BEST_FIRST: tuple[Access, ...] = ("white-box", "black-box", "transfer")
_IN_8_BIT = Column(EIGHT_BIT, "none")


class Store(Protocol):
    """Keeps what an ensemble's members made of a batch, so that an evaluation can go on where it stopped."""

    def get(self, key: str) -> Tensor | None:
        """Return what was kept under ``key``."""
        ...

    def put(self, key: str, adversarial: Tensor) -> None:
        """Keep images."""
        ...


@dataclass(frozen=True)
class Attempt:
    """What an attack made of a batch.

    Attributes:
        column: Which attack, and how.
        adversarial: One image per image of the batch, within the threat.
    """

    column: Column
    adversarial: Tensor


class Subject:
    """Somebody who is judged.

    Attributes:
        name: In the measurements.
        predictor: Whose classes count.
        network: What attacks follow the gradients of; ``None`` if there is nothing.
        quick: What attacks without gradients ask.
        excluder: Tells which classes bounds exclude; ``None`` if they tell nothing.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        *,
        network: nn.Module | None,
        quick: Predictor,
        threat: Threat,
        excluder: Reachable | None = None,
    ) -> None:
        self.name = name
        self.predictor = predictor
        self.network = network
        self.quick = quick
        self.excluder = excluder
        self._threat = threat
        self._columns: dict[Column, list[Tensor]] = {}
        self._settings: dict[Column, Settings] = {}
        self._right: list[Tensor] = []
        self._now: dict[Column, Tensor] = {}
        self._clean = torch.empty(0, dtype=torch.bool)
        self._found = torch.empty(0, dtype=torch.long)
        self._class_count = 0

    def begin(self, batch: Batch) -> Tensor:
        """Judge the clean images; return their classes, int64 ``[batch]`` on the labels' device."""
        self._now = {}
        where = f"batch {batch.index} ({self.name}, clean)"
        logits = finite_logits(self.predictor, batch.images, batch.labels, where=where)
        found = logits.argmax(1).to(batch.labels.device)
        self._class_count = logits.shape[1]
        self._found, self._clean = found, found == batch.labels
        self._right.append(self._clean.cpu())
        return found

    @property
    def standing(self) -> Tensor:
        """Which images of the batch are right clean and in everything tried so far; bool ``[batch]``."""
        return torch.stack([self._clean, *self._now.values()]).all(0)

    def can_run(self, attack: Attack) -> bool:
        """Return whether there is what ``attack`` needs; of an ensemble, what one of its members needs."""
        return isinstance(attack, Ensemble) or not attack.needs_gradient or self.network is not None

    def attempts(self, attack: Attack, batch: Batch, *, seed: int, store: Store | None) -> Iterator[Attempt]:
        """Yield what ``attack`` makes of the batch; of an ensemble, what each member leaves.

        A member sees the images that are still standing, and bounds spare it those, and the classes, that
        cannot be reached.
        """
        if not isinstance(attack, Ensemble):
            made = attack_batch(attack, self._source(attack), batch, threat=self._threat, seed=seed)
            yield Attempt(self._column(attack, settings=attack.settings(self._threat)), made)
            return
        whole = str(attack)
        members = [member for member in attack.members(self._class_count) if self.can_run(member)]
        if not members:
            raise ConfigError(
                f"{whole} has no attack that can be run on {self.name}: all need gradients, and it has none. "
                "Add one that does without: square."
            )
        standing, reachable = self._clean.clone(), None
        if self.excluder is not None and bool(standing.any()):
            reachable = torch.ones(len(batch.labels), self._class_count, dtype=torch.bool)
            reachable = reachable.to(batch.labels.device)
            reachable[standing] = self.excluder(batch.images[standing], batch.labels[standing])
            standing &= reachable.any(1)
        latest = batch.images.clone()
        # A member leaves at once what is misclassified. Images that are done get a label that is not theirs:
        # so each member draws for the whole batch, and what an image gets does not depend on who stands.
        not_theirs = (self._found + 1) % self._class_count
        for member in members:
            key = f"{self.name}/{whole}/{member}/{batch.index}"
            kept = store.get(key) if store is not None else None
            if kept is not None and self._fits(kept, batch):
                latest = kept.to(latest)
            elif bool(standing.any()):
                given = replace(batch, labels=torch.where(standing, batch.labels, not_theirs))
                made = attack_batch(
                    member,
                    self._source(member),
                    given,
                    threat=self._threat,
                    seed=seed,
                    reachable=reachable,
                    part_of=whole,
                )
                latest = torch.where(standing.reshape(-1, *[1] * (made.ndim - 1)), made, latest)
                if store is not None:
                    store.put(key, latest)
            column = self._column(member, settings=member.settings(self._threat), part_of=whole)
            yield Attempt(column, latest)
            standing &= self._now[column]
        column = self._column(attack, settings=attack.settings(self._threat))
        yield Attempt(column, latest)

    def transferred(self, attempt: Attempt) -> Column:
        """Return the column of what was made on another network; members of an ensemble share one."""
        column = Column(attempt.column.part_of or attempt.column.attack, "transfer")
        self._settings[column] = {"made on": "the network"}
        return column

    def judge(self, column: Column, adversarial: Tensor, batch: Batch) -> Tensor:
        """Count what is right on the images of an attack, and on them in 8 bits; return their classes."""
        found = self._classes(adversarial, batch, column.title)
        self._note(column, found == batch.labels)
        if holds_pixels(self._threat):
            rounded, allowed = eight_bit(adversarial, batch.images, self._threat)
            stays = self._classes(rounded, batch, f"{column.title}, {EIGHT_BIT}") == batch.labels
            self._note(_IN_8_BIT, stays | ~allowed)
        return found

    def right(self, column: Column) -> Tensor:
        """Return which images of the batch are right clean and under one attack; bool ``[batch]``."""
        return self._now[column]

    def finish(self) -> None:
        """Put what the batch showed to what the others did."""
        for column, right in self._now.items():
            self._columns.setdefault(column, []).append(right.cpu())

    def outcomes(self) -> tuple[tuple[str, Tensor], ...]:
        """Return pairs of ``clean`` or an attack, and which images were right; bool ``[images]``."""
        rows = [(column.title, torch.cat(parts)) for column, parts in self._columns.items()]
        return (("clean", torch.cat(self._right)), *rows)

    def measurements(self, seed: int) -> Iterator[Measurement]:
        """Yield clean, each attack and, if there were attacks, the worst case."""
        clean = torch.cat(self._right)
        count = len(clean)
        yield Measurement(
            subject=self.name, attack="clean", access="none", seed=seed, correct=int(clean.sum()), count=count
        )
        columns = {column: torch.cat(parts) for column, parts in self._columns.items()}
        tried = [column for column in columns if column != _IN_8_BIT]
        names = ", ".join(column.title for column in tried if not column.part_of)
        rows = [(column, self._settings[column], columns[column]) for column in tried]
        if _IN_8_BIT in columns:
            own = Column(EIGHT_BIT, self._own_access)
            rows.append((own, {"attacks": names}, columns[_IN_8_BIT]))
            names += f", {EIGHT_BIT}"
        if rows:
            everything = torch.stack(list(columns.values())).all(0)
            rows.append((Column(WORST, self._own_access), {"attacks": names}, everything))
        for column, settings, right in rows:
            yield Measurement(
                subject=self.name,
                attack=column.attack,
                access=column.access,
                norm=self._threat.norm,
                eps=self._threat.eps,
                settings=settings | ({"part of": column.part_of} if column.part_of else {}),
                seed=seed,
                correct=int(right.sum()),
                count=count,
            )

    @property
    def _own_access(self) -> Access:
        kinds = {column.access for column in self._columns}
        for kind in _BEST_FIRST:
            if kind in kinds:
                return kind
        return "white-box"

    def _column(self, attack: Attack, *, settings: Settings, part_of: str = "") -> Column:
        gradients = attack.needs_gradient and self.network is not None
        column = Column(str(attack), "white-box" if gradients else "black-box", part_of)
        self._settings[column] = settings
        return column

    def _fits(self, kept: Tensor, batch: Batch) -> bool:
        """Return whether images that were kept belong to these originals."""
        same = kept.shape == batch.images.shape
        return same and bool(self._threat.contains(kept.to(batch.images), batch.images).all())

    def _source(self, attack: Attack) -> Predictor:
        if attack.needs_gradient:
            assert self.network is not None, "can_run() was asked"
            return self.network
        return self.quick

    def _classes(self, images: Tensor, batch: Batch, attack: str) -> Tensor:
        where = f"batch {batch.index} ({self.name}, {attack})"
        return predicted_classes(self.predictor, images, batch.labels, where=where)

    def _note(self, column: Column, right: Tensor) -> None:
        before = self._now.get(column, self._clean)
        self._now[column] = before & right
