"""What the prune stage needs before it trains: first scores from gradients, masks that move."""

from collections.abc import Sequence
from contextlib import closing
from typing import cast

import torch
from torch import Tensor
from torch.func import functional_call

from robustcompress.pipeline.context import Context
from robustcompress.pipeline.teaching import teacher_for
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.moving import MovingMasks
from robustcompress.pruning.scores import GradientScore, MovingScore
from robustcompress.robustness.evaluation import robust_counts
from robustcompress.seeding import derive_seed, generator_for
from robustcompress.training.gate_gradients import GateMeasurement
from robustcompress.training.step import autocast
from robustcompress.training.working import shared_copy


def first_scores(context: Context) -> Sequence[Tensor] | None:
    """Return the first scores, one tensor a site, of a score that needs more than the weights.

    Scores from gradients are measured on training batches; those of masks that move may be drawn at random.
    ``None`` for all others.

    Raises:
        TrainingError: If gradients are not finite.
    """
    score = context.recipe.score
    if isinstance(score, GradientScore):
        return _measured(context, score)
    if isinstance(score, MovingScore):
        parameters = dict(context.model.named_parameters())
        return [
            score.first(
                site.saliency(parameters),
                generator_for("cpu", context.recipe.seed, "prune", "first masks", site.name),
            )
            for site in context.plan().sites
        ]
    return None


def _measured(context: Context, score: GradientScore) -> list[Tensor]:
    recipe = context.recipe
    sites = context.plan().sites
    with closing(context.train.rebatched(recipe.prune.batch_size)) as source:
        measurement = GateMeasurement(
            source=source,
            objective=recipe.objective_of("prune"),
            threat=recipe.threat,
            seed=derive_seed(recipe.seed, "prune", "gate gradients"),
            device=torch.device(context.device),
            precision=recipe.precision,
            epochs=recipe.prune.epochs,
            step=recipe.step,
            workers=context.workers,
            warn=context.warn,
            teacher=teacher_for(context, "prune"),
        )
        found = measurement.run(context.model, sites, score.batches)
    return [score.from_gradients(gradients.mean, gradients.mean_square) for gradients in found]


def moving_masks(context: Context, masking: Masking, score: MovingScore) -> MovingMasks:
    """Return ``masking`` as masks that move over the prune stage; the model loses what they remove.

    Raises:
        ConfigError: If pattern or budget does not let masks move.
    """
    recipe = context.recipe
    source = context.train.rebatched(recipe.prune.batch_size)
    steps_a_batch = recipe.objective_of("prune").steps_a_batch
    epochs = recipe.prune.divided(steps_a_batch).epochs
    return MovingMasks(
        masking,
        score,
        parameters=dict(context.model.named_parameters()),
        steps=source.steps() * steps_a_batch * epochs,
        training_robust=lambda: training_robust(context, score.judged_images),
    )


def training_robust(context: Context, images: int) -> float:
    """Return accuracy on so many training images under the validation attack, 0 to 1.

    They are the first of the data's own order, without augmentation. The model's weights are taken as they
    are.
    """
    recipe, workers = context.recipe, context.workers
    network = shared_copy(context.model)
    constant = {name: parameter.detach() for name, parameter in context.model.named_parameters()}

    def logits_of(inputs: Tensor) -> Tensor:
        with autocast(recipe.precision, context.device):
            return cast(Tensor, functional_call(network, constant, (inputs,))).float()

    counts = robust_counts(
        logits_of,
        context.train.in_order(),
        threat=recipe.threat,
        attack=recipe.validation.attack,
        seed=derive_seed(recipe.seed, "training gap"),
        device=context.device,
        limit=images,
        share=(workers.rank, workers.size),
    )
    _, withstood, judged = (workers.total(number) for number in counts)
    return withstood / judged
