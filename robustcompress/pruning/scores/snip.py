"""How much the loss depends on whether a unit is there (SNIP)."""

from torch import Tensor

from robustcompress.pruning.scores import GradientScore


class Snip(GradientScore):
    """``|dL/dgate|`` of each unit, of the robust loss over all batches together; nothing learns.

    Source:
        Lee et al. 2019, https://arxiv.org/abs/1810.02340, equations 5 and 6.
        Differs: under the robust objective, on whatever network the stage is given, and for units of any
        pattern; scores are not divided by their sum, which ranks them the same.
    """

    def from_gradients(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        return mean.abs()
