"""What attacks maximise: one number per image that grows as the right class loses.

Shapes: B batch, C classes.
"""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

LossName: TypeAlias = Literal["cross_entropy", "margin", "dlr", "targeted_dlr"]


def attack_loss(
    name: LossName, logits_BC: Tensor, labels_B: Tensor, targets_B: Tensor | None = None
) -> Tensor:
    """Return the loss called ``name`` per image; float ``[batch]``.

    ``targets_B`` are the wrong classes that ``targeted_dlr`` aims at; the other losses aim at none.
    """
    if name == "targeted_dlr":
        assert targets_B is not None, "a targeted loss needs targets"
        return targeted_dlr(logits_BC, labels_B, targets_B)
    if name == "cross_entropy":
        return F.cross_entropy(logits_BC, labels_B, reduction="none")
    return margin(logits_BC, labels_B) if name == "margin" else dlr(logits_BC, labels_B)


def margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the best wrong logit minus the right one: positive where the image is misclassified.

    Source:
        Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644, f6 without its cut-off.
    """
    right_B1 = labels_B[:, None]
    wrong_BC = logits_BC.scatter(1, right_B1, float("-inf"))
    return wrong_BC.amax(1) - logits_BC.gather(1, right_B1).squeeze(1)


def dlr(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the difference of logits ratio: the margin over the gap between first and third logit.

    Unlike cross-entropy it does not change when all logits are scaled or shifted, so its gradient cannot
    vanish because a network is confident.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, eq. 6.
        Differs: with two classes there is no third logit, and the plain margin is returned.
    """
    if logits_BC.shape[1] < 3:
        return margin(logits_BC, labels_B)
    top_B3 = torch.topk(logits_BC, 3, dim=1).values
    return margin(logits_BC, labels_B) / (top_B3[:, 0] - top_B3[:, 2] + 1e-12)


def targeted_dlr(logits_BC: Tensor, labels_B: Tensor, targets_B: Tensor) -> Tensor:
    """Return the target's logit minus the right one, over the first minus the mean of third and fourth.

    Source:
        Croce & Hein 2020, https://arxiv.org/abs/2003.01690, eq. 7.
        Differs: with fewer than four classes there is no fourth logit, and the plain difference is returned.
    """
    chosen_B2 = logits_BC.gather(1, torch.stack([targets_B, labels_B], 1))
    difference_B = chosen_B2[:, 0] - chosen_B2[:, 1]
    if logits_BC.shape[1] < 4:
        return difference_B
    top_B4 = torch.topk(logits_BC, 4, dim=1).values
    return difference_B / (top_B4[:, 0] - (top_B4[:, 2] + top_B4[:, 3]) / 2 + 1e-12)
