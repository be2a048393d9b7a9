"""Learning rates as a function of where in the stage a step stands."""

import math

from robustcompress.training.settings import StageSettings


def learning_rate(settings: StageSettings, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        settings: Of the stage.
        step: Counts from 0 over the whole stage.
        steps_per_epoch: Of the training data.
    """
    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "one_cycle":
        return settings.lr * (1 - progress)
    if settings.schedule == "step":
        passed = sum(progress >= point for point in settings.milestones)
        return settings.lr * settings.gamma**passed
    return settings.lr
