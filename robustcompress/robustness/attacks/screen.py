"""A cheap ensemble, to sort candidates before a claim is worth its price."""

from pydantic import Field

from robustcompress.robustness.attacks import Attack, Ensemble
from robustcompress.robustness.attacks.apgd import Apgd
from robustcompress.robustness.attacks.apgd_t import ApgdT


class Screen(Ensemble):
    """A short Auto-PGD on the cross-entropy, then a short targeted one at a few classes.

    Its accuracy is an upper bound of the robust one as every attack's is, and a looser one than AutoAttack's:
    compare candidates with it, and claim nothing. It searches by gradients alone, so masked ones fool it.

    Attributes:
        steps: Gradient steps of each attempt.
        targets: Classes to aim at; with fewer wrong classes, all of them.

    Source:
        The first two attacks of Croce & Hein 2020, https://arxiv.org/abs/2003.01690, section 5.
        Differs: a fifth of the steps and a third of the targets.
    """

    steps: int = Field(default=20, ge=1)
    targets: int = Field(default=3, ge=1)

    def members(self, classes: int) -> tuple[Attack, ...]:
        targeted = ApgdT(steps=self.steps, targets=min(self.targets, classes - 1))
        return Apgd(steps=self.steps), targeted

    def __str__(self) -> str:
        return f"Screen-{self.steps}x{self.targets}"
