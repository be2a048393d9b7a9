"""MART: misclassified images weigh more.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustcompress.fractions import Number
from robustcompress.robustness.ascent import ascend, step_length
from robustcompress.training.objectives import Objective, StepView


class Mart(Objective):
    """Boosted cross-entropy under attack, and a divergence that weighs what the network gets wrong.

    With ``p`` the softmax of the clean and ``q`` that of the attacked image, ``y`` the label::

        loss = -log q_y - log(1 - max_{k != y} q_k) + beta * KL(p || q) * (1 - p_y)

    averaged over the batch. The attack raises the cross-entropy, with the network in eval mode. The gradient
    goes through both branches and through the weight ``1 - p_y``; the network sees one clean and one
    adversarial batch in train mode, so that batch statistics move twice a step.

    Attributes:
        beta: Weight of the divergence; the paper's lambda.
        steps: Gradient steps of the attack.
        step_size: Length of a step in the threat's norm, pixel scale 0 to 1; ``None`` means
            ``2.5 * eps / steps``.
        random_start: Start from a uniform point of the ball; otherwise from the image itself.

    Source:
        Wang et al. 2020 (ICLR), https://openreview.net/forum?id=rklOg6EFwS, eq. 8 to 11 and Algorithm 1;
        there 10 steps of ``eps / 4``, and ``beta`` 5.
        Differs: logarithms of sums of exponentials in place of small constants under the logarithm. The
        attack starts uniformly, as in the paper; the authors' code starts from Gaussian noise of 0.001.
    """

    beta: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    steps: int = Field(default=10, ge=1)
    step_size: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    random_start: bool = True

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = view.found(lambda: self._attack(view, images, labels))
        clean_BC = view.learning(images).log_softmax(dim=1)
        attacked_BC = view.learning(adversarial).log_softmax(dim=1)
        is_label_BC = F.one_hot(labels, clean_BC.shape[1]).bool()
        divergence_B = (clean_BC.exp() * (clean_BC - attacked_BC)).sum(1)
        wrong_B = _log_sum(clean_BC, without=is_label_BC).exp()  # 1 - p_y
        boosted_B = boosted_cross_entropy(attacked_BC, is_label_BC)
        return (boosted_B + self.beta * divergence_B * wrong_B).mean()

    def _attack(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        return ascend(
            lambda points: F.cross_entropy(view.frozen(points), labels, reduction="sum"),
            images,
            threat=view.threat,
            steps=self.steps,
            step_size=step_length(self.step_size, threat=view.threat, steps=self.steps),
            start=view.random_point(images) if self.random_start else images,
        )


def boosted_cross_entropy(logarithms_BC: Tensor, is_label_BC: Tensor) -> Tensor:
    """Return ``-log q_y - log(1 - max_{k != y} q_k)`` of each row, ``[batch]``.

    Args:
        logarithms_BC: Of the probabilities ``q``.
        is_label_BC: True at the label of each row.
    """
    rivals_BC = logarithms_BC.detach().masked_fill(is_label_BC, -torch.inf)
    is_rival_BC = F.one_hot(rivals_BC.argmax(1), logarithms_BC.shape[1]).bool()
    label_B = logarithms_BC.masked_select(is_label_BC)
    return -label_B - _log_sum(logarithms_BC, without=is_rival_BC)


def _log_sum(logarithms_BC: Tensor, *, without: Tensor) -> Tensor:
    """Return the logarithm of each row's total probability, leaving out what is marked: log(1 - rest)."""
    return logarithms_BC.masked_fill(without, -torch.inf).logsumexp(1)
