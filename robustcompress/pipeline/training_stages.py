"""The three stages that train: the same loop, told what learns."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from robustcompress.pipeline.constraints import within_constraints
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.first_masks import first_scores, moving_masks
from robustcompress.pipeline.teaching import teacher_for
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.scores import MovingScore
from robustcompress.report.model import magnitude_histogram
from robustcompress.storage.artifact import Artifact
from robustcompress.training.loop import Training
from robustcompress.training.quantisation import QuantisedWeights
from robustcompress.training.records import Trained
from robustcompress.training.settings import StageSettings
from robustcompress.training.step import Overrides

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def pretrain(context: Context, before: Artifact) -> Artifact:
    """Train every weight under the robust objective."""
    context.load_weights(before)
    learn(context.model, weights=True, norms=True)
    trained = _train(context, "pretrain", context.recipe.settings_of("pretrain"), None, before)
    return context.artifact("pretrain", context.model, metrics=_metrics(trained))


def prune(context: Context, before: Artifact) -> Artifact:
    """Find the masks: scores learn while the weights stand still, or masks move while weights train.

    Scores that do neither give their masks at once, and nothing is trained.
    """
    context.load_weights(before)
    initial = first_scores(context)
    masking = within_constraints(context, context.masking(initial=initial), initial=initial)
    dense = {name: tensor.detach().clone() for name, tensor in context.model.named_parameters()}
    trained = Trained((), None, 0.0)
    score, settings = context.recipe.score, context.recipe.settings_of("prune")
    if isinstance(score, MovingScore) and settings.epochs:
        learn(context.model, weights=True, norms=True)
        trained = _train(context, "prune", settings, moving_masks(context, masking, score), before)
        masking.bake(context.model)
    elif masking.learns and settings.epochs:
        learn(context.model, weights=False, norms=context.recipe.prune_norms)
        trained = _train(context, "prune", settings, masking, before)
    metrics = {**_metrics(trained), "histograms": histograms(masking, dense)}
    return context.artifact(
        "prune",
        context.model,
        metrics=metrics,
        sparsity=site_counts(masking),
        extra_tensors=masking.state(),
    )


def finetune(context: Context, before: Artifact) -> Artifact:
    """Train the weights that were kept; masks, if there are any, stay as they are.

    Where the recipe quantises, the weights that go on are those that were trained on: rounded.
    """
    context.load_weights(before)
    masking: Masking | None = None
    if before.extra_tensors:
        masking = context.masking()
        masking.restore(before.extra_tensors)
        masking.freeze()
        masking.bake(context.model)
    learn(context.model, weights=True, norms=True)
    settings = context.recipe.settings_of("finetune")
    rounding = QuantisedWeights(masking, context.model, settings.quantise) if settings.quantise else None
    trained = _train(context, "finetune", settings, rounding or masking, before)
    if masking:
        masking.bake(context.model)
    if rounding:
        rounding.bake(context.model)
    return context.artifact(
        "finetune",
        context.model,
        metrics=_metrics(trained),
        sparsity=site_counts(masking) if masking else {},
        extra_tensors=masking.state() if masking else {},
    )


def learn(model: nn.Module, *, weights: bool, norms: bool) -> None:
    """Say which parameters of ``model`` require gradients."""
    for module in model.modules():
        wanted = norms if isinstance(module, NORMS) else weights
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(wanted)


def site_counts(masking: Masking) -> dict[str, dict[str, int]]:
    """Return size and kept units of every site, by name."""
    return {
        site.name: {"size": site.units, "kept": int(mask.sum())}
        for site, mask in zip(masking.sites, masking.masks, strict=True)
    }


def histograms(masking: Masking, dense: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return for every site how kept and removed units spread over magnitude before finetuning."""
    found: dict[str, Any] = {}
    for site, mask in zip(masking.sites, masking.masks, strict=True):
        saliency = site.saliency(dense).reshape(site.shape)
        found[site.name] = magnitude_histogram(saliency, mask).model_dump(mode="json")
    return found


def _train(
    context: Context, stage: str, settings: StageSettings, overrides: Overrides | None, before: Artifact
) -> Trained:
    recipe = context.recipe
    return Training(
        stage=stage,
        model=context.model,
        overrides=overrides,
        source=context.train.rebatched(settings.batch_size),
        validation=context.validation,
        objective=recipe.objective_of(stage),
        threat=recipe.threat,
        validation_threat=recipe.threat,
        settings=settings,
        judging=recipe.validation,
        seed=recipe.seed,
        device=torch.device(context.device),
        precision=recipe.precision,
        step=recipe.step,
        events=context.events,
        workers=context.workers,
        checkpoint=context.run_dir / "checkpoints" / stage if context.workers.is_main else None,
        checkpoint_steps=recipe.checkpoint_steps,
        checkpoint_seconds=recipe.checkpoint_seconds,
        keep_checkpoints=recipe.keep_checkpoints,
        stop=context.stop,
        teacher=teacher_for(context, stage, before),
    ).run()


def _metrics(trained: Trained) -> dict[str, Any]:
    return {
        "seconds": trained.seconds,
        "input_share": trained.input_share,
        "peak_bytes": trained.peak_bytes,
        "history": [asdict(record) for record in trained.history],
        "selected": asdict(trained.selected) if trained.selected else None,
        "teacher": trained.teacher,
    }
