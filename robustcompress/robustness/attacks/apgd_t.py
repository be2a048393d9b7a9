"""Targeted Auto-PGD: one attempt at each of the wrong classes that look most likely."""

import torch
from pydantic import Field
from torch import Tensor

from robustcompress.robustness.ascent import Region
from robustcompress.robustness.attacks import Logits, TargetedAttack
from robustcompress.robustness.auto_pgd import AutoPgd, Findings, border_point
from robustcompress.robustness.targets import ranked_targets, target_groups
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
        with torch.no_grad():
            logits = logits_of(images)
        findings = Findings.begin(images, logits.argmax(1) == labels)
        targets = ranked_targets(logits, labels, self.targets)
        allowed = torch.ones_like(targets, dtype=torch.bool)
        if reachable is not None:
            allowed = reachable.gather(1, targets)
        attempt = AutoPgd("targeted_dlr", steps=self.steps, rho=self.rho, momentum=self.momentum)
        for _ in range(self.restarts):
            aimed = allowed & findings.standing[:, None]
            for group in target_groups(aimed, together=self.together):
                # Drawn for the whole batch and every target: what is skipped changes nothing for the others.
                starts = [border_point(images, threat, generator) for _ in group]
                rows = [aimed[:, place].nonzero().flatten() for place in group]
                every = torch.cat(rows)
                if len(every) == 0:
                    continue
                attempt.search(
                    logits_of,
                    Region(images[every], threat),
                    torch.cat([start[some] for start, some in zip(starts, rows, strict=True)]),
                    labels[every],
                    torch.cat([targets[some, place] for place, some in zip(group, rows, strict=True)]),
                    every,
                    findings,
                )
                aimed &= findings.standing[:, None]
        return findings.images

    def __str__(self) -> str:
        return f"APGD-T-{self.steps}x{self.targets}" + (f"x{self.restarts}" if self.restarts > 1 else "")
