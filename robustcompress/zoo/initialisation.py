"""Draw the weights of a fresh ReLU network so that signals neither grow nor fade with depth."""

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Draw every convolution's weights from N(0, 2 / (kernel area * output channels)), in place.

    Linear layers keep torch's own draw and batch normalisation its ones and zeros.

    Source:
        He et al. 2015, https://arxiv.org/abs/1502.01852, equation 14 (the variance that keeps gradients).
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
