"""Attacks: look for an image within the threat that the network gets wrong."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from robustcompress.member import Member, class_attribute
from robustcompress.robustness.threat import Threat

if TYPE_CHECKING:
    from robustcompress.robustness.attacks.apgd import Apgd as Apgd
    from robustcompress.robustness.attacks.pgd import Pgd as Pgd

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""Images [batch, ...] to logits [batch, classes]; differentiable for gradient attacks."""

Settings: TypeAlias = dict[str, str | int | float | bool | None]
"""What defines an attack, as a measurement records it."""


class Attack(Member, ABC):
    """Settings of one attack; each reads as its paper does."""

    family: ClassVar[str] = "robustcompress.robustness.attacks"

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

        Args:
            logits_of: The network in the mode in which it is to be judged. Attacks leave no gradient on
                its parameters.
            images: float ``[batch, ...]`` in the threat's pixel range.
            labels: int64 ``[batch]``, the right classes.
            threat: Norm and radius.
            generator: Source of every random number, on the images' device.
        """

    def settings(self, threat: Threat) -> Settings:
        """Return what defines this attack under ``threat``, with every default resolved."""
        del threat  # members whose defaults depend on it override this
        return self.model_dump()

    @abstractmethod
    def __str__(self) -> str:
        """Return name and budget as tables print them, such as ``PGD-20x1``."""


def __getattr__(name: str) -> Any:
    return class_attribute(Attack, name)
