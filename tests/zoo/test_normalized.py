import io

import pytest
import torch
from torch import fx, nn

from robustcompress.errors import ConfigError
from robustcompress.zoo.normalized import Normalized


def test_normalized_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel() -> None:
    images = torch.tensor([[[[0.5]], [[1.0]]]])
    outputs = Normalized(nn.Identity(), mean=(0.1, 0.4), std=(0.2, 3.0))(images)
    torch.testing.assert_close(outputs, torch.tensor([[[[2.0]], [[0.2]]]]))


def test_gradients_reach_the_pixels_on_their_own_scale() -> None:
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    Normalized(nn.Identity(), mean=[0.5], std=[0.25])(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full((1, 1, 2, 2), 4.0))


def test_mean_and_deviation_are_buffers_saved_and_moved_with_the_network_but_never_trained() -> None:
    inner = nn.Conv2d(3, 2, 1)
    network = Normalized(inner, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert network.model is inner
    assert network.mean.shape == network.std.shape == (1, 3, 1, 1)
    assert {"mean", "std"} <= set(network.state_dict())
    assert {name for name, _ in network.named_parameters()} == {"model.weight", "model.bias"}
    assert network.double().mean.dtype == torch.float64
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = Normalized(nn.Conv2d(3, 2, 1), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    images = torch.rand(2, 3, 4, 4).double()
    assert torch.equal(other(images), network(images))


def test_normalized_can_be_traced() -> None:
    network = Normalized(nn.Conv2d(1, 2, 3), mean=[0.5], std=[0.5])
    images = torch.rand(2, 1, 5, 5)
    assert torch.equal(fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5, 0.5]), ([], [])])
def test_lengths_that_differ_or_are_zero_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ConfigError, match=f"one number for each channel; got {len(mean)} and {len(std)}"):
        Normalized(nn.Identity(), mean, std)


@pytest.mark.parametrize("deviation", [0.0, -0.1])
def test_a_deviation_that_is_not_above_zero_is_refused(deviation: float) -> None:
    with pytest.raises(ConfigError, match=r"std must be above 0 in every channel; got \[0.5, "):
        Normalized(nn.Identity(), [0.5, 0.5], [0.5, deviation])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        Normalized(nn.Identity(), [0.5], [number])
    with pytest.raises(ConfigError, match="must be finite"):
        Normalized(nn.Identity(), [number], [0.5])
