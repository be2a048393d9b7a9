"""The squared change of the loss if a unit went, to first order (Taylor)."""

from torch import Tensor

from robustcompress.pruning.scores import GradientScore


class Taylor(GradientScore):
    """``(sum of g * w)^2`` over a unit's weights, the mean over batches; nothing learns.

    The sum is the gradient of the unit's gate. For whole channels that is the gate at the layers that read
    the channel, and so over their weights.

    Source:
        Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, equation 8 for single weights and the
        gate's importance of section 3.1 for groups.
        Differs: of the robust loss; measured once in the dense network and not again as units go.
    """

    def from_gradients(self, mean: Tensor, mean_square: Tensor) -> Tensor:
        return mean_square.clone()
