"""Auto-PGD: projected gradient ascent with momentum that finds its step size itself."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.ascent import Region
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.auto_pgd import AutoPgd, Findings, border_point
from robustcompress.robustness.probe import probe
from robustcompress.robustness.threat import Threat


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
        eot: Evaluations of the network per step, over which loss and gradient are averaged (expectation over
            transformation): for networks that answer at random. An image is then broken if more than half
            of them are wrong.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, Algorithm 1 and section 3.
        Differs: as in the authors' code, an attempt starts on the ball's border (uniform noise scaled until
        its largest entry is eps; for L2 a uniform direction), rises in exactly ``rho`` of the steps count as
        too few, the first checkpoint asks only for rises, the first step counts as a rise if it leads to a
        loss above zero, and a step from a best point that the attempt went back to counts as one if it leads
        above the loss before that. With 100 steps the iterates are those of that code up to rounding. Other
        than there, an image that was misclassified once is not attacked further; an L2 gradient is followed
        however short it is; and ``eot`` averages the loss, and judges an image, over all evaluations, not the
        last one.
    """

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=1, ge=1)
    rho: float = Field(default=0.75, gt=0, le=1)
    momentum: float = Field(default=0.75, gt=0, le=1)
    loss: Literal["cross_entropy", "dlr"] = "cross_entropy"
    eot: int = Field(default=1, ge=1)

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
        first = probe(logits_of, images, labels, self.loss, with_gradient=False, calls=self.eot)
        findings = Findings.begin(images, ~first.wrong)
        attempt = AutoPgd(self.loss, steps=self.steps, rho=self.rho, momentum=self.momentum, calls=self.eot)
        for _ in range(self.restarts):
            # Drawn for the whole batch: what one image gets does not depend on which others still stand.
            start = border_point(images, threat, generator)
            rows = findings.standing.nonzero().flatten()
            if len(rows) == 0:
                break
            region, right = Region(images[rows], threat), labels[rows]
            attempt.search(logits_of, region, start[rows], right, right, rows, findings)
        return findings.images

    def __str__(self) -> str:
        name = "CE" if self.loss == "cross_entropy" else "DLR"
        return f"APGD-{name}-{self.steps}x{self.restarts}" + (f"-EOT{self.eot}" if self.eot > 1 else "")
