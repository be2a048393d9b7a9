import copy
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import CompactionError, ConfigError, ModelError
from robustcompress.pruning import compaction
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.compaction import compact
from robustcompress.pruning.groups import couplings
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns.unstructured import Unstructured
from robustcompress.pruning.removal import Removal, remove, zero, zeroed
from robustcompress.pruning.scores.magnitude import Magnitude


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Bake = Callable[[Case, float], nn.Module]
Build = Callable[[str], Case]


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(images.double())  # type: ignore[no-any-return]


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9, 0.99])
def test_every_group_loses_its_share_and_the_logits_stay_the_same(
    case: Case, masked: Bake, sparsity: float
) -> None:
    baked = masked(case, sparsity)
    result = compact(baked, case.images, check_inputs=torch.rand(3, *case.images.shape[1:]))
    assert result.difference < 1e-12
    parameters = dict(baked.named_parameters())
    groups = couplings(case.network, case.images).groups
    assert result.removed == {group.name: int(zeroed(parameters, group).sum()) for group in groups}
    units = sum(group.channels for group in groups)
    assert sum(result.removed.values()) == min(round(sparsity * units), units - len(groups))
    assert result.folded == result.carried == {}
    assert type(result.network) is type(case.network)
    unseen = torch.randn(5, *case.images.shape[1:]) * 3
    expected, actual = logits(baked, unseen), logits(result.network, unseen)
    assert bool((expected - actual).abs().max() <= 1e-10 * expected.abs().max())


def test_the_layers_say_their_new_sizes(named_case: Build, masked: Bake) -> None:
    case = named_case("separable")
    network = compact(masked(case, 0.5), case.images).network
    first, depthwise, pointwise = (network.get_submodule(name) for name in ("0", "3", "6"))
    norm = network.get_submodule("1")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(pointwise, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(norm.running_var, Tensor)
    assert (first.out_channels, norm.num_features, len(norm.running_var), len(norm.bias)) == (4, 4, 4, 4)
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (4, 4, 4)
    assert (pointwise.in_channels, tuple(pointwise.weight.shape)) == (4, (3, 4, 1, 1))


def test_the_proof_covers_other_heights_and_widths_where_the_network_takes_them(
    named_case: Build, masked: Bake
) -> None:
    pooled, flattened = named_case("resnet18"), named_case("flatten_cnn")
    sizes = {shape[2:] for shape in compact(masked(pooled, 0.5), pooled.images).checked}
    assert sizes == {(12, 12), (6, 6), (15, 16)}
    fixed = compact(masked(flattened, 0.5), flattened.images, check_inputs=torch.rand(130, 3, 8, 8)).checked
    assert {shape[2:] for shape in fixed} == {(8, 8)}
    assert sorted(shape[0] for shape in fixed) == [2, 2, 4, 64, 64]


def test_the_network_that_comes_in_stays_as_it_is(named_case: Build, masked: Bake) -> None:
    case = named_case("resnet18")
    baked = masked(case, 0.5)
    baked.train()
    baked.get_submodule("blocks.0").eval()
    frozen = baked.get_parameter("blocks.1.conv1.weight").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in baked.state_dict().items()}
    modes = [module.training for module in baked.modules()]
    state = torch.get_rng_state()
    result = compact(baked, case.images).network
    assert torch.equal(torch.get_rng_state(), state)
    after = baked.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [module.training for module in baked.modules()] == modes
    assert baked.get_parameter("blocks.1.conv1.weight") is frozen
    assert [name for name, parameter in baked.named_parameters() if not parameter.requires_grad] == [
        "blocks.1.conv1.weight"
    ]
    assert [name for name, parameter in result.named_parameters() if not parameter.requires_grad] == [
        "blocks.1.conv1.weight"
    ]
    assert [module.training for module in result.modules()] == modes
    assert all(tensor.dtype == after[name].dtype for name, tensor in result.state_dict().items())


