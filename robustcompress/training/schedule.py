"""Learning rates as a function of where in the stage a step stands."""

import math

from robustcompress.training.settings import StageSettings


def learning_rate(settings: StageSettings, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        settings: Of the stage.
        step: Counts from 0 over the whole stage.
        steps_per_epoch: Of the training data.

    Source:
        ``one_cycle``: Wong et al. 2020, https://arxiv.org/abs/2001.03994, section 5 (cyclic, piecewise
        linear); ``one_cycle_cosine``: Smith and Topin 2017, https://arxiv.org/abs/1708.07120, in the form of
        torch's ``OneCycleLR``.
        Differs: warmups count from the first step, whose rate is above zero.
    """
    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if settings.schedule == "one_cycle_cosine":
        return settings.lr * _cosine_cycle(step, warmup, total)
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


def _cosine_cycle(step: int, warmup: int, total: int) -> float:
    """Return the share of the largest rate: half a wave up over ``warmup`` steps, half a wave down."""
    if step < warmup:
        return _half_wave(1 / 25, 1.0, step / warmup)
    return _half_wave(1.0, 1 / 250_000, (step - warmup) / max(1, total - 1 - warmup))


def _half_wave(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
