"""PGD on the margin of Carlini and Wagner: the best wrong logit minus the right one."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.ascent import Region, step_length
from robustcompress.robustness.attacks import Attack, Logits, Settings, refuse_equal_restarts
from robustcompress.robustness.probe import probe
from robustcompress.robustness.threat import Threat


class Cw(Attack):
    """Steps of fixed length that raise the best wrong logit over the right one: "CW-PGD".

    An image leaves the batch once the wrong logit lies above the right one by more than ``confidence``. Every
    image comes back as the iterate, of any attempt, with the largest margin: misclassified if any iterate
    was. An image that is misclassified already comes back as it is.

    Attributes:
        steps: Gradient steps of one attempt.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        restarts: Attempts, each on the points that are still standing.
        random_start: Start from a uniform point of the ball; otherwise from the image itself.
        confidence: How far, in logits, the wrong class must win (kappa). More than 0 does not break more
            images of this network, but makes images that break others rather.

    Source:
        Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644, f6 and section VIII-D (kappa), as the loss of
        Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 5.
        Differs: every iterate is judged, not the last one alone.
    """

    steps: int = Field(default=30, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    restarts: int = Field(default=1, ge=1)
    random_start: bool = True
    confidence: float = Field(default=0.0, ge=0, allow_inf_nan=False)

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
        images = images.detach()
        result = images.clone()
        first = probe(logits_of, result, labels, "margin", with_gradient=False)
        widest = torch.where(first.wrong, float("inf"), float("-inf")).to(first.loss)
        for _ in range(self.restarts):
            # Drawn for the whole batch: what one image gets does not depend on which others still stand.
            start = threat.random_point(images, generator) if self.random_start else images
            rows = (widest <= self.confidence).nonzero().flatten()
            if len(rows) == 0:
                break
            self._attempt(
                logits_of, Region(images[rows], threat), start[rows], labels[rows], rows, result, widest
            )
        return result

    def _attempt(
        self,
        logits_of: Logits,
        region: Region,
        points: Tensor,
        labels: Tensor,
        rows: Tensor,
        result: Tensor,
        widest: Tensor,
    ) -> None:
        """Attack ``rows`` of the batch once; raise ``widest``, the margin of each ``result``."""
        step_size = step_length(self.step_size, threat=region.threat, steps=self.steps)
        for step in range(self.steps + 1):
            is_last = step == self.steps
            seen = probe(logits_of, points, labels, "margin", with_gradient=not is_last)
            wider = seen.loss > widest[rows]
            result[rows[wider]] = points[wider]
            widest[rows] = torch.maximum(widest[rows], seen.loss)
            if is_last:
                return
            keep = ~(seen.wrong & (seen.loss > self.confidence))
            gradient = seen.gradient
            if not bool(keep.all()):
                rows, labels, points, gradient = rows[keep], labels[keep], points[keep], gradient[keep]
                region = region.select(keep)
                if len(rows) == 0:
                    return
            points = region.climb(points, gradient, step_size)

    def settings(self, threat: Threat) -> Settings:
        used = step_length(self.step_size, threat=threat, steps=self.steps)
        return {**super().settings(threat), "step_size": used}

    def __str__(self) -> str:
        return f"CW-{self.steps}x{self.restarts}" + (f"-k{self.confidence:g}" if self.confidence else "")
