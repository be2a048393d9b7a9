import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.graph.cost import count_macs, effective_macs


def only(model: nn.Module, images: Tensor) -> tuple[str, int, int, int, tuple[int, ...]]:
    ((name, cost),) = count_macs(model, images).items()
    assert name == ""
    return cost.kind, cost.weights, cost.positions, cost.macs, cost.output_shape


def test_a_linear_layer_costs_its_weights() -> None:
    assert only(nn.Linear(7, 5), torch.rand(3, 7)) == ("linear", 35, 1, 35, (5,))


def test_a_linear_layer_on_tokens_costs_its_weights_for_each_token() -> None:
    assert only(nn.Linear(7, 5), torch.rand(3, 11, 7)) == ("linear", 35, 11, 385, (11, 5))


@pytest.mark.parametrize(("dims", "kind"), [(1, "conv1d"), (2, "conv2d"), (3, "conv3d")])
def test_a_convolution_costs_its_weights_at_each_output_position(dims: int, kind: str) -> None:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 4, 3, stride=2, padding=1)
    side = 5  # (9 + 2 * 1 - 3) // 2 + 1
    weights = 4 * 2 * 3**dims
    expected = (kind, weights, side**dims, weights * side**dims, (4, *[side] * dims))
    assert only(layer, torch.rand(2, 2, *[9] * dims)) == expected


def test_groups_divide_the_inputs_of_each_output() -> None:
    _, weights, _, macs, _ = only(nn.Conv2d(6, 12, 3, groups=3), torch.rand(1, 6, 8, 8))
    assert weights == 12 * (6 // 3) * 9
    assert macs == weights * 6 * 6


def test_macs_equal_the_multiplications_of_the_unfolded_matrix_product() -> None:
    images = torch.rand(2, 3, 10, 7)
    layer = nn.Conv2d(3, 5, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1))
    patches = nn.functional.unfold(images, (3, 2), dilation=(1, 2), padding=(0, 1), stride=(2, 1))
    _, _, _, macs, _ = only(layer, images)
    assert macs == 5 * patches.shape[1] * patches.shape[2]


def test_costs_come_by_name_and_leave_out_layers_that_are_not_called() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(1, 1)
            self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.body(images)
            return logits

    costs = count_macs(Net(), torch.rand(4, 1, 6, 6))
    assert {name: cost.macs for name, cost in costs.items()} == {"body.0": 18 * 16, "body.3": 96}


def test_a_layer_called_twice_costs_twice() -> None:
    layer = nn.Linear(4, 4)
    costs = count_macs(nn.Sequential(layer, nn.ReLU(), layer), torch.rand(1, 4))
    assert {name: (cost.weights, cost.macs) for name, cost in costs.items()} == {"0": (16, 32)}


def test_windows_that_join_the_batch_count_for_their_image() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.layer(images.reshape(-1, 4))
            return scores.reshape(len(images), -1)

    assert count_macs(Windows(), torch.rand(5, 1, 4, 4))["layer"].positions == 4


def test_effective_macs_count_nonzero_weights_at_their_positions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.get_submodule("0").get_parameter("weight")[0, 0] = 0.0
        model.get_submodule("2").get_parameter("weight")[:, 5:] = -0.0
    costs = count_macs(model, torch.rand(1, 1, 6, 6))
    assert [cost.nonzero for cost in costs.values()] == [9, 15]
    assert effective_macs(costs) == 9 * 16 + 15
    assert sum(cost.macs for cost in costs.values()) == 18 * 16 + 96


def test_the_network_and_the_random_state_are_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(32, 2))
    model.get_submodule("2").eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.model(images + torch.rand_like(images))
            return logits

    assert len(count_macs(Noisy(), torch.zeros(2, 1, 6, 6))) == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.get_submodule("0")._forward_hooks


def test_inputs_that_do_not_fit_are_refused_and_hooks_removed() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).train()
    with pytest.raises(ModelError, match=r"cannot be called with images \[1, 4\]: RuntimeError"):
        count_macs(model, torch.rand(1, 4))
    assert model.training
    assert not model.get_submodule("0")._forward_hooks