def test_a_dense_network_loses_nothing(named_case: Build) -> None:
    case = named_case("small_cnn")
    result = compact(case.network, case.images)
    assert set(result.removed.values()) == {0}
    assert result.difference == 0.0
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, case.network.state_dict()[name])


def test_a_filter_of_zeros_goes_if_its_normalisation_puts_out_nothing_or_another_can_carry_it(
    named_case: Build,
) -> None:
    case = named_case("small_cnn")
    network = case.network.double().eval()  # the layer that reads the channels pads with zeros
    with torch.no_grad():
        network.get_parameter("features.0.weight")[2] = 0.0
        network.get_buffer("features.1.running_mean")[2] = 0.0
        network.get_parameter("features.1.bias")[2] = 1.5
    assert compact(network, case.images.double()).removed["features.0"] == 0
    with torch.no_grad():
        network.get_parameter("features.0.weight")[4] = 0.0
        network.get_buffer("features.1.running_mean")[4] = 0.0
        network.get_parameter("features.1.bias")[4] = 0.5
    result = compact(network, case.images.double())
    assert (result.removed["features.0"], result.carried) == (1, {"features.3": 1})
    with torch.no_grad():
        network.get_parameter("features.1.bias")[2] = -1.5
        network.get_parameter("features.1.bias")[4] = 0.0
    result = compact(network, case.images.double())
    assert (result.removed["features.0"], result.carried) == (2, {})


