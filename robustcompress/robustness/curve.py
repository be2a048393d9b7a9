"""Robust accuracy as a curve over the radius of the threat."""

from collections.abc import Sequence

import torch

from robustcompress.errors import ConfigError
from robustcompress.robustness.attacking import right_rows, survivors
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.batches import Batches, checked_batches
from robustcompress.robustness.predictor import Predictor
from robustcompress.robustness.threat import Threat


def eps_curve(
    predictor: Predictor,
    batches: Batches,
    eps: Sequence[float],
    *,
    threat: Threat,
    attack: Attack,
    seed: int,
    device: torch.device | str,
    limit: int | None = None,
) -> list[tuple[float, float]]:
    """Return ``(eps, robust accuracy)`` for each radius, ascending; at 0 it is the clean accuracy.

    An image that is broken at one radius is broken at every larger one, since the smaller ball lies in the
    larger: it is not attacked again, and the curve never rises. The result depends on what :func:`evaluate
    <robustcompress.robustness.evaluation.evaluate>` depends on, and on which radii are asked for.

    Args:
        predictor: Judged as it is: put it in eval mode first, its parameters without gradients.
        batches: Images float ``[batch, ...]`` in [0, 1] and labels int64 ``[batch]``; read once.
        eps: Radii, pixel scale 0 to 1, in any order.
        threat: Gives norm and pixel range; its own ``eps`` is not used.
        attack: The attack; a ``step_size`` of ``None`` follows the radius.
        seed: Of every random number.
        device: Where the images go.
        limit: Judge the first ``limit`` images only.

    Raises:
        ConfigError: If there is no radius, one is negative, or ``limit`` is not positive.
        DataError: If there are no batches, or one is not what it must be.
        ModelError: If a logit is not finite, the attack finds no gradient to follow or leaves the threat.
    """
    radii = sorted(set(eps))
    if not radii or radii[0] < 0:
        raise ConfigError(f"eps_curve needs one radius or more, each 0 or above; got {list(eps)}.")
    standing_at = [0] * len(radii)
    count = 0
    for batch in checked_batches(batches, device=device, limit=limit):
        count += len(batch.labels)
        standing = right_rows(predictor, batch, batch.images, attack="clean")
        for position, radius in enumerate(radii):
            if radius > 0:
                ball = threat.model_copy(update={"eps": radius})
                standing = survivors(attack, predictor, standing, threat=ball, seed=seed)
            standing_at[position] += len(standing.labels)
    return [(radius, right / count) for radius, right in zip(radii, standing_at, strict=True)]
