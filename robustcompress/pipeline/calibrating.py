"""Images from which an export learns the ranges of activations: half clean, half attacked."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustcompress.pipeline.context import Context
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.batches import checked_batches
from robustcompress.robustness.predictor import as_predictor
from robustcompress.seeding import derive_seed, generator_for

CALIBRATION_IMAGES = 256
"""Half of them clean, and the same ones attacked."""
_STEPS = 10


def calibration_of(context: Context, network: nn.Module) -> Callable[[], Tensor]:
    """Return a function that makes calibration images for exports of ``network``, once.

    Held-out images of the run (those that select its epochs) are attacked under the run's threat by PGD on
    the network, because attacked images reach activations that clean ones do not. Equal runs give equal
    images.

    Args:
        context: Of the run.
        network: What is exported. It is not changed.

    Returns:
        A function that returns float32 ``[n, ...]`` on the CPU: clean images, then the same ones attacked.
    """
    made: list[Tensor] = []

    def calibration() -> Tensor:
        if not made:
            made.append(_made(context, network))
        return made[0]

    return calibration


def _made(context: Context, network: nn.Module) -> Tensor:
    clean: list[Tensor] = []
    attacked: list[Tensor] = []
    attack, seed = Pgd(steps=_STEPS), derive_seed(context.recipe.seed, "calibration")
    batches = checked_batches(context.validation, device=context.device, limit=CALIBRATION_IMAGES // 2)
    with as_predictor(network, context.device) as predictor:
        for batch in batches:
            found = attack.run(
                predictor,
                batch.images,
                batch.labels,
                threat=context.recipe.threat,
                generator=generator_for(context.device, seed, batch.index),
            )
            clean.append(batch.images.cpu())
            attacked.append(found.cpu())
    return torch.cat([*clean, *attacked]).float()