def test_a_group_that_is_dead_everywhere_keeps_one_channel(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    with torch.no_grad():
        for parameter in case.network.get_submodule("0").parameters():
            parameter.zero_()
    result = compact(case.network, case.images)
    assert result.removed["0"] == 5  # and what follows is the same for every image
    assert result.removed == {"0": 5, "3": 7, "7": 6}
    assert torch.allclose(logits(case.network, case.images), logits(result.network, case.images), rtol=1e-6)
    assert result.difference < 1e-14


def test_filters_that_an_unstructured_mask_emptied_go_too(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    network = case.network
    with torch.no_grad():
        for layer in ("0", "3", "7"):
            network.get_parameter(f"{layer}.bias").zero_()
            network.get_parameter(f"{layer}.weight")[::3] *= 1e-6
    sites = Unstructured().plan(network, case.images, ()).sites
    parameters = dict(network.named_parameters())
    Masking(sites, score=Magnitude(), budget=Uniform(), sparsity=0.5, parameters=parameters).bake(network)
    result = compact(network, case.images)
    assert result.removed == {"0": 2, "3": 3, "7": 3}
    assert result.difference < 1e-12


def test_ignored_layers_keep_their_shapes(named_case: Build, masked: Bake) -> None:
    case = named_case("flatten_cnn")
    baked = masked(case, 0.5)
    result = compact(baked, case.images, ignore=("3",))
    assert result.removed == {"7": int((baked.get_parameter("7.weight") == 0).all(1).sum())}
    assert result.network.get_parameter("3.weight").shape == (8, 6, 3, 3)
    assert {item.name for item in result.frozen} == {"0", "3", "10"}
    with pytest.raises(ConfigError, match="ignore='conv' matches no layer"):
        compact(case.network, case.images, ignore=("conv",))


class Shifted(nn.Module):
    """Adds a constant to every channel after the first layer: zeros do not stay zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 6, 3)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second((self.first(images) + 1.0).relu()).relu()
        logits: Tensor = self.last(features.mean((2, 3)))
        return logits


def test_dead_channels_that_arrive_as_a_constant_stay() -> None:
    torch.manual_seed(0)
    network = Shifted()
    with torch.no_grad():
        for layer in (network.first, network.second):
            layer.weight[0].zero_()
            assert layer.bias is not None
            layer.bias[0].zero_()
    result = compact(network, torch.rand(2, 3, 8, 8))
    assert result.removed == {"second": 1}
    assert {item.name: item.reason for item in result.frozen} == {
        "last": "its channels are the network's outputs",
        "first": "its channels reach 'second' as something other than zero",
    }


def test_hooks_of_the_network_that_comes_in_stay_and_are_the_only_ones(
    named_case: Build, masked: Bake
) -> None:
    case = named_case("small_cnn")
    baked = masked(case, 0.5)

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output * 1.0

    baked.get_submodule("features.0").register_forward_hook(hook)
    result = compact(baked, case.images).network
    for network in (baked, result):
        hooked = [name for name, module in network.named_modules() if module._forward_hooks]
        assert hooked == ["features.0"]
        assert not any(module._forward_pre_hooks for module in network.modules())


def sabotaged(change: Callable[[nn.Module], None]) -> Callable[[nn.Module, list[Removal]], None]:
    def broken(model: nn.Module, removals: list[Removal]) -> None:
        remove(model, removals)
        change(model)

    return broken


def test_a_wrong_weight_stops_the_compaction_and_names_its_layer(
    named_case: Build, masked: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("resnet18")
    baked = masked(case, 0.5)

    def change(model: nn.Module) -> None:
        model.get_parameter("blocks.3.conv2.weight").data[0, 0, 1, 1] += 1e-6

    monkeypatch.setattr(compaction, "remove", sabotaged(change))
    with pytest.raises(
        CompactionError, match=r"agree to 1e-10 .*: layer 'blocks\.3\.conv2' puts out something"
    ):
        compact(baked, case.images)


def test_a_living_channel_gone_stops_the_compaction_and_names_the_layer_that_missed_it(
    named_case: Build, masked: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("small_cnn")
    baked = masked(case, 0.5)

    def one_more(model: nn.Module, removals: list[Removal]) -> None:
        removals[0].channels[int((~removals[0].channels).nonzero()[0])] = True
        remove(model, removals)

    monkeypatch.setattr(compaction, "remove", one_more)
    with pytest.raises(CompactionError, match=r"layer 'features\.3' puts out something else"):
        compact(baked, case.images)


def test_a_layer_that_no_longer_runs_stops_the_compaction_and_is_named(
    named_case: Build, masked: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("vgg16_bn")
    baked = masked(case, 0.5)

    def change(model: nn.Module) -> None:
        norm = model.get_submodule("features.8")
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean = torch.zeros(17)

    monkeypatch.setattr(compaction, "remove", sabotaged(change))
    with pytest.raises(CompactionError, match=r"differ by inf .*: layer 'features\.8' does not run any more"):
        compact(baked, case.images)


def test_a_difference_outside_all_layers_is_named_by_the_networks_class(
    named_case: Build, masked: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("dense")
    baked = masked(case, 0.5)

    def change(model: nn.Module) -> None:
        kind = type(model)
        model.__class__ = type("Louder", (kind,), {"forward": lambda self, x: kind.forward(self, x) * 1.5})

    monkeypatch.setattr(compaction, "remove", sabotaged(change))
    with pytest.raises(
        CompactionError, match=r"layer 'Dense' puts out something else, by 0\.5 of its largest"
    ):
        compact(baked, case.images)


def test_a_network_that_gives_nan_is_refused(named_case: Build) -> None:
    case = named_case("mlp")
    with torch.no_grad():
        case.network.get_parameter("1.bias")[0] = float("nan")
    with pytest.raises(CompactionError, match="must give finite logits; it gives NaN"):
        compact(case.network, case.images)


def test_images_that_the_network_does_not_take_are_refused(named_case: Build) -> None:
    case = named_case("mlp")
    with pytest.raises(ModelError, match=r"Sequential must run on torch.float64 images of shape \[2, 4\]"):
        compact(case.network, case.images, check_inputs=torch.rand(2, 4))


class Single(nn.Module):
    """Works in float32 and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, images: Tensor) -> Any:
        return self.body(images.float())


def test_a_network_that_cannot_run_in_float64_is_refused() -> None:
    network = Single()
    removal = Removal(couplings(network, torch.rand(2, 3)).groups[0], torch.arange(4) > 1)
    zero(dict(network.named_parameters()), removal)
    with pytest.raises(ModelError, match=r"Single must run on torch\.float64 images"):
        compact(network, torch.rand(2, 3))
