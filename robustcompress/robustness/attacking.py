"""Run an attack on one batch, and trust nothing that comes back unchecked."""

import torch
from torch import Tensor

from robustcompress.errors import DataError, ModelError
from robustcompress.robustness.attacks import Attack, TargetedAttack
from robustcompress.robustness.batches import Batch
from robustcompress.robustness.predictor import Predictor, predicted_classes
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import generator_for


def attack_batch(
    attack: Attack,
    predictor: Predictor,
    batch: Batch,
    *,
    threat: Threat,
    seed: int,
    reachable: Tensor | None = None,
    part_of: str = "",
) -> Tensor:
    """Return what ``attack`` makes of the batch's images: each one proven to lie in ``threat``.

    Args:
        attack: The attack.
        predictor: What it asks.
        batch: Images and labels.
        threat: What it may do.
        seed: Of every random number.
        reachable: Classes that bounds did not exclude, bool ``[batch, classes]``: targeted attacks aim at no
            other.
        part_of: The ensemble that the attack is a member of, for random numbers of its own.

    Raises:
        DataError: If an image lies outside the threat's pixel range to begin with.
        ModelError: If the attack finds no gradient to follow, or returns an image outside the threat.
    """
    low, high = (float(end) for end in torch.aminmax(batch.images))
    if low < threat.lower or high > threat.upper:
        raise DataError(
            f"batch {batch.index}: the threat allows pixels of {threat.lower:g} to {threat.upper:g}; found "
            f"{low:.4g} to {high:.4g}. Give the threat the pixel range of the images."
        )
    place = (part_of, str(attack), batch.index) if part_of else (str(attack), batch.index)
    generator = generator_for(batch.images.device, seed, *place)
    given = (predictor, batch.images, batch.labels)
    if isinstance(attack, TargetedAttack):
        adversarial = attack.run(*given, threat=threat, generator=generator, reachable=reachable)
    else:
        adversarial = attack.run(*given, threat=threat, generator=generator)
    if adversarial.shape != batch.images.shape:
        raise ModelError(
            f"batch {batch.index}: {attack} must return images of shape {list(batch.images.shape)}; got "
            f"{list(adversarial.shape)}. Correct the attack."
        )
    outside = ~threat.contains(adversarial, batch.images)
    if bool(outside.any()):
        furthest = float(threat.distances(adversarial, batch.images)[outside].max())
        raise ModelError(
            f"batch {batch.index}: {attack} returned {int(outside.sum())} images outside {threat} (moved by "
            f"up to {furthest:.6g}). Correct the attack."
        )
    return adversarial.detach()


def right_rows(predictor: Predictor, batch: Batch, images: Tensor, *, attack: str) -> Batch:
    """Return the rows of ``batch`` whose ``images`` (its own or what ``attack`` made) are classified right.

    Raises:
        DataError: If the output is not ``[batch, classes]`` or a label is out of range.
        ModelError: If a logit is not a finite number.
    """
    where = f"batch {batch.index} ({attack})"
    keep = predicted_classes(predictor, images, batch.labels, where=where) == batch.labels
    return Batch(batch.index, batch.images[keep], batch.labels[keep], batch.total)


def survivors(attack: Attack, predictor: Predictor, batch: Batch, *, threat: Threat, seed: int) -> Batch:
    """Return the rows of ``batch``, as they are, that are classified right after ``attack``.

    Raises:
        DataError: As :func:`attack_batch` and :func:`right_rows`.
        ModelError: As :func:`attack_batch` and :func:`right_rows`.
    """
    if len(batch.labels) == 0:
        return batch
    adversarial = attack_batch(attack, predictor, batch, threat=threat, seed=seed)
    return right_rows(predictor, batch, adversarial, attack=str(attack))
