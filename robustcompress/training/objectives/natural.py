"""Training without an adversary."""

import torch.nn.functional as F
from torch import Tensor

from robustcompress.training.objectives import Objective, StepView


class Natural(Objective):
    """Cross-entropy on the images as they are."""

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(view.learning(images), labels)
