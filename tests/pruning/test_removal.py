import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from robustcompress.errors import CompactionError
from robustcompress.pruning.groups import couplings
from robustcompress.pruning.removal import Removal, gate, kept_entries, remove, zero, zeroed


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]


def every_second(case: Case) -> list[Removal]:
    groups = couplings(case.network, case.images).groups
    return [Removal(group, torch.arange(group.channels) % 2 == 1) for group in groups]


def test_torch_prunings_own_pruning_gives_the_same_network(case: Case) -> None:
    removals = every_second(case)
    theirs = copy.deepcopy(case.network).eval()
    graph: Any = DependencyGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph.build_dependency(theirs, (case.images,), verbose=False)
        for removal in removals:
            root = theirs.get_submodule(removal.group.name)
            function = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, function, removal.channels.nonzero().flatten().tolist()).prune()
    remove(case.network, removals)
    expected, actual = theirs.state_dict(), case.network.state_dict()
    assert list(expected) == list(actual)
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
    with torch.no_grad():
        assert torch.equal(theirs(case.images), case.network.eval()(case.images))


def test_zeroed_finds_exactly_what_zero_zeroed(case: Case) -> None:
    parameters = dict(case.network.named_parameters())
    for removal in every_second(case):
        assert not bool(zeroed(parameters, removal.group).any())
        zero(parameters, removal)
        assert torch.equal(zeroed(parameters, removal.group), removal.channels)


def test_zero_leaves_no_negative_zeros_and_touches_nothing_else(named_case: Build) -> None:
    case = named_case("resnet18")
    removal = every_second(case)[1]
    before = copy.deepcopy(case.network.state_dict())
    zero(dict(case.network.named_parameters()), removal)
    gone = {place.layer for place in (*removal.group.producers, *removal.group.norms)}
    for name, tensor in case.network.state_dict().items():
        if name.rpartition(".")[0] in gone and name.endswith(("weight", "bias")):
            assert torch.equal(tensor[::2], before[name][::2])
            assert not bool(tensor[1::2].any())
            assert not bool(tensor[1::2].signbit().any())
        else:
            assert torch.equal(tensor, before[name])


def test_gates_of_one_change_nothing_and_gates_of_zero_cut_the_next_layers(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    (group,) = [group for group in couplings(case.network, case.images).groups if group.name == "3"]
    parameters: dict[str, Tensor] = dict(case.network.named_parameters())
    tensors = dict(parameters)
    gate(tensors, group, torch.ones(8))
    assert all(torch.equal(tensors[name], parameters[name]) for name in parameters)
    gate(tensors, group, torch.tensor([1.0, 0, 1, 1, 1, 1, 1, 1]))
    assert not bool(tensors["7.weight"][:, 4:8].any())
    assert torch.equal(tensors["7.weight"][:, 8:], parameters["7.weight"][:, 8:])
    assert [name for name in parameters if tensors[name] is not parameters[name]] == ["7.weight"]


def test_layers_keep_requires_grad_and_hold_parameters(named_case: Build) -> None:
    case = named_case("small_cnn")
    case.network.get_parameter("features.3.weight").requires_grad_(False)
    remove(case.network, every_second(case))
    for name, parameter in case.network.named_parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.requires_grad == (name != "features.3.weight")


def test_a_normalisation_without_running_statistics_shrinks_too() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    (group,) = couplings(network, torch.rand(3, 3)).groups
    remove(network, [Removal(group, torch.tensor([True, False, False, True]))])
    assert network(torch.rand(3, 3)).shape == (3, 2)


@pytest.mark.parametrize(
    "channels", [torch.zeros(5, dtype=torch.bool), torch.zeros(6), torch.zeros(6, 1, dtype=torch.bool)]
)
def test_a_removal_of_another_shape_is_refused(named_case: Build, channels: Tensor) -> None:
    case = named_case("flatten_cnn")
    group = couplings(case.network, case.images).groups[0]
    with pytest.raises(CompactionError, match=r"what to remove from '0' must be bool \[6\]; got torch\."):
        remove(case.network, [Removal(group, channels)])


def test_a_layer_that_would_lose_everything_is_refused_before_anything_changes(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    groups = couplings(case.network, case.images).groups
    removals = [
        Removal(groups[0], torch.arange(6) > 2),
        Removal(groups[1], torch.ones(8, dtype=torch.bool)),
    ]
    before = copy.deepcopy(case.network.state_dict())
    with pytest.raises(CompactionError, match="'3' must keep at least one channel; all 8 were to go"):
        remove(case.network, removals)
    after = case.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_groups_of_a_network_that_has_shrunk_since_are_refused(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    removals = every_second(case)
    remove(case.network, removals)
    with pytest.raises(CompactionError, match=r"channels of '0' must lie within the 3 of '0'; its shape has"):
        kept_entries(case.network, removals)


def test_a_layer_that_cannot_shrink_is_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    (group,) = couplings(plain, torch.rand(2, 3)).groups
    with pytest.raises(CompactionError, match="LayerNorm cannot lose channels"):
        remove(network, [Removal(replace(group), torch.arange(4) > 1)])
