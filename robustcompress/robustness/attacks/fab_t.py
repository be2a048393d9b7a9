"""FAB-T: the fast adaptive boundary attack aimed at the classes that the network finds most likely."""

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.attacks import Logits, TargetedAttack
from robustcompress.robustness.auto_pgd import Findings, border_point
from robustcompress.robustness.boundary import BoundarySearch
from robustcompress.robustness.targets import ranked_targets, target_groups
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
        with torch.no_grad():
            logits = logits_of(images)
        findings = Findings.begin(images, logits.argmax(1) == labels)
        targets = ranked_targets(logits, labels, self.targets)
        allowed = torch.ones_like(targets, dtype=torch.bool)
        if reachable is not None:
            allowed = reachable.gather(1, targets)
        attempt = BoundarySearch(self.steps, self.alpha_max, self.eta, self.beta)
        halfway = threat.model_copy(update={"eps": threat.eps / 2})
        for number in range(self.restarts):
            aimed = allowed & findings.standing[:, None]
            for group in target_groups(aimed, together=self.together):
                # Drawn for the whole batch and every target: what is skipped changes nothing for the others.
                starts = [border_point(images, halfway, generator) if number else images for _ in group]
                rows = [aimed[:, place].nonzero().flatten() for place in group]
                every = torch.cat(rows)
                if len(every) == 0:
                    continue
                attempt.search(
                    logits_of,
                    threat,
                    images[every],
                    torch.cat([start[some] for start, some in zip(starts, rows, strict=True)]),
                    labels[every],
                    torch.cat([targets[some, place] for place, some in zip(group, rows, strict=True)]),
                    every,
                    findings,
                )
                aimed &= findings.standing[:, None]
        return findings.images

    def __str__(self) -> str:
        return f"FAB-T-{self.steps}x{self.targets}" + (f"x{self.restarts}" if self.restarts > 1 else "")
