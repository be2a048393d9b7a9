"""Auto-PGD: projected gradient ascent with momentum that finds its step size itself."""

from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.ascent import Region
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.probe import Probe, probe
from robustcompress.robustness.threat import Threat


@dataclass
class _Path:
    """Where the attempt on each image stands; every tensor's first dimension is the image."""

    region: Region
    rows: Tensor
    labels: Tensor
    points: Tensor
    previous: Tensor
    loss: Tensor
    gradient: Tensor
    best_points: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    step_size: Tensor
    rises: Tensor
    loss_at_checkpoint: Tensor
    was_halved: Tensor

    @classmethod
    def begin(cls, region: Region, start: Tensor, labels: Tensor, rows: Tensor, seen: Probe) -> Self:
        """Return the path that ``seen`` opens at ``start``."""
        return cls(
            region=region,
            rows=rows,
            labels=labels,
            points=start,
            previous=start,
            loss=seen.loss,
            gradient=seen.gradient,
            best_points=start,
            best_loss=seen.loss,
            best_gradient=seen.gradient,
            step_size=torch.full_like(region.threat.lengths(start), 2 * region.threat.eps),
            rises=torch.zeros_like(rows),
            loss_at_checkpoint=seen.loss,
            # Condition 2 (neither step size nor best loss changed) is not asked at the first checkpoint.
            was_halved=torch.ones_like(seen.wrong),
        )

    def move(self, momentum: float) -> None:
        """Take one step: ``momentum`` of the new direction, the rest of the step before."""
        target = self.region.climb(self.points, self.gradient, self.step_size)
        blend = momentum * (target - self.points) + (1 - momentum) * (self.points - self.previous)
        self.previous, self.points = self.points, self.region.project(blend.add_(self.points))

    def record(self, seen: Probe) -> None:
        """Take note of what was seen at the points that the last move reached."""
        self.rises += seen.loss > self.loss
        self.loss = seen.loss
        better = seen.loss > self.best_loss
        self.best_loss = torch.maximum(self.best_loss, seen.loss)
        self.best_points = torch.where(_like(better, self.points), self.points, self.best_points)
        if seen.gradient.numel():
            self.gradient = seen.gradient
            self.best_gradient = torch.where(_like(better, self.points), seen.gradient, self.best_gradient)

    def halve_where_stalled(self, least_rises: float) -> None:
        """Halve the step, and go back to the best point, where the loss rose too rarely or not at all."""
        has_same_best = self.best_loss <= self.loss_at_checkpoint
        halved = (self.rises <= least_rises) | (~self.was_halved & has_same_best)
        back = _like(halved, self.points)
        self.step_size = torch.where(back, self.step_size / 2, self.step_size)
        self.points = torch.where(back, self.best_points, self.points)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.loss = torch.where(halved, self.best_loss, self.loss)
        self.was_halved, self.loss_at_checkpoint = halved, self.best_loss
        self.rises = torch.zeros_like(self.rises)

    def select(self, keep: Tensor) -> "_Path":
        """Return the path of the images that ``keep`` names."""
        tensors = (getattr(self, part.name)[keep] for part in fields(self)[1:])
        return _Path(self.region.select(keep), *tensors)


class Apgd(Attack):
    """Auto-PGD: the step starts at ``2 * eps`` and halves wherever progress stalls.

    At checkpoints, which come closer and closer, an image's step is halved and its attempt goes back to the
    best point so far if the loss rose in too few steps since the last checkpoint, or if neither step size
    nor best loss changed since then. Images leave the batch as soon as an iterate is misclassified; the
    others come back as the point of the highest loss.

    Attributes:
        steps: Gradient steps of one attempt.
        restarts: Attempts, each on the points that are still standing.
        rho: Share of the steps between two checkpoints in which the loss must rise.
        momentum: Weight of the new step; the rest goes to the step before.
        loss: ``cross_entropy`` or ``dlr`` (difference of logits ratio; the margin if there are two classes).

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, Algorithm 1 and section 3.
        Differs: as in the authors' code, an attempt starts on the ball's border (uniform noise scaled until
        its largest entry is eps; for L2 a uniform direction), rises in exactly ``rho`` of the steps count as
        too few, and the first checkpoint asks only for rises. Other than there, an image that was
        misclassified once is not attacked further.
    """

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=1, ge=1)
    rho: float = Field(default=0.75, gt=0, le=1)
    momentum: float = Field(default=0.75, gt=0, le=1)
    loss: Literal["cross_entropy", "dlr"] = "cross_entropy"

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
            start = _border_point(images.detach(), threat, generator)
            if len(rows) == 0:
                break
            region = Region(images.detach()[rows], threat)
            rows = self._attempt(logits_of, region, start[rows], labels[rows], rows, result, highest)
        return result

    def _attempt(
        self,
        logits_of: Logits,
        region: Region,
        start: Tensor,
        labels: Tensor,
        rows: Tensor,
        result: Tensor,
        highest: Tensor,
    ) -> Tensor:
        """Attack ``rows`` of the batch once, write what is found to ``result``; return the rows left."""
        checkpoints = checkpoint_widths(self.steps)
        seen = probe(logits_of, start, labels, self.loss)
        path = _Path.begin(region, start, labels, rows, seen)
        for step in range(self.steps + 1):
            if step > 0:
                path.move(1.0 if step == 1 else self.momentum)
                seen = probe(logits_of, path.points, path.labels, self.loss, with_gradient=step < self.steps)
                path.record(seen)
            if bool(seen.wrong.any()):
                result[path.rows[seen.wrong]] = path.points[seen.wrong]
                path = path.select(~seen.wrong)
                if len(path.rows) == 0:
                    break
            if step in checkpoints:
                path.halve_where_stalled(self.rho * checkpoints[step])
        higher = path.best_loss > highest[path.rows]
        result[path.rows[higher]] = path.best_points[higher]
        highest[path.rows] = torch.maximum(highest[path.rows], path.best_loss)
        return path.rows

    def __str__(self) -> str:
        name = "CE" if self.loss == "cross_entropy" else "DLR"
        return f"APGD-{name}-{self.steps}x{self.restarts}"


def checkpoint_widths(steps: int) -> dict[int, int]:
    """Return the steps after which progress is judged, each with the number of steps it looks back on.

    Source:
        Croce & Hein 2020, section 3: the first after 22% of the steps, each distance 3 points of a hundred
        shorter than the last and at least 6. Counted in whole hundredths, since a float sum may round up.
    """
    widths: dict[int, int] = {}
    hundredths, distance, last = 22, 22, 0
    while hundredths <= 100:
        step = -(-hundredths * steps // 100)
        if last < step < steps:
            widths[step] = step - last
            last = step
        distance = max(distance - 3, 6)
        hundredths += distance
    return widths


def _border_point(images: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Return a point at distance eps in a random direction, clipped to the pixel range."""
    if threat.norm == "linf":
        noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        noise = noise.mul_(2).sub_(1)
    else:
        noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    point = noise.div_(threat.lengths(noise).clamp_min(1e-12)).mul_(threat.eps).add_(images)
    return threat.project(point, images)


def _like(mask: Tensor, images: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (images.ndim - 1))
