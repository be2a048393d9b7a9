"""Adversarial images kept for people to look at."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustcompress.robustness.batches import Batch


@dataclass(frozen=True)
class Example:
    """An image that the network got right until an attack moved it.

    Attributes:
        original: float ``[channels, height, width]`` in [0, 1], on the CPU.
        adversarial: What the attack made of it, of the same shape.
        label: The right class.
        attack: Who moved it.
        clean_predictions: Class of the original by subject: the network, then each file.
        attacked_predictions: Class of the adversarial image by subject.
    """

    original: Tensor
    adversarial: Tensor
    label: int
    attack: str
    clean_predictions: Mapping[str, int]
    attacked_predictions: Mapping[str, int]


class Gallery:
    """Takes the first ``size`` examples that come, at most a quarter of them (rounded up) of one class.

    Data sets are often sorted by class: without a share for each, all examples would look alike.
    """

    def __init__(self, size: int) -> None:
        self.examples: list[Example] = []
        self._size = size
        self._of_label: Counter[int] = Counter()

    def add(
        self,
        batch: Batch,
        adversarial: Tensor,
        attack: str,
        clean: Mapping[str, Tensor],
        attacked: Mapping[str, Tensor],
        *,
        subject: str,
        standing: Tensor,
    ) -> None:
        """Take examples from one attack on one batch, while there is room.

        Args:
            batch: The originals.
            adversarial: float ``[batch, ...]``.
            attack: Who made them.
            clean: Predicted classes of the originals by subject, int64 ``[batch]``.
            attacked: Predicted classes of the adversarial images by subject.
            subject: The network whose mistakes count.
            standing: Which images are right clean and under every earlier attack, bool ``[batch]``.
        """
        if len(self.examples) >= self._size:
            return
        fooled = standing & (attacked[subject] != batch.labels)
        for row in fooled.nonzero().flatten().tolist():
            label = int(batch.labels[row])
            if len(self.examples) >= self._size:
                return
            if self._of_label[label] >= -(-self._size // 4):
                continue
            self._of_label[label] += 1
            self.examples.append(
                Example(
                    original=batch.images[row].cpu().clone(),
                    adversarial=adversarial[row].cpu().clone(),
                    label=label,
                    attack=attack,
                    clean_predictions={name: int(found[row]) for name, found in clean.items()},
                    attacked_predictions={name: int(found[row]) for name, found in attacked.items()},
                )
            )
