"""torch-pruning beside our own tracing: where it can follow a network, both must say the same."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from robustcompress.pruning.groups import couplings
from robustcompress.pruning.second_opinion import second_opinion


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]


def test_both_couple_the_same_channels(case: Case) -> None:
    groups = couplings(case.network, case.images).groups
    found = second_opinion(case.network, case.images, groups)
    assert found == {group.name: "agrees" for group in groups}
    assert groups


def test_the_network_is_left_alone(named_case: Build) -> None:
    case = named_case("resnet18")
    case.network.train().requires_grad_(False)
    before = copy.deepcopy(case.network.state_dict())
    second_opinion(case.network, case.images, couplings(case.network, case.images).groups)
    assert case.network.training
    assert not any(parameter.requires_grad for parameter in case.network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in case.network.state_dict().items())


def test_what_differs_is_named(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    group = couplings(case.network, case.images).groups[0]

    def opinion_of(changed: object) -> str:
        (text,) = second_opinion(case.network, case.images, [changed]).values()  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
        return text

    less = replace(group, consumers=())
    assert opinion_of(less) == f"it couples {group.consumers[0].layer!r} too"
    more = replace(group, consumers=(*group.consumers, replace(group.consumers[0], layer="9")))
    assert opinion_of(more) == "this library couples '9' too"
    turned = replace(group.consumers[0], positions=group.consumers[0].positions.flip(0))
    other = replace(group, consumers=(turned,))
    assert opinion_of(other) == f"it couples other channels of {group.consumers[0].layer!r}"


def test_shuffled_channels_are_beyond_torch_pruning() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.shuffle = nn.ChannelShuffle(2)
            self.last = nn.Conv2d(8, 8, 1, groups=2)
            self.head = nn.Linear(8, 3)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head(self.last(self.shuffle(self.first(images))).mean((2, 3)))
            return found

    network, images = Shuffled(), torch.rand(2, 3, 4, 4)
    groups = couplings(network, images).groups
    found = second_opinion(network, images, groups)
    assert found["first"] == "it couples other channels of 'last'"


def test_a_failure_of_torch_pruning_is_an_opinion(named_case: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    case = named_case("small_cnn")
    groups = couplings(case.network, case.images).groups

    def fail(*arguments: object, **settings: object) -> None:
        raise KeyError("weight")

    monkeypatch.setattr("robustcompress.pruning.second_opinion.DependencyGraph.get_pruning_group", fail)
    found = second_opinion(case.network, case.images, groups)
    assert set(found.values()) == {"torch-pruning cannot follow it (KeyError)"}
    monkeypatch.setattr("robustcompress.pruning.second_opinion.DependencyGraph.build_dependency", fail)
    found = second_opinion(case.network, case.images, groups)
    assert found == {group.name: "torch-pruning cannot trace the network (KeyError)" for group in groups}
