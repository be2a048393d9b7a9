"""Projected gradient descent (ascent of the loss) from random starts."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.ascent import Region, step_length
from robustcompress.robustness.attacks import Attack, Logits, Settings, refuse_equal_restarts
from robustcompress.robustness.probe import probe
from robustcompress.robustness.threat import Threat


class Pgd(Attack):
    """Steps of fixed length along the gradient's steepest direction, projected into the threat.

    An image counts as broken if any iterate of any restart, the start included, is misclassified; that
    iterate is returned. It then leaves the batch, so that the work shrinks with the points still standing.
    An image that no attempt broke comes back as the last iterate of the attempt that got the loss highest.
    An image that is misclassified already comes back as it is.

    Attributes:
        steps: Gradient steps of one attempt.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        restarts: Attempts, each on the points that are still standing.
        random_start: Start from a uniform point of the ball; otherwise from the image itself.
        loss: ``cross_entropy``, or ``margin`` (best wrong logit minus the right one).

    Source:
        Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 2.1.
        Differs: every iterate is judged, not the last one alone, which can only find more.
    """

    steps: int = Field(default=20, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    restarts: int = Field(default=1, ge=1)
    random_start: bool = True
    loss: Literal["cross_entropy", "margin"] = "cross_entropy"

    @model_validator(mode="after")
    def _restarts_differ(self) -> Self:
        refuse_equal_restarts(self.restarts, random_start=self.random_start)
        return self

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        result = images.detach().clone()
        first = probe(logits_of, result, labels, self.loss, with_gradient=False)
        rows = (~first.wrong).nonzero().flatten()
        highest = torch.full_like(first.loss, float("-inf"))
        for _ in range(self.restarts):
            # Drawn for the whole batch: what one image gets does not depend on which others still stand.
            start = threat.random_point(images, generator) if self.random_start else images
            if len(rows) == 0:
                break
            region = Region(images.detach()[rows], threat)
            rows = self._attempt(logits_of, region, start[rows], labels[rows], rows, result, highest)
        return result

    def _attempt(
        self,
        logits_of: Logits,
        region: Region,
        points: Tensor,
        labels: Tensor,
        rows: Tensor,
        result: Tensor,
        highest: Tensor,
    ) -> Tensor:
        """Attack ``rows`` of the batch once, write what is found to ``result``; return the rows left."""
        step_size = step_length(self.step_size, threat=region.threat, steps=self.steps)
        for step in range(self.steps + 1):
            is_last = step == self.steps
            seen = probe(logits_of, points, labels, self.loss, with_gradient=not is_last)
            loss, gradient = seen.loss, seen.gradient
            if bool(seen.wrong.any()):
                result[rows[seen.wrong]] = points[seen.wrong]
                keep = ~seen.wrong
                rows, labels, points, loss = rows[keep], labels[keep], points[keep], loss[keep]
                region, gradient = region.select(keep), gradient if is_last else gradient[keep]
            if is_last or len(rows) == 0:
                higher = loss > highest[rows]
                result[rows[higher]] = points[higher]
                highest[rows] = torch.maximum(highest[rows], loss)
                break
            points = region.climb(points, gradient, step_size)
        return rows

    def settings(self, threat: Threat) -> Settings:
        used = step_length(self.step_size, threat=threat, steps=self.steps)
        return {**super().settings(threat), "step_size": used}

    def __str__(self) -> str:
        name = "PGD" if self.loss == "cross_entropy" else "PGD-margin"
        return f"{name}-{self.steps}x{self.restarts}"
