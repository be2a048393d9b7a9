"""Judge a network, and the files made from it, clean and under attack."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.attacking import right_rows, survivors
from robustcompress.robustness.attacks import Attack, Ensemble
from robustcompress.robustness.batches import Batch, Batches, checked_batches
from robustcompress.robustness.examples import Example, Gallery
from robustcompress.robustness.measurement import Measurement
from robustcompress.robustness.predictor import Predictor, as_predictor
from robustcompress.robustness.private import in_parts, to_follow
from robustcompress.robustness.reachable import class_excluder
from robustcompress.robustness.subject import Store, Subject
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat

OnProgress: TypeAlias = Callable[[str, int, int, str], None]
"""Called with a task's name, batches done, batches in all (0 if unknown), and images still standing."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        measurements: Per subject (the network first, then each file): clean, each attack, all of them in
            8-bit pixels, worst case.
        examples: Adversarial images for a report, in the order of the data.
        outcomes: Per subject, pairs of ``clean`` or an attack, and bool ``[images]``: whether it was right.
        labels: The right classes, int64 ``[images]``.
        skipped: Attacks that could not be run on a subject, and why, in words.
    """

    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...]
    outcomes: Mapping[str, tuple[tuple[str, Tensor], ...]]
    labels: Tensor
    skipped: tuple[str, ...] = ()

    def standing(self, subject: str) -> Tensor:
        """Return which images the subject had right whatever was tried; bool ``[images]``."""
        return torch.stack([right for _, right in self.outcomes[subject]]).all(0)


def evaluate(
    network: nn.Module | Target,
    batches: Batches,
    *,
    threat: Threat,
    attacks: Sequence[Attack],
    seed: int,
    device: torch.device | str,
    subject: str = "network",
    files: Mapping[str, Predictor | Target] | None = None,
    progress: OnProgress | None = None,
    keep_examples: int = 8,
    limit: int | None = None,
    store: Store | None = None,
) -> Evaluation:
    """Measure clean accuracy and accuracy under each attack, of the network and of each file.

    Attacks follow the network's gradients (``white-box``), on a private copy whose batch normalisation is
    folded; whatever they make is scored on the network itself. Files are judged on the very images that the
    attacks made on the network (``transfer``). That alone is an upper bound of their robust accuracy, tight
    only as far as a file computes what the network computes: a file that is given as a
    :class:`~robustcompress.robustness.target.Target` is attacked itself, too, through its differentiable twin
    (``white-box``), and by attacks that need no gradients in its own runtime (``black-box``).

    Every adversarial image is also scored with its pixels rounded to 8 bits, within the threat.

    An image counts as right under an attack only if it is right clean as well (it lies in the threat
    itself), and in the worst case only if it is right whatever was tried on the subject. So ``worst case <=
    attack <= clean`` holds by construction. Each adversarial image is checked to lie in the threat.

    An ensemble's members see the images that are still standing. Where bounds prove something about a
    network, they spare the ensemble what cannot succeed: images whose class is proven, and target classes
    that are excluded.

    The result depends on the seed, on the order of the images, on the batch size (each attack draws for
    each batch from a generator of its own, seeded from ``seed``, the attack's name and the batch's index),
    on the device and on the rounding of its kernels. It does not depend on which other attacks run, nor on
    any global random state.

    Args:
        network: Images in [0, 1] to logits. Its mode, parameters and ``.grad`` stay as they are. Or a target:
            a runtime's session that has a twin or has none.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``; read once.
        threat: What the attacks may do.
        attacks: Any number; with none, only clean accuracy is measured.
        seed: Of every random number.
        device: Where the network is judged, such as ``cuda``.
        subject: The network's name in the measurements.
        files: Exported files by name: predictors, judged by transfer alone, or targets. A predictor gets its
            images on the CPU.
        progress: Called for ``clean`` and each attack after each batch.
        keep_examples: How many adversarial images to keep, at most a quarter of them from one class.
        limit: Judge the first ``limit`` images only.
        store: Keeps what members of ensembles made, and is asked for it first.

    Raises:
        ConfigError: If ``limit`` is not positive, a file has the network's name, or the network is a target
            on which none of the attacks can run.
        DataError: If there are no batches, or one is not what it must be.
        ModelError: If a logit is not finite, an attack finds no gradient to follow or leaves the threat.
    """
    files = files or {}
    if subject in files:
        raise ConfigError(f"each subject needs its own name; a file is called {subject!r} like the network.")
    _check_runnable(network, attacks)
    gallery = Gallery(keep_examples)
    tell = _Teller(progress)
    with ExitStack() as stack:
        subjects: list[Subject] = []
        labels: list[Tensor] = []
        for batch in checked_batches(batches, device=device, limit=limit):
            if not subjects:
                bounded = threat if any(isinstance(attack, Ensemble) for attack in attacks) else None
                given: list[tuple[str, nn.Module | Predictor | Target]] = [(subject, network), *files.items()]
                subjects = [
                    _subject(stack, name, item, batch, threat=threat, bounded=bounded, is_file=place > 0)
                    for place, (name, item) in enumerate(given)
                ]
            first, *others = subjects
            labels.append(batch.labels.cpu())
            clean = {judged.name: judged.begin(batch) for judged in subjects}
            tell("clean", batch, first.standing)
            for attack in filter(first.can_run, attacks):
                for attempt in first.attempts(attack, batch, seed=seed, store=store):
                    standing = first.standing
                    attacked = {first.name: first.judge(attempt.column, attempt.adversarial, batch)}
                    for other in others:
                        column = other.transferred(attempt)
                        attacked[other.name] = other.judge(column, attempt.adversarial, batch)
                    gallery.add(
                        batch,
                        attempt.adversarial,
                        str(attack),
                        clean,
                        attacked,
                        subject=first.name,
                        standing=standing,
                    )
                    tell(attempt.column.title, batch, first.right(attempt.column))
            for other in others:
                if not isinstance(files[other.name], Target):
                    continue
                for attack in filter(other.can_run, attacks):
                    for attempt in other.attempts(attack, batch, seed=seed, store=store):
                        other.judge(attempt.column, attempt.adversarial, batch)
                        title = f"{attempt.column.title} on {other.name}"
                        tell(title, batch, other.right(attempt.column))
            for judged in subjects:
                judged.finish()
    targets = {subject: network, **files}
    return Evaluation(
        tuple(measurement for judged in subjects for measurement in judged.measurements(seed)),
        tuple(gallery.examples),
        {judged.name: judged.outcomes() for judged in subjects},
        torch.cat(labels),
        tuple(
            f"{attack} was not run on {judged.name}: {target.reason or 'it has no gradients'}"
            for judged in subjects
            if isinstance(target := targets[judged.name], Target)
            for attack in attacks
            if not judged.can_run(attack)
        ),
    )


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


class _Teller:
    """Passes on how far an evaluation is, and how many images stand."""

    def __init__(self, progress: OnProgress | None) -> None:
        self._progress = progress
        self._standing: dict[str, int] = {}
        self._judged: dict[str, int] = {}

    def __call__(self, task: str, batch: Batch, standing: Tensor) -> None:
        if self._progress is None:
            return
        self._standing[task] = self._standing.get(task, 0) + int(standing.sum())
        self._judged[task] = self._judged.get(task, 0) + len(standing)
        note = f"{self._standing[task]} of {self._judged[task]} right"
        self._progress(task, batch.index + 1, batch.total, note)


def _check_runnable(network: nn.Module | Target, attacks: Sequence[Attack]) -> None:
    """Check that there is an attack that a target without gradients can undergo.

    Raises:
        ConfigError: If there are attacks, and none can be run.
    """
    if not isinstance(network, Target) or network.twin is not None or not attacks:
        return
    if all(attack.needs_gradient and not isinstance(attack, Ensemble) for attack in attacks):
        raise ConfigError(
            f"{', '.join(map(str, attacks))}: all need gradients, and there are none: "
            f"{network.reason or 'the target has no twin'}. Add an attack that needs none: square."
        )


def _subject(
    stack: ExitStack,
    name: str,
    given: nn.Module | Predictor | Target,
    batch: Batch,
    *,
    threat: Threat,
    bounded: Threat | None,
    is_file: bool,
) -> Subject:
    """Return who is judged, with the copies that attacks look at.

    Args:
        stack: Puts a module back as it was in the end.
        name: In the measurements.
        given: A module, a predictor, or a target.
        batch: The first images of the data.
        threat: Of the attacks.
        bounded: The threat whose classes bounds may exclude, if it is worth while.
        is_file: Whether ``given`` gets its images on the CPU.
    """
    place = batch.images.device
    if isinstance(given, nn.Module) and not is_file:
        served = stack.enter_context(as_predictor(given, place))
        copy = to_follow(served, batch.images)
        excluder = None if bounded is None else class_excluder(copy, batch.images, bounded)
        return Subject(name, served, network=copy, quick=in_parts(copy), threat=threat, excluder=excluder)
    target = given if isinstance(given, Target) else Target(_as_function(given))
    predictor = target.predictor
    if isinstance(predictor, nn.Module):
        predictor = stack.enter_context(as_predictor(predictor, place))
    elif is_file:
        predictor = _on_cpu(predictor)
    twin, excluder = target.twin, None
    if twin is not None:
        twin = to_follow(stack.enter_context(as_predictor(twin, place)), batch.images)
        excluder = None if bounded is None else class_excluder(twin, batch.images, bounded)
    quick = target.quick or (in_parts(twin) if twin is predictor and twin is not None else predictor)
    return Subject(name, predictor, network=twin, quick=quick, threat=threat, excluder=excluder)


def _as_function(given: nn.Module | Predictor | Target) -> Predictor:
    assert not isinstance(given, Target)
    return given


def _on_cpu(file: Predictor) -> Predictor:
    return lambda images: file(images.cpu())
