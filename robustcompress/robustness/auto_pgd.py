"""Auto-PGD's search: projected gradient ascent with momentum that finds its step size itself."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from robustcompress.robustness.ascent import Region
from robustcompress.robustness.losses import LossName
from robustcompress.robustness.probe import Probe, probe
from robustcompress.robustness.threat import Threat


@dataclass
class Findings:
    """What was found so far about each image of a batch.

    Attributes:
        images: An adversarial image where there is one, else the point of the highest loss.
        highest: That loss; float ``[batch]``.
        standing: Which images nothing has broken; bool ``[batch]``.
    """

    images: Tensor
    highest: Tensor
    standing: Tensor

    @classmethod
    def begin(cls, images: Tensor, standing: Tensor) -> Self:
        """Return findings that hold the ``images`` themselves."""
        lowest = torch.full_like(standing, float("-inf"), dtype=images.dtype)
        return cls(images.detach().clone(), lowest, standing)

    def note_broken(self, rows: Tensor, points: Tensor) -> None:
        """Keep ``points``, which are misclassified; of several for one row, the first."""
        first = _first_of_each(rows)
        self.images[rows[first]] = points[first]
        self.standing[rows] = False

    def note_highest(self, rows: Tensor, points: Tensor, loss: Tensor) -> None:
        """Keep the ``points`` whose loss is higher than any before; of several for one row, the highest."""
        order = loss.argsort(descending=True, stable=True)
        order = order[_first_of_each(rows[order])]
        order = order[loss[order] > self.highest[rows[order]]]
        self.images[rows[order]] = points[order]
        self.highest[rows[order]] = loss[order]


@dataclass(frozen=True)
class AutoPgd:
    """One search; :class:`~robustcompress.robustness.attacks.apgd.Apgd` says what it does, and whence.

    Attributes:
        loss: What to climb.
        steps: Gradient steps.
        rho: Share of the steps between two checkpoints in which the loss must rise.
        momentum: Weight of the new step; the rest goes to the step before.
        calls: Evaluations of the network over which loss and gradient are averaged.
    """

    loss: LossName
    steps: int
    rho: float
    momentum: float
    calls: int = 1

    def search(
        self,
        logits_of: Callable[[Tensor], Tensor],
        region: Region,
        start: Tensor,
        labels: Tensor,
        targets: Tensor,
        rows: Tensor,
        findings: Findings,
    ) -> None:
        """Attack once from ``start`` and note what is found; images leave as soon as they are broken.

        Args:
            logits_of: The network.
            region: Around the images of ``rows``.
            start: First iterates, float ``[rows, ...]``, within the threat.
            labels: int64 ``[rows]``.
            targets: Classes that a targeted loss aims at, int64 ``[rows]``; other losses do not ask.
            rows: Which image of the batch each one is; with several targets an image is there several times.
            findings: About the batch; they are added to.
        """
        checkpoints = checkpoint_widths(self.steps)
        seen = self._look(logits_of, start, labels, targets)
        path = _Path.begin(region, start, labels, targets, rows, seen)
        for step in range(self.steps + 1):
            if step > 0:
                path.move(1.0 if step == 1 else self.momentum)
                seen = self._look(
                    logits_of, path.points, path.labels, path.targets, with_gradient=step < self.steps
                )
                path.record(seen)
            if bool(seen.wrong.any()):
                findings.note_broken(path.rows[seen.wrong], path.points[seen.wrong])
                path = path.select(findings.standing[path.rows])
                if len(path.rows) == 0:
                    return
            if step in checkpoints:
                path.halve_where_stalled(self.rho * checkpoints[step])
        findings.note_highest(path.rows, path.best_points, path.best_loss)

    def _look(
        self,
        logits_of: Callable[[Tensor], Tensor],
        points: Tensor,
        labels: Tensor,
        targets: Tensor,
        *,
        with_gradient: bool = True,
    ) -> Probe:
        return probe(
            logits_of,
            points,
            labels,
            self.loss,
            targets=targets,
            with_gradient=with_gradient,
            calls=self.calls,
        )


@dataclass
class _Path:
    """Where the attempt on each image stands; every tensor's first dimension is the image."""

    region: Region
    rows: Tensor
    labels: Tensor
    targets: Tensor
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
    def begin(
        cls, region: Region, start: Tensor, labels: Tensor, targets: Tensor, rows: Tensor, seen: Probe
    ) -> Self:
        """Return the path that ``seen`` opens at ``start``."""
        return cls(
            region=region,
            rows=rows,
            labels=labels,
            targets=targets,
            points=start,
            previous=start,
            # As in the authors' code: the first step counts as a rise if it leads above zero.
            loss=torch.zeros_like(seen.loss),
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
        onward = (self.points - self.previous).mul_(1 - momentum)
        blend = target.sub_(self.points).mul_(momentum).add_(self.points).add_(onward)
        self.previous, self.points = self.points, self.region.project(blend)

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
        # As in the authors' code: the next step is compared with the last one, not with the best point.
        self.was_halved, self.loss_at_checkpoint = halved, self.best_loss
        self.rises = torch.zeros_like(self.rises)

    def select(self, keep: Tensor) -> "_Path":
        """Return the path of the images that ``keep`` names."""
        tensors = (getattr(self, part.name)[keep] for part in fields(self)[1:])
        return _Path(self.region.select(keep), *tensors)


def checkpoint_widths(steps: int) -> dict[int, int]:
    """Return the steps after which progress is judged, each with the number of steps it looks back on.

    Source:
        Croce & Hein 2020, section 3: the first after 22% of the steps, each distance 3 points of a hundred
        shorter than the last and at least 6. Counted in whole hundredths, since a float sum may round up.
        Differs: the authors' code rounds each distance down to whole steps, and so comes to other
        checkpoints where ``steps`` is not a multiple of 100: it judges 20 steps 14 times, this 7 times.
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


def border_point(images: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Return a point at distance eps in a random direction, clipped to the pixel range."""
    if threat.norm == "linf":
        noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        noise = noise.mul_(2).sub_(1)
    else:
        noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    point = noise.div_(threat.lengths(noise).clamp_min(1e-12)).mul_(threat.eps).add_(images)
    return threat.project(point, images)


def _first_of_each(rows: Tensor) -> Tensor:
    """Return where each value of ``rows`` comes first."""
    ordered, order = rows.sort(stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return order[is_new]


def _like(mask: Tensor, images: Tensor) -> Tensor:
    return mask.reshape(-1, *[1] * (images.ndim - 1))
