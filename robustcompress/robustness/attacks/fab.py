"""FAB: the fast adaptive boundary attack, towards whichever wrong class looks nearest."""

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.auto_pgd import Findings, border_point
from robustcompress.robustness.boundary import BoundarySearch
from robustcompress.robustness.threat import Threat


class Fab(Attack):
    """Look for the nearest image that the network gets wrong, and see whether it lies within the threat.

    Each step takes the network for linear at the current point and projects both the point and the image onto
    the boundary of the class that looks nearest, each within the pixel range. It goes on from a mean of the
    two, which leans the more to the image's own the farther the point is from the boundary, and a little
    beyond. Once a point is misclassified, the next step starts from ``beta`` of the way from the image to it.
    There is no step size to tune, and a confident network's vanishing cross-entropy does not matter.

    The first attempt starts at the image, further ones at random points at distance ``eps / 2``. An image
    that is broken within the threat leaves the batch; one that is not comes back as it is.

    Attributes:
        steps: Projections in one attempt.
        restarts: Attempts, each on the points that are still standing.
        alpha_max: Largest weight of the image's own projection in the mean.
        eta: How far beyond the linearised boundary both projections go; 1 is onto it.
        beta: Share of the way from the image to a misclassified point at which to go on.

    Source:
        Croce & Hein 2019, https://arxiv.org/abs/1907.02044, Algorithm 1.
        Differs: as in the authors' code, there is no final search along the line from the image to the
        nearest misclassified point, and a random start lies at ``eps / 2``, not within it.
        The attempt ends for an image once it is broken within ``eps``; the authors look on for the nearest
        such point.
    """

    steps: int = Field(default=100, ge=1)
    restarts: int = Field(default=5, ge=1)
    alpha_max: float = Field(default=0.1, ge=0, le=1)
    eta: float = Field(default=1.05, ge=1, allow_inf_nan=False)
    beta: float = Field(default=0.9, gt=0, le=1)

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
        with torch.no_grad():
            findings = Findings.begin(images, logits_of(images).argmax(1) == labels)
        attempt = BoundarySearch(self.steps, self.alpha_max, self.eta, self.beta)
        halfway = threat.model_copy(update={"eps": threat.eps / 2})
        for number in range(self.restarts):
            # Drawn for the whole batch: what one image gets does not depend on which others still stand.
            start = border_point(images, halfway, generator) if number > 0 else images
            rows = findings.standing.nonzero().flatten()
            if len(rows) == 0:
                break
            attempt.search(logits_of, threat, images[rows], start[rows], labels[rows], None, rows, findings)
        return findings.images

    def __str__(self) -> str:
        return f"FAB-{self.steps}x{self.restarts}"
