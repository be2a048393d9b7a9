"""FAB-T: the fast adaptive boundary attack aimed at the classes that the network finds most likely."""

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.attacks import Logits, TargetedAttack
from robustcompress.robustness.auto_pgd import Findings, border_point
from robustcompress.robustness.boundary import BoundarySearch
from robustcompress.robustness.targets import attack_targets
from robustcompress.robustness.threat import Threat


class FabT(TargetedAttack):
    """FAB along the boundary of one target after another.

    Needs one gradient a step where :class:`~robustcompress.robustness.attacks.fab.Fab` needs one for each
    class. Targets are the wrong classes in the order of the clean image's logits. An attempt succeeds with
    any wrong class, the target or not.

    Attributes:
        steps: Projections in one attempt.
        targets: Classes to aim at; with fewer wrong classes, all of them.
        restarts: Attempts at each target; the first starts at the image.
        alpha_max: As of :class:`~robustcompress.robustness.attacks.fab.Fab`.
        eta: As of :class:`~robustcompress.robustness.attacks.fab.Fab`.
        beta: As of :class:`~robustcompress.robustness.attacks.fab.Fab`.
        together: Aim at all targets in one large batch, which suits a GPU and takes ``targets`` times the
            memory; ``None`` means on CUDA, and on a CPU as many as make a batch worth while. The same images
            break, maybe in another place.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, section 4; Croce & Hein 2019,
        https://arxiv.org/abs/1907.02044, Algorithm 1.
        Differs: where Fab differs. Each restart goes through all targets; the authors' code makes all
        restarts at one target first.
    """

    steps: int = Field(default=100, ge=1)
    targets: int = Field(default=9, ge=1)
    restarts: int = Field(default=1, ge=1)
    alpha_max: float = Field(default=0.1, ge=0, le=1)
    eta: float = Field(default=1.05, ge=1, allow_inf_nan=False)
    beta: float = Field(default=0.9, gt=0, le=1)
    together: bool | None = None

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
        reachable: Tensor | None = None,
    ) -> Tensor:
        images = images.detach()
        attempt = BoundarySearch(self.steps, self.alpha_max, self.eta, self.beta)
        halfway = threat.model_copy(update={"eps": threat.eps / 2})

        def search(rows: Tensor, starts: Tensor, targets: Tensor, findings: Findings) -> None:
            attempt.search(logits_of, threat, images[rows], starts, labels[rows], targets, rows, findings)

        return attack_targets(
            logits_of,
            images,
            labels,
            count=self.targets,
            restarts=self.restarts,
            together=self.together,
            reachable=reachable,
            start=lambda number: border_point(images, halfway, generator) if number else images,
            search=search,
        )

    def __str__(self) -> str:
        return f"FAB-T-{self.steps}x{self.targets}" + (f"x{self.restarts}" if self.restarts > 1 else "")
