"""Attacks: look for an image within the threat that the network gets wrong.

Shapes: B batch, R rows of it, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from robustcompress.member import Member, class_attribute
from robustcompress.robustness.losses import margin
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import generator_for

if TYPE_CHECKING:
    from robustcompress.robustness.attacks.apgd import Apgd as Apgd
    from robustcompress.robustness.attacks.apgd_t import ApgdT as ApgdT
    from robustcompress.robustness.attacks.autoattack import AutoAttack as AutoAttack
    from robustcompress.robustness.attacks.cw import Cw as Cw
    from robustcompress.robustness.attacks.fab import Fab as Fab
    from robustcompress.robustness.attacks.fab_t import FabT as FabT
    from robustcompress.robustness.attacks.fgsm import Fgsm as Fgsm
    from robustcompress.robustness.attacks.pgd import Pgd as Pgd
    from robustcompress.robustness.attacks.screen import Screen as Screen
    from robustcompress.robustness.attacks.square import Square as Square

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""Images [batch, ...] to logits [batch, classes]; differentiable for attacks that need gradients."""

Settings: TypeAlias = dict[str, str | int | float | bool | None]
"""What defines an attack, as a measurement records it."""


class Attack(Member, ABC):
    """Settings of one attack; each reads as its paper does.

    Attributes:
        needs_gradient: Whether the logits must depend on the images through differentiable operations; an
            attack that needs none runs on a runtime's session as well.
    """

    family: ClassVar[str] = "robustcompress.robustness.attacks"
    needs_gradient: ClassVar[bool] = True

    @abstractmethod
    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        """Return one image per input within ``threat``: adversarial where the attack succeeded.

        An image that is misclassified already comes back as it is.

        Args:
            logits_of: The network in the mode in which it is to be judged. Attacks leave no gradient on
                its parameters.
            images: float ``[batch, ...]`` in the threat's pixel range.
            labels: int64 ``[batch]``, the right classes.
            threat: Norm and radius.
            generator: Source of every random number, on the images' device. Every attack draws for the
                whole batch, so that what one image gets does not depend on which others still stand.
        """

    def settings(self, threat: Threat) -> Settings:
        """Return what defines this attack under ``threat``, with every default resolved."""
        del threat  # members whose defaults depend on it override this
        return self.model_dump()

    @abstractmethod
    def __str__(self) -> str:
        """Return name and budget as tables print them, such as ``PGD-20x1``."""


def refuse_equal_restarts(restarts: int, *, random_start: bool) -> None:
    """Check that restarts differ from each other.

    Raises:
        ValueError: If they would repeat one attempt.
    """
    if restarts > 1 and not random_start:
        raise ValueError(
            f"{restarts} restarts without random_start repeat one attempt; set random_start: true or "
            "restarts: 1"
        )


class TargetedAttack(Attack, ABC):
    """An attack that aims at one wrong class after another, and may be told which ones are out of reach."""

    @abstractmethod
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
        """Return one image per input within ``threat``, as :meth:`Attack.run` does.

        Args:
            logits_of: As for every attack.
            images: As for every attack.
            labels: As for every attack.
            threat: As for every attack.
            generator: As for every attack.
            reachable: Which classes bounds did not exclude, bool ``[batch, classes]``; ``None`` means all.
                A target that is out of reach is skipped for that image. Targets are ranked, and random
                numbers drawn, before anything is skipped: where the bounds are right, which images are
                broken does not change.
        """


class Ensemble(TargetedAttack, ABC):
    """The pointwise worst case of its members: an image that one of them breaks is broken.

    An image that none breaks comes back as the one, of those its members made, whose best wrong logit lies
    nearest to the right one.
    """

    @abstractmethod
    def members(self, classes: int) -> tuple[Attack, ...]:
        """Return the attacks, in their order, for a network of so many classes."""

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
        result = images.clone()
        clean_BC = _logits(logits_of, images)
        standing = clean_BC.argmax(1) == labels
        if reachable is not None:
            standing = standing & reachable.any(1)
        highest = torch.full_like(clean_BC[:, 0], float("-inf"))
        # A member leaves at once what is misclassified. Images that are done get a label that is not theirs:
        # so each member is given the whole batch, and draws for it, whoever still stands.
        classes = clean_BC.shape[1]
        not_theirs = (clean_BC.argmax(1) + 1) % classes
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        for number, member in enumerate(self.members(classes)):
            if threat.eps == 0 or not bool(standing.any()):
                break
            given = torch.where(standing, labels, not_theirs)
            own = generator_for(generator.device, seed, number, str(member))
            if isinstance(member, TargetedAttack):
                found = member.run(
                    logits_of, images, given, threat=threat, generator=own, reachable=reachable
                )
            else:
                found = member.run(logits_of, images, given, threat=threat, generator=own)
            rows = standing.nonzero().flatten()
            logits_RC = _logits(logits_of, found[rows])
            margins = margin(logits_RC, labels[rows])
            wrong = logits_RC.argmax(1) != labels[rows]
            better = wrong | (margins > highest[rows])
            result[rows[better]] = found[rows[better]]
            highest[rows] = torch.maximum(highest[rows], margins)
            standing[rows[wrong]] = False
        return result


@torch.no_grad()
def _logits(logits_of: Logits, images: Tensor) -> Tensor:
    return logits_of(images).detach()


def __getattr__(name: str) -> Any:
    return class_attribute(Attack, name)
