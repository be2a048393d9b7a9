"""Averages of the weights that training goes through; they are what is judged and kept."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from robustcompress.training.step import Overrides


class Averaging(BaseModel):
    """Which average of the weights goes on, in place of the last ones.

    Averaged is everything that learns (weights, or scores and what learns beside them) and the batch
    statistics, with the same factors; counts are taken over. Training itself goes on from the weights as
    they are. Every epoch is judged, and selected, by the average. Where scores learn, masks are made of the
    averaged scores, with exactly the sparsity asked for; fixed masks stay as they are.

    Attributes:
        kind: ``ema`` forgets (a moving average), ``mean`` weighs every step alike.
        decay: Share of the ``ema`` that stays at each step, 0 to 1. After n steps it is
            ``(1 + n) / (10 + n)`` if that is less, so that the first weights are soon forgotten.
        start: Fraction of the stage that goes by before anything is averaged.

    Source:
        ``ema``: Polyak and Juditsky 1992, https://doi.org/10.1137/0330046, with the factor of TensorFlow's
        ``ExponentialMovingAverage``; for robust training Rebuffi et al. 2021,
        https://arxiv.org/abs/2103.01946. ``mean``: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407.
        Differs: every step counts, not every epoch, and batch statistics are averaged too, instead of
        computed anew with a pass over the images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["ema", "mean"] = "ema"
    decay: float = Field(default=0.999, ge=0, lt=1)
    start: float = Field(default=0.0, ge=0, lt=1)

    def share_of_new(self, step: int, steps: int) -> float:
        """Return what the weights after a step count in the average, 0 to 1.

        Args:
            step: Counts from 0 over the whole stage.
            steps: Of the stage.
        """
        averaged = step - self.start * steps
        if averaged < 0:
            return 1.0
        if self.kind == "mean":
            return 1 / (int(averaged) + 1)
        return 1 - min(self.decay, (1 + averaged) / (10 + averaged))


class WeightAverage:
    """The average of one stage, beside the weights that it averages.

    Args:
        settings: Which average.
        model: Parameters that require gradients, and buffers, are averaged.
        overrides: What it yields as learnable is averaged too.
    """

    def __init__(self, settings: Averaging, model: nn.Module, overrides: "Overrides | None") -> None:
        self._settings = settings
        self._overrides = overrides
        self._live: dict[str, Tensor] = {}
        self._live |= {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
        self._live |= {f"model.{name}": buffer for name, buffer in model.named_buffers()}
        beside = list(overrides.learnable()) if overrides else []
        self._beside = bool(beside)
        self._live |= {f"beside.{index}": parameter for index, parameter in enumerate(beside)}
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Take the weights after ``step`` into the average.

        Args:
            step: Counts from 0 over the whole stage.
            steps: Of the stage.
        """
        share = self._settings.share_of_new(step, steps)
        for name, tensor in self._live.items():
            average = self._average.get(name)
            if average is None:
                self._average[name] = tensor.detach().clone()
            elif share < 1 and tensor.is_floating_point():
                average.lerp_(tensor.detach(), share)
            else:
                average.copy_(tensor)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Generator[None]:
        """Put the average in the weights' place within the context, then the weights back bit for bit."""
        weights = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        masks = {name: t.clone() for name, t in self._overrides.state().items()} if self._overrides else {}
        self._place(self._average)
        if self._overrides and self._beside:
            self._overrides.after_step()  # masks follow the scores
        try:
            yield
        finally:
            self._place(weights)
            if self._overrides and self._beside:
                self._overrides.restore(masks)

    def _place(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._live[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return dict(self._average)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` returned."""
        self._average = {name: tensor.clone() for name, tensor in state.items()}
