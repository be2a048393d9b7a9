from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.graph.folding import fold_batchnorm


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every normalisation statistics and affine parameters of its own, negative scales included."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            count = module.num_features
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(count, generator=generator))
            module.running_var.copy_(torch.rand(count, generator=generator) + 0.1)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.randn(count, generator=generator))
                    module.bias.copy_(torch.randn(count, generator=generator))
    return model


def assert_same_function(model: nn.Module, folded: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected, found = model.eval()(images), folded(images)
    assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(inputs)))))
        return torch.relu(inner + self.shortcut(inputs))


class Preactivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.conv1(torch.relu(self.bn1(inputs)))
        outputs: Tensor = inputs + self.conv2(torch.relu(self.bn2(inner)))
        return outputs


@given(
    channels=st.integers(1, 5),
    groups=st.booleans(),
    bias=st.booleans(),
    affine=st.booleans(),
    dims=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_folding_keeps_the_function(
    channels: int, groups: bool, bias: bool, affine: bool, dims: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    model = nn.Sequential(
        conv(channels, 2 * channels, 3, padding=1, groups=channels if groups else 1, bias=bias),
        norm(2 * channels, affine=affine),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 4**dims, 6, bias=bias),
        nn.BatchNorm1d(6, affine=affine),
    )
    images = torch.randn(3, channels, *[4] * dims)
    folding = fold_batchnorm(randomized(model, seed), images)
    assert (folding.folded, folding.left, folding.skipped_reason) == (2, (), None)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folding.network.modules())
    assert_same_function(model, folding.network, images)


def test_residual_blocks_are_folded_whole() -> None:
    torch.manual_seed(0)
    model = randomized(nn.Sequential(Residual(4), Residual(4)))
    folding = fold_batchnorm(model)
    assert (folding.folded, folding.left) == (6, ())
    assert_same_function(model, folding.network, torch.randn(2, 4, 5, 5))


def test_preactivation_is_left_where_a_sum_stands_before_it() -> None:
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), Preactivation(4), Preactivation(4)))
    folding = fold_batchnorm(model)
    # The stem feeds the first block's sum as well as its bn1; each bn2 follows its conv1 alone.
    assert (folding.folded, folding.left) == (2, ("1.bn1", "2.bn1"))
    assert_same_function(model, folding.network, torch.randn(2, 3, 8, 8))


def test_removed_weights_stay_positive_zeros_under_negative_scales() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))
    with torch.no_grad():
        model.get_submodule("1").get_parameter("weight").fill_(-2.0)
        weight = model.get_submodule("0").get_parameter("weight")
        weight[0] = 0.0
        weight[1] = -0.0
    folded = fold_batchnorm(model).network.get_submodule("0").get_parameter("weight").detach()
    assert torch.count_nonzero(folded[:2]) == 0
    assert not bool(torch.signbit(folded[:2]).any())
    assert torch.count_nonzero(folded[2]) == folded[2].numel()


def test_folded_values_are_those_of_double_precision_rounded_once() -> None:
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    conv = {
        name: tensor.detach().double().numpy() for name, tensor in model.get_submodule("0").named_parameters()
    }
    norm = {name: tensor.double().numpy() for name, tensor in model.get_submodule("1").state_dict().items()}
    scale = norm["weight"] / np.sqrt(norm["running_var"] + 1e-5)
    weight = conv["weight"] * scale[:, None, None, None]
    bias = (conv["bias"] - norm["running_mean"]) * scale + norm["bias"]
    folded = fold_batchnorm(model).network.get_submodule("0")
    np.testing.assert_array_max_ulp(folded.get_parameter("weight").detach().numpy(), weight.astype("float32"))
    np.testing.assert_allclose(folded.get_parameter("bias").detach().double(), bias, rtol=6e-8, atol=1e-12)


def test_the_model_itself_is_not_changed() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folding = fold_batchnorm(model, torch.randn(2, 1, 5, 5))
    assert not folding.network.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def shared_convolution() -> nn.Module:
    conv = nn.Conv2d(2, 2, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(2), conv, nn.BatchNorm2d(2))


def shared_normalisation() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(2, 2, 1), norm, nn.Conv2d(2, 2, 1), norm)


def batch_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))


def parametrized() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1))
    return nn.Sequential(conv, nn.BatchNorm2d(2))


def pruned_by_a_hook() -> nn.Module:
    conv = nn.Conv2d(2, 2, 1)
    conv.register_forward_pre_hook(lambda module, inputs: None)
    return nn.Sequential(conv, nn.BatchNorm2d(2))


def overflowing() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        model.get_submodule("0").get_parameter("weight").fill_(3e38)
        model.get_submodule("1").get_parameter("weight").fill_(10.0)
    return model


class ReadsTheWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.bn(self.conv(inputs)) * self.conv.weight.sum()
        return outputs


class UsesTheConvolutionTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.conv(inputs)
        outputs: Tensor = inner + self.bn(inner)
        return outputs


@pytest.mark.parametrize(
    "build",
    [
        shared_convolution,
        shared_normalisation,
        batch_statistics,
        parametrized,
        pruned_by_a_hook,
        overflowing,
        ReadsTheWeight,
        UsesTheConvolutionTwice,
    ],
)
def test_what_cannot_be_folded_exactly_is_left_alone(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    folding = fold_batchnorm(model)
    assert folding.folded == 0
    assert folding.left
    assert folding.skipped_reason is None
    images = torch.randn(4, 2, 3, 3)
    assert torch.equal(folding.network(images), model.eval()(images))


def test_a_weight_shared_by_two_layers_is_folded_into_one_only() -> None:
    first, second = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)
    second.weight = first.weight
    model = randomized(nn.Sequential(first, nn.BatchNorm2d(2), second))
    folding = fold_batchnorm(model)
    assert folding.folded == 1
    assert_same_function(model, folding.network, torch.randn(2, 2, 3, 3))


def test_a_linear_layer_on_tokens_is_told_from_one_on_features() -> None:
    model = randomized(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    tokens, features = torch.randn(5, 4, 3), torch.randn(5, 3)  # as many tokens as features
    assert fold_batchnorm(model).folded == 0
    assert fold_batchnorm(model, tokens).folded == 0
    assert fold_batchnorm(model, features).folded == 1
    assert_same_function(model, fold_batchnorm(model, features).network, features)


def test_an_untraceable_network_comes_back_whole_with_the_reason() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))

        def forward(self, images: Tensor) -> Tensor:
            outputs: Tensor = self.body(images) if bool(images.sum() > 0) else images
            return outputs

    model = randomized(Branching())
    folding = fold_batchnorm(model)
    assert (folding.folded, folding.left) == (0, ("body.1",))
    assert folding.skipped_reason is not None
    assert folding.skipped_reason.startswith("torch.fx cannot trace Branching: ")
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(folding.network(images), model.eval()(images))


def test_a_forward_that_stores_its_features_is_not_left_with_traces() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
            self.features: Tensor | None = None

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.body(images)
            self.features = features
            return features.flatten(1)

    folding = fold_batchnorm(randomized(Remembering()))
    assert folding.folded == 1
    assert getattr(folding.network, "features", "gone") is None


def test_a_network_without_batch_normalisation_is_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    folding = fold_batchnorm(model)
    assert (folding.folded, folding.left, folding.skipped_reason) == (0, (), None)
    assert not folding.network.training
    assert folding.network is not model


def test_inputs_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ModelError, match=r"cannot be called with images \[5, 2\]: RuntimeError"):
        fold_batchnorm(model, torch.randn(5, 2))
