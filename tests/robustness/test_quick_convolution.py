import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness.quick_convolution import QuickConv2d, with_quick_gradients


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((3, 3), 1, 1, (8, 8)),
        ((5, 5), 2, 2, (9, 9)),
        ((5, 3), 2, (0, 1), (11, 8)),
        ((2, 2), 3, 0, (10, 11)),  # rows between the windows are never read
        ((3, 3), 2, 0, (8, 8)),  # the last row is not either
        ((1, 1), 2, 0, (7, 7)),
        ((7, 7), 4, 3, (16, 13)),
        ((3, 3), 1, 4, (5, 6)),  # windows of padding alone
    ],
)
def test_outputs_and_gradients_are_the_convolutions(
    kernel: tuple[int, int],
    stride: int,
    padding: int | tuple[int, int],
    size: tuple[int, int],
    bias: bool,
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, stride, padding, bias=bias).double().requires_grad_(False)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    results = []
    for way in (layer, QuickConv2d(layer)):
        points = images.clone().requires_grad_()
        out: Tensor = way(points)
        (gradient,) = torch.autograd.grad(out, points, out.detach().cos())
        results.append((out.detach(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_only_strided_convolutions_of_few_channels_are_replaced() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 4, 1, stride=2, groups=2),
    )
    network = network.eval().requires_grad_(False)
    images = torch.rand(4, 1, 32, 32)
    expected = network(images)
    assert with_quick_gradients(network) == 2
    kinds = [type(part) for part in network.modules() if isinstance(part, QuickConv2d | nn.Conv2d)]
    assert kinds == [QuickConv2d, nn.Conv2d, QuickConv2d, nn.Conv2d, nn.Conv2d]
    torch.testing.assert_close(network(images), expected)


def test_a_convolution_that_is_used_twice_computes_the_same() -> None:
    shared = nn.Conv2d(2, 2, 3, stride=2, padding=1).requires_grad_(False)
    network = nn.Sequential(shared, nn.ReLU(), shared).eval()
    images = torch.rand(3, 2, 16, 16)
    expected = network(images)
    with_quick_gradients(network)
    torch.testing.assert_close(network(images), expected)
