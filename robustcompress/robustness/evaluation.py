"""Judge a network, and the files made from it, clean and under attack."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.attacking import attack_batch, right_rows, survivors
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.batches import Batch, Batches, checked_batches
from robustcompress.robustness.examples import Example, Gallery
from robustcompress.robustness.measurement import Access, Measurement
from robustcompress.robustness.predictor import Predictor, as_predictor, predicted_classes
from robustcompress.robustness.threat import Threat

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with a task's name, batches done and batches in all (0 if unknown)."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        measurements: Per subject (the network first, then each file): clean, each attack, worst case.
        examples: Adversarial images for a report, in the order of the data.
        outcomes: Per subject, pairs of ``clean`` or an attack, and bool ``[images]``: whether it was right.
    """

    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...]
    outcomes: Mapping[str, tuple[tuple[str, Tensor], ...]]


def evaluate(
    network: nn.Module,
    batches: Batches,
    *,
    threat: Threat,
    attacks: Sequence[Attack],
    seed: int,
    device: torch.device | str,
    subject: str = "network",
    files: Mapping[str, Predictor] | None = None,
    progress: OnProgress | None = None,
    keep_examples: int = 8,
    limit: int | None = None,
) -> Evaluation:
    """Measure clean accuracy and accuracy under each attack, of the network and of each file.

    Attacks see the network's gradients (``white-box``). Files are judged on the very images that the
    attacks made on the network (``transfer``): an upper bound of their robust accuracy, tight only as far
    as a file computes what the network computes.

    An image counts as right under an attack only if it is right clean as well (it lies in the threat
    itself), and in the worst case only if it is right under every attack. So ``worst case <= attack <=
    clean`` holds by construction. Each adversarial image is checked to lie in the threat.

    The result depends on the seed, on the order of the images, on the batch size (each attack draws for
    each batch from a generator of its own, seeded from ``seed``, the attack's name and the batch's index),
    on the device and on the rounding of its kernels. It does not depend on which other attacks run, nor on
    any global random state.

    Args:
        network: Images in [0, 1] to logits. Its mode, parameters and ``.grad`` stay as they are.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``; read once.
        threat: What the attacks may do.
        attacks: Any number; with none, only clean accuracy is measured.
        seed: Of every random number.
        device: Where the network is judged, such as ``cuda``.
        subject: The network's name in the measurements.
        files: Predictors of exported files, by name. They get their images on the CPU.
        progress: Called for ``clean`` and each attack after each batch.
        keep_examples: How many adversarial images to keep, at most a quarter of them from one class.
        limit: Judge the first ``limit`` images only.

    Raises:
        ConfigError: If ``limit`` is not positive or a file has the network's name.
        DataError: If there are no batches, or one is not what it must be.
        ModelError: If a logit is not finite, an attack finds no gradient to follow or leaves the threat.
    """
    files = files or {}
    if subject in files:
        raise ConfigError(f"each subject needs its own name; a file is called {subject!r} like the network.")
    parts: dict[str, list[Tensor]] = {}
    gallery = Gallery(keep_examples)
    with as_predictor(network, device) as predictor:
        judges: dict[str, Predictor] = {subject: predictor}
        judges.update({name: _on_cpu(file) for name, file in files.items()})
        for batch in checked_batches(batches, device=device, limit=limit):
            clean = _classes(judges, batch.images, batch, "clean")
            _tell(progress, "clean", batch)
            right = {name: [found == batch.labels] for name, found in clean.items()}
            for attack in attacks:
                adversarial = attack_batch(attack, predictor, batch, threat=threat, seed=seed)
                attacked = _classes(judges, adversarial, batch, str(attack))
                standing = torch.stack(right[subject]).all(0)
                gallery.add(
                    batch, adversarial, str(attack), clean, attacked, subject=subject, standing=standing
                )
                for name, found in attacked.items():
                    right[name].append(right[name][0] & (found == batch.labels))
                _tell(progress, str(attack), batch)
            for name, columns in right.items():
                parts.setdefault(name, []).append(torch.stack(columns).cpu())
    rows = {name: torch.cat(columns, dim=1) for name, columns in parts.items()}
    measurements = tuple(
        measurement
        for name in judges
        for measurement in _measurements(
            name,
            [*rows[name].sum(1).tolist(), int(rows[name].all(0).sum())],
            rows[name].shape[1],
            threat=threat,
            attacks=attacks,
            seed=seed,
            access="white-box" if name == subject else "transfer",
        )
    )
    titles = ["clean", *(str(attack) for attack in attacks)]
    outcomes = {name: tuple(zip(titles, table, strict=True)) for name, table in rows.items()}
    return Evaluation(measurements, tuple(gallery.examples), outcomes)


