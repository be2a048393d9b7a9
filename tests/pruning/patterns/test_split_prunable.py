import pytest
import torch
from torch import nn

from robustcompress.errors import ConfigError
from robustcompress.pruning.patterns import split_prunable


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.Conv2d(2, 4, 3, groups=2), nn.Conv3d(1, 2, 3), nn.Linear(4, 4),
        nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 4),
    )  # fmt: skip


def test_convolutions_and_linear_layers_are_prunable_and_nothing_else() -> None:
    layers, frozen = split_prunable(network(), ())
    assert list(layers) == ["0", "1", "2", "3", "6"]
    assert frozen == []


def test_globs_freeze_what_they_match() -> None:
    nested = nn.ModuleDict({"body": network(), "head": nn.Linear(2, 2)})
    layers, frozen = split_prunable(nested, ("body.[0-2]", "head"))
    assert list(layers) == ["body.3", "body.6"]
    assert [(item.name, item.reason) for item in frozen] == [
        ("body.0", "ignored by 'body.[0-2]'"),
        ("body.1", "ignored by 'body.[0-2]'"),
        ("body.2", "ignored by 'body.[0-2]'"),
        ("head", "ignored by 'head'"),
    ]


def test_a_shared_weight_belongs_to_the_first_layer() -> None:
    tied = network()
    tied[6].weight = tied[3].weight
    layers, frozen = split_prunable(tied, ())
    assert "3" in layers
    assert [(item.name, item.reason) for item in frozen] == [("6", "shares its weight with '3'")]


def test_a_computed_weight_is_frozen() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    layers, frozen = split_prunable(model, ())
    assert list(layers) == ["1"]
    assert [(item.name, item.reason) for item in frozen] == [
        ("0", "its weight is computed by a parametrization")
    ]


def test_a_layer_may_be_the_network_itself() -> None:
    layers, _ = split_prunable(nn.Linear(2, 2), ())
    assert list(layers) == [""]


def test_a_norm_cannot_be_named() -> None:
    assert isinstance(network()[5](torch.rand(1, 2, 3, 3)), torch.Tensor)
    with pytest.raises(ConfigError, match="ignore='5' matches no layer"):
        split_prunable(network(), ("5",))
