from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from robustcompress.errors import ModelError
from robustcompress.pruning.groups import couplings
from robustcompress.pruning.tracing import ObstacleError, Stop, Trace


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]


def test_a_layers_channels_are_followed_to_those_that_take_them_in(named_case: Build) -> None:
    case = named_case("small_cnn")
    trace = Trace(case.network, case.images)
    stops = trace.reaches("features.3")
    assert [(stop.name, stop.consumes) for stop in stops if stop.module is not None] == [
        ("features.3", False),
        ("features.4", False),
        ("hidden.0", True),
    ]
    assert {stop.name for stop in stops if stop.module is None} == {"Relu", "View", "T"}
    assert [stop.ends for stop in trace.reaches("classifier")] == [True]
    assert trace.calls["features.0"] == 1


def test_what_torch_pruning_cannot_trace_is_a_model_error(
    named_case: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("mlp")

    def fail(*arguments: Any, **settings: Any) -> None:
        raise KeyError("parametrizations")

    monkeypatch.setattr(DependencyGraph, "build_dependency", fail)
    with pytest.raises(
        ModelError, match=r"cannot trace this network \(KeyError: 'parametrizations'\).* Use the"
    ):
        Trace(case.network, case.images)


def test_a_group_that_torch_pruning_cannot_follow_is_frozen_alone(
    named_case: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("mlp")
    original = DependencyGraph.get_pruning_group

    def fail(graph: Any, module: nn.Module, function: Any, channels: Iterable[int]) -> Any:
        if isinstance(module, nn.Linear) and module.out_features == 12:
            raise AssertionError("broken")
        return original(graph, module, function, list(channels))

    monkeypatch.setattr(DependencyGraph, "get_pruning_group", fail)
    with pytest.raises(ObstacleError, match="cannot follow its channels"):
        Trace(case.network, case.images).reaches("1")
    found = couplings(case.network, case.images)
    assert [group.name for group in found.groups] == ["3"]
    assert found.frozen[0].reason == "torch-pruning cannot follow its channels (AssertionError: broken)"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda stop: replace(stop, positions=[stop.positions[0]] * 12), "do not have equal shares of '3'"),
        (lambda stop: replace(stop, roots=[0] * 12), "do not have equal shares of '3'"),
        (lambda stop: replace(stop, positions=[12 + i for i in range(12)]), "gave index 12 of 12 for '3'"),
        (lambda stop: None, "no layer takes its channels in"),
    ],
    ids=["twice", "unequal", "outside", "absent"],
)
def test_wrong_indices_of_torch_pruning_freeze_the_group(
    named_case: Build,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Stop], Stop | None],
    reason: str,
) -> None:
    case = named_case("mlp")
    original = Trace.reaches

    def damaged(trace: Trace, layer: str) -> list[Stop]:
        stops = [damage(stop) if stop.consumes and layer == "1" else stop for stop in original(trace, layer)]
        return [stop for stop in stops if stop is not None]

    monkeypatch.setattr(Trace, "reaches", damaged)
    found = couplings(case.network, case.images)
    assert reason in {item.name: item.reason for item in found.frozen}["1"]
    assert [group.name for group in found.groups] == ["3"]


def test_a_network_that_does_not_run_is_a_model_error() -> None:
    with pytest.raises(
        ModelError, match=r"Linear must run on torch.float32 images of shape \[2, 4\]; Runtime"
    ):
        Trace(nn.Linear(3, 2), torch.rand(5, 4))
