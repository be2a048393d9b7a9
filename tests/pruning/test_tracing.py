from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.groups import couplings
from robustcompress.pruning.labels import Slot
from robustcompress.pruning.operations import Call
from robustcompress.pruning.tracing import Trace, is_depthwise


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]


def test_every_layer_that_runs_has_channels_that_it_takes_and_makes(case: Case) -> None:
    ties = Trace(case.network, case.images).ties
    own = {name for name, module in case.network.named_modules() if hasattr(module, "in_channels")}
    own |= {name for name, module in case.network.named_modules() if isinstance(module, nn.Linear)}
    assert own <= ties.layers(0)
    assert not any(
        isinstance(case.network.get_submodule(name), nn.modules.batchnorm._NormBase)
        for name in ties.layers(1)
    )


def test_a_layers_channels_are_followed_to_those_that_take_them_in(named_case: Build) -> None:
    case = named_case("small_cnn")
    units = Trace(case.network, case.images).ties.units()
    (slots, reason) = next(unit for unit in units if Slot("features.3", 0, 2) in unit[0])
    assert reason is None
    assert {(slot.layer, slot.axis) for slot in slots} == {
        ("features.3", 0),
        ("features.4", 0),
        ("hidden.0", 1),
    }


def test_the_network_its_mode_and_its_hooks_stay_as_they_are(named_case: Build) -> None:
    case = named_case("resnet18")
    before = {name: tensor.clone() for name, tensor in case.network.state_dict().items()}
    state = torch.get_rng_state()
    Trace(case.network, case.images)
    assert torch.equal(torch.get_rng_state(), state)
    assert case.network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in case.network.state_dict().items())


def test_what_cannot_be_followed_is_frozen_and_the_rest_is_not(
    named_case: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = named_case("mlp")
    original = Call.keeps_zero

    def fail(call: Call, is_zero: Any) -> bool:
        if call.arguments["self"].shape[1] == 12:
            raise RuntimeError("broken")
        return original(call, is_zero)

    monkeypatch.setattr(Call, "keeps_zero", fail)
    found = couplings(case.network, case.images)
    assert [group.name for group in found.groups] == ["3"]
    assert found.frozen[0].reason == (
        "its channels pass through ReLU '2', which could not be followed (RuntimeError)"
    )


class Strange(torch.autograd.Function):
    """An operation that a user wrote with NumPy, out of sight of torch."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return torch.from_numpy(images.detach().cpu().numpy() * 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


class OutOfSight(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return Strange.apply(images)  # type: ignore[no-untyped-call, no-any-return]  # torch's own


def test_what_torch_does_not_see_is_left_to_the_rehearsal() -> None:
    network = nn.Sequential(nn.Linear(3, 4), OutOfSight(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    found = couplings(network, torch.rand(2, 3))
    assert [group.name for group in found.groups] == ["2"]
    assert {item.name: item.reason for item in found.frozen}["0"] == "no layer takes its channels in"


def test_a_transformer_of_torch_is_followed_into_its_hidden_layer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Linear(3, 8), layer, nn.Flatten(), nn.Linear(40, 2))
    found = couplings(network, torch.rand(2, 5, 3))
    assert [(group.name, group.channels) for group in found.groups] == [("1.linear1", 16)]
    assert "pass through" in {item.name: item.reason for item in found.frozen}["1.linear2"]


def test_depthwise_means_one_channel_a_group() -> None:
    assert is_depthwise(nn.Conv2d(4, 4, 3, groups=4))
    assert is_depthwise(nn.Conv1d(4, 8, 3, groups=4))
    assert not is_depthwise(nn.Conv2d(4, 4, 3, groups=2))
    assert not is_depthwise(nn.Conv2d(1, 4, 3))
    assert not is_depthwise(nn.Linear(4, 4))


def test_a_network_that_does_not_run_is_a_model_error() -> None:
    with pytest.raises(
        ModelError, match=r"Linear must run on torch.float32 images of shape \[2, 4\]; Runtime"
    ):
        Trace(nn.Linear(3, 2), torch.rand(5, 4))
