"""Targeted Auto-PGD: one attempt at each of the wrong classes that look most likely."""

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.ascent import Region
from robustcompress.robustness.attacks import Logits, TargetedAttack
from robustcompress.robustness.auto_pgd import AutoPgd, Findings, border_point
from robustcompress.robustness.targets import attack_targets
from robustcompress.robustness.threat import Threat


class ApgdT(TargetedAttack):
    """Auto-PGD on the targeted DLR loss, aimed at one class after another.

    Targets are the wrong classes in the order of the clean image's logits. An attempt succeeds with any wrong
    class, the target or not.

    Attributes:
        steps: Gradient steps of one attempt.
        targets: Classes to aim at; with fewer wrong classes, all of them.
        restarts: Attempts at each target.
        rho: As of :class:`~robustcompress.robustness.attacks.apgd.Apgd`.
        momentum: As of :class:`~robustcompress.robustness.attacks.apgd.Apgd`.
        together: Aim at all targets in one large batch, which suits a GPU and takes ``targets`` times the
            memory; ``None`` means on CUDA, and on a CPU as many as make a batch worth while. The same images
            break, maybe in another place.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, section 4 and eq. 7.
        Differs: where Apgd differs. With two or three classes, where the targeted DLR loss is not defined,
        the target's logit minus the right one is climbed. Each restart goes through all targets; the
        authors' code makes all restarts at one target first.
    """

    steps: int = Field(default=100, ge=1)
    targets: int = Field(default=9, ge=1)
    restarts: int = Field(default=1, ge=1)
    rho: float = Field(default=0.75, gt=0, le=1)
    momentum: float = Field(default=0.75, gt=0, le=1)
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
        attempt = AutoPgd("targeted_dlr", steps=self.steps, rho=self.rho, momentum=self.momentum)

        def search(rows: Tensor, starts: Tensor, targets: Tensor, findings: Findings) -> None:
            region = Region(images[rows], threat)
            attempt.search(logits_of, region, starts, labels[rows], targets, rows, findings)

        return attack_targets(
            logits_of,
            images,
            labels,
            count=self.targets,
            restarts=self.restarts,
            together=self.together,
            reachable=reachable,
            start=lambda number: border_point(images, threat, generator),
            search=search,
        )

    def __str__(self) -> str:
        return f"APGD-T-{self.steps}x{self.targets}" + (f"x{self.restarts}" if self.restarts > 1 else "")
