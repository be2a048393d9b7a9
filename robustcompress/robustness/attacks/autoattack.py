"""AutoAttack: the ensemble that robustness claims are measured by."""

from typing import Literal

from robustcompress.robustness.attacks import Attack, Ensemble, Settings
from robustcompress.robustness.attacks.apgd import Apgd
from robustcompress.robustness.attacks.apgd_t import ApgdT
from robustcompress.robustness.attacks.fab import Fab
from robustcompress.robustness.attacks.fab_t import FabT
from robustcompress.robustness.attacks.square import Square
from robustcompress.robustness.reference import Reference, Version, reference_release
from robustcompress.robustness.threat import Threat

_TARGETS = 9


class AutoAttack(Ensemble):
    """Attacks that fail for different reasons, each with fixed settings, on the images still standing.

    Attributes:
        version: ``standard`` (APGD-CE, APGD-T, FAB-T, Square), ``plus`` (APGD-CE and APGD-DLR with five
            restarts, FAB with five, Square, APGD-T, FAB-T), or ``rand`` (APGD-CE and APGD-DLR, each step over
            20 evaluations) for networks that answer at random.
        engine: ``ours``, or ``reference``: the authors' code, from the package ``pyautoattack``, for claims
            on leaderboards. It takes more time and has limits:
            :class:`~robustcompress.robustness.reference.Reference`.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, section 5; versions as in the authors' code.
        Differs: targeted attacks aim at nine classes, or at all wrong ones if there are fewer, where the
        authors' code breaks.
    """

    version: Version = "standard"
    engine: Literal["ours", "reference"] = "ours"

    def members(self, classes: int) -> tuple[Attack, ...]:
        if self.engine == "reference":
            return (Reference(version=self.version),)
        if self.version == "rand":
            return Apgd(eot=20), Apgd(loss="dlr", eot=20)
        targets = min(_TARGETS, classes - 1)
        if self.version == "standard":
            return Apgd(), ApgdT(targets=targets), FabT(targets=targets), Square()
        return (
            Apgd(restarts=5),
            Apgd(restarts=5, loss="dlr"),
            Fab(restarts=5),
            Square(),
            ApgdT(targets=targets),
            FabT(targets=targets),
        )

    def settings(self, threat: Threat) -> Settings:
        release = {"package": reference_release()} if self.engine == "reference" else {}
        return {**super().settings(threat), **release}

    def __str__(self) -> str:
        return f"AutoAttack-{self.version}" + (" (pyautoattack)" if self.engine == "reference" else "")
