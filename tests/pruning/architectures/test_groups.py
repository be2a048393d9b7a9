import copy

import pytest
import torch
from torch import nn

from robustcompress.errors import ModelError
from robustcompress.graph.cost import count_macs
from robustcompress.pruning.groups import Couplings, couplings
from robustcompress.pruning.patterns.channel import Channel
from robustcompress.pruning.rehearsal import rehearse
from robustcompress.pruning.removal import Removal, remove
from tests.pruning.architectures.networks import ARCHITECTURES, SHAPE, settled


def found(name: str) -> tuple[nn.Module, Couplings]:
    network = settled(name)
    return network, couplings(network, torch.rand(2, *SHAPE))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_stays_is_known_beforehand_and_the_rehearsal_finds_nothing_more(name: str) -> None:
    network, groups = found(name)
    reasons = {item.name: item.reason for item in groups.frozen}
    assert set(reasons) == set(ARCHITECTURES[name].frozen)
    assert all(part in reasons[layer] for layer, part in ARCHITECTURES[name].frozen.items())
    assert rehearse(network, torch.rand(2, *SHAPE), groups) == groups


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_of_every_group_takes_most_of_the_multiply_adds_away(name: str) -> None:
    network, groups = found(name)
    small = copy.deepcopy(network)
    remove(small, [Removal(group, torch.arange(group.channels) % 2 == 1) for group in groups.groups])
    before, after = (
        sum(cost.macs for cost in count_macs(module, torch.rand(1, *SHAPE)).values())
        for module in (network, small)
    )
    assert 1 - after / before >= ARCHITECTURES[name].macs
    assert (before == after) == (not groups.groups)


def test_a_network_whose_norms_all_span_channels_is_refused_and_says_why() -> None:
    with pytest.raises(
        ModelError, match=r"no channel of the network .* \(0: its channels pass through GroupNorm '1', from"
    ):
        Channel().plan(settled("groupnorm_resnet"), torch.rand(2, *SHAPE), ())


def test_a_grouped_convolution_loses_the_same_channels_of_every_group() -> None:
    network, groups = found("resnext")
    (group,) = [group for group in groups.groups if group.name == "1.body.0.0"]
    (consumer,) = [place for place in group.consumers if place.layer == "1.body.1.0"]
    assert group.producers[0].positions.tolist() == [[j, 4 + j, 8 + j, 12 + j] for j in range(4)]
    assert consumer.positions.tolist() == [[0], [1], [2], [3]]
    remove(network, [Removal(group, torch.tensor([True, False, True, False]))])
    grouped = network.get_submodule("1.body.1.0")
    assert isinstance(grouped, nn.Conv2d)
    assert (grouped.groups, grouped.in_channels, tuple(grouped.weight.shape)) == (4, 8, (16, 2, 3, 3))


def test_a_depthwise_convolution_loses_whole_groups_with_all_that_they_make() -> None:
    network, groups = found("multiplied")
    group = groups.groups[0]
    assert [place.layer for place in group.producers] == ["0.0", "1"]
    assert group.producers[1].positions.tolist() == [[2 * j, 2 * j + 1] for j in range(8)]
    remove(network, [Removal(group, torch.arange(8) < 5)])
    depthwise = network.get_submodule("1")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (3, 3, 6)


def test_a_grouped_convolution_left_with_one_channel_a_group_keeps_its_groups() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 4, 1), nn.Flatten(), nn.LazyLinear(2)
    )
    network(torch.rand(1, *SHAPE))
    groups = couplings(network, torch.rand(2, *SHAPE)).groups
    remove(network, [Removal(group, torch.arange(group.channels) > 0) for group in groups])
    grouped = network[1]
    assert isinstance(grouped, nn.Conv2d)
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (4, 4, 4)
    assert network(torch.rand(1, *SHAPE)).shape == (1, 2)


def test_the_gate_of_a_channel_goes_with_it() -> None:
    _, groups = found("se_resnet")
    stream = groups.groups[0]
    assert {place.layer for place in stream.producers} == {
        "0.0", "1.conv2", "1.gate.excite", "2.conv2", "2.gate.excite"
    }  # fmt: skip
    assert {"1.gate.squeeze", "2.gate.squeeze"} <= {place.layer for place in stream.consumers}


def test_a_layer_that_runs_three_times_is_one_member_of_its_stream() -> None:
    _, groups = found("reused")
    stream = groups.groups[0]
    assert [place.layer for place in stream.producers] == ["stem.0", "again"]
    assert [place.layer for place in stream.norms] == ["stem.1", "norm"]
    assert [place.layer for place in stream.consumers] == ["again", "hidden"]


def test_pixels_that_become_channels_and_back_are_followed() -> None:
    _, groups = found("pixel_shuffle")
    places = {place.layer: place.positions.tolist() for group in groups.groups for place in group.producers}
    assert places["1"] == [[4 * j + pixel for pixel in range(4)] for j in range(6)]
    consumers = {
        place.layer: place.positions.tolist() for group in groups.groups for place in group.consumers
    }
    assert consumers["8"] == [[4 * j + pixel for pixel in range(4)] for j in range(12)]
