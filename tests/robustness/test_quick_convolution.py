import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness import quick_convolution
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


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), grouped, nn.ReLU(), nn.Flatten())
    return network.append(nn.Linear(4 * 36, 3)).eval().requires_grad_(False)


def test_only_what_is_faster_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(4, 1, 6, 6)
    times = {QuickConv2d: 1.0, nn.Conv2d: 2.0}
    monkeypatch.setattr(quick_convolution, "_seconds", lambda layer, given: times[type(layer)])
    network = _network()
    expected = network(images)
    assert with_quick_gradients(network, images) == 1  # the grouped one is not known
    assert [type(part) for part in network][:3] == [QuickConv2d, nn.ReLU, nn.Conv2d]
    torch.testing.assert_close(network(images), expected)
    times[QuickConv2d] = 1.7  # not by enough to be sure
    network = _network()
    assert with_quick_gradients(network, images) == 0
    assert isinstance(network[0], nn.Conv2d)


def test_a_convolution_that_is_used_twice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = self.inner(self.inner(images))
            return result

    monkeypatch.setattr(quick_convolution, "_seconds", lambda layer, given: type(layer) is nn.Conv2d)
    assert with_quick_gradients(Twice().eval(), torch.rand(1, 1, 4, 4)) == 0
    shared = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    assert with_quick_gradients(nn.Sequential(shared, shared).eval(), torch.rand(1, 1, 4, 4)) == 0