def robust_accuracy(
    predictor: Predictor,
    batches: Batches,
    *,
    threat: Threat,
    attack: Attack,
    seed: int,
    device: torch.device | str,
    limit: int | None = None,
) -> tuple[float, float]:
    """Return the fractions of images that are right clean, and right clean and under ``attack``.

    Only images that are right clean are attacked. The result depends on what that of
    :func:`evaluate` depends on.

    Args:
        predictor: Judged as it is: put it in eval mode first, its parameters without gradients.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``; read once.
        threat: What the attack may do.
        attack: The attack.
        seed: Of every random number.
        device: Where the images go.
        limit: Judge the first ``limit`` images only.

    Raises:
        ConfigError: If ``limit`` is not positive.
        DataError: If there are no batches, or one is not what it must be.
        ModelError: If a logit is not finite, the attack finds no gradient to follow or leaves the threat.
    """
    clean, robust, count = robust_counts(
        predictor, batches, threat=threat, attack=attack, seed=seed, device=device, limit=limit
    )
    return clean / count, robust / count


def robust_counts(
    predictor: Predictor,
    batches: Batches,
    *,
    threat: Threat,
    attack: Attack,
    seed: int,
    device: torch.device | str,
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[int, int, int]:
    """Return how many images are right clean, how many under ``attack`` too, and how many there are.

    Args:
        predictor: This and the next six are those of :func:`robust_accuracy`.
        batches: Read once.
        threat: What the attack may do.
        attack: The attack.
        seed: Of every random number.
        device: Where the images go.
        limit: Judge the first ``limit`` images only.
        share: (i, n) judges the i-th of every n batches. The n shares add up to the whole, for the random
            numbers of a batch depend on its place alone.

    Raises:
        ConfigError, DataError, ModelError: As for :func:`robust_accuracy`.
    """
    clean, robust, count = 0, 0, 0
    for batch in checked_batches(batches, device=device, limit=limit):
        if batch.index % share[1] != share[0]:
            continue
        standing = right_rows(predictor, batch, batch.images, attack="clean")
        count += len(batch.labels)
        clean += len(standing.labels)
        robust += len(survivors(attack, predictor, standing, threat=threat, seed=seed).labels)
    return clean, robust, count


def _classes(judges: Mapping[str, Predictor], images: Tensor, batch: Batch, attack: str) -> dict[str, Tensor]:
    """Return each judge's predicted classes, int64 ``[batch]`` on the labels' device."""
    return {
        name: predicted_classes(judge, images, batch.labels, where=f"batch {batch.index} ({name}, {attack})")
        for name, judge in judges.items()
    }


def _on_cpu(file: Predictor) -> Predictor:
    return lambda images: file(images.cpu())


def _tell(progress: OnProgress | None, task: str, batch: Batch) -> None:
    if progress is not None:
        progress(task, batch.index + 1, batch.total)


def _measurements(
    name: str,
    correct: Sequence[int],
    count: int,
    *,
    threat: Threat,
    attacks: Sequence[Attack],
    seed: int,
    access: Access,
) -> Iterator[Measurement]:
    """Yield clean, each attack and, if there are attacks, the worst case of one subject."""
    yield Measurement(subject=name, attack="clean", access="none", seed=seed, correct=correct[0], count=count)
    named = [(str(attack), attack.settings(threat)) for attack in attacks]
    if named:
        named.append(("worst case", {"attacks": ", ".join(title for title, _ in named)}))
    for (title, settings), right in zip(named, correct[1 : len(named) + 1], strict=True):
        yield Measurement(
            subject=name,
            attack=title,
            access=access,
            norm=threat.norm,
            eps=threat.eps,
            settings=settings,
            seed=seed,
            correct=right,
            count=count,
        )
