import copy

import pytest
import torch
from torch import Tensor, nn

from robustcompress.pruning.equality import Difference, first_difference, relative_difference


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-30], float("inf")),
        ([1.0, 2.0], [1.0], float("inf")),
        ([1.0, float("nan")], [1.0, float("nan")], float("inf")),
        ([1.0, 2.0], [1.0, float("inf")], float("inf")),
        ([], [], 0.0),
    ],
)
def test_relative_difference(expected: list[float], actual: list[float], difference: float) -> None:
    assert relative_difference(torch.tensor(expected), torch.tensor(actual)) == difference


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2)).double()


def compare(large: nn.Module, small: nn.Module, kept: dict[str, Tensor] | None = None) -> Difference | None:
    images = torch.rand(5, 3, dtype=torch.float64)
    return first_difference(large, small, images, kept or {}, tolerance=1e-10)


def test_equal_networks_do_not_differ() -> None:
    network = chain()
    assert compare(network, copy.deepcopy(network)) is None


@pytest.mark.parametrize("layer", ["0", "2", "3"])
def test_the_first_layer_with_another_weight_is_found(layer: str) -> None:
    network = chain()
    other = copy.deepcopy(network)
    other.get_parameter(f"{layer}.bias").data += 1.0
    found = compare(network, other)
    assert found is not None
    assert found.layer == layer
    assert found.reason.startswith("puts out something else, by ")


def test_kept_channels_are_compared_with_those_of_the_larger_layer() -> None:
    network, other = chain(), chain()
    other.load_state_dict(network.state_dict())
    order = torch.tensor([3, 1])
    with torch.no_grad():
        network.get_parameter("0.weight")[[0, 2]] = 0.0
        network.get_parameter("0.bias")[[0, 2]] = 0.0
    other[0] = nn.Linear(3, 2).double()
    other[2] = nn.Linear(2, 4).double()
    with torch.no_grad():
        other.get_parameter("0.weight").copy_(network.get_parameter("0.weight")[order])
        other.get_parameter("0.bias").copy_(network.get_parameter("0.bias")[order])
        other.get_parameter("2.weight").copy_(network.get_parameter("2.weight")[:, order])
        other.get_parameter("2.bias").copy_(network.get_parameter("2.bias"))
    assert compare(network, other, {"0": order}) is None
    found = compare(network, other, {"0": order.flip(0)})
    assert found is not None
    assert found.layer == "0"


def test_a_layer_that_fails_is_found_with_its_error() -> None:
    network = chain()
    other = copy.deepcopy(network)
    other[2] = nn.Linear(3, 4).double()
    found = compare(network, other)
    assert found is not None
    assert found.layer == "2"
    assert found.reason.startswith("does not run any more (mat1 and mat2 shapes cannot be multiplied")


def test_a_layer_that_is_no_longer_called_is_found() -> None:
    network = chain()
    other = nn.Sequential(network[0], network[1], network[2])
    assert compare(network, other) == Difference("3", "does not run any more (it is not called)")


def test_layers_that_run_twice_are_compared_call_by_call() -> None:
    step = nn.Linear(3, 3).double()
    network = nn.Sequential(step, nn.Tanh(), step)
    found = compare(network, nn.Sequential(step, nn.Sigmoid(), step))
    assert found is not None
    assert found.layer == "1"


def test_layers_that_may_differ_are_not_blamed() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    other = copy.deepcopy(network)
    other.get_parameter("0.bias").data += 1.0
    other.get_buffer("1.running_mean").add_(1.0)
    other.get_parameter("2.bias").data += 1.0
    images = torch.rand(5, 3, dtype=torch.float64)
    for skip, layer in (((), "0"), (("0",), "2")):
        found = first_difference(network, other, images, {}, tolerance=1e-10, skip=skip)
        assert found is not None
        assert found.layer == layer
