"""The convolutional networks without normalisation that provable defences are trained on."""

from torch import nn

from robustcompress.zoo.initialisation import he_normal


def small_plain_cnn(
    *, in_channels: int, num_classes: int, image_size: int, width: int, hidden: int
) -> nn.Sequential:
    """Return two convolutions of stride 2 and two linear layers, all with bias, ReLU between.

    Args:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        image_size: Height and width in pixels.
        width: Channels of the first convolution; the second has twice as many.
        hidden: Units of the hidden linear layer.
    """
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def large_plain_cnn(
    *, in_channels: int, num_classes: int, image_size: int, width: int, hidden: int
) -> nn.Sequential:
    """Return four convolutions, every second of stride 2, and three linear layers, as the small one does.

    Args:
        in_channels: Channels of the image.
        num_classes: Length of the logits.
        image_size: Height and width in pixels.
        width: Channels of the first two convolutions; the others have twice as many.
        hidden: Units of both hidden linear layers.
    """
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def he_normal_without_bias(network: nn.Module) -> None:
    """Draw convolutions' weights with :func:`he_normal`, and set their biases to 0."""
    he_normal(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
