import copy
import re
from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.errors import ConfigError, ModelError
from robustcompress.pruning.groups import ChannelGroup, couplings
from robustcompress.pruning.patterns import PRUNABLE
from robustcompress.pruning.rehearsal import rehearse


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]


def layers(group: ChannelGroup) -> tuple[set[str], set[str], set[str]]:
    return (
        {place.layer for place in group.producers},
        {place.layer for place in group.norms},
        {place.layer for place in group.consumers},
    )


def frozen_reasons(network: nn.Module, images: Tensor, ignore: tuple[str, ...] = ()) -> dict[str, str]:
    return {item.name: item.reason for item in couplings(network, images, ignore).frozen}


def test_every_prunable_layer_is_in_one_group_or_frozen_with_a_reason(case: Case) -> None:
    found = couplings(case.network, case.images)
    named = [place.layer for group in found.groups for place in group.producers]
    named += [item.name for item in found.frozen]
    expected = [name for name, module in case.network.named_modules() if isinstance(module, PRUNABLE)]
    assert sorted(named) == sorted(expected)
    assert all(item.reason == "its channels are the network's outputs" for item in found.frozen)


def test_every_channel_has_equal_and_separate_places_everywhere(case: Case) -> None:
    taken: set[tuple[str, int, int]] = set()
    for group in couplings(case.network, case.images).groups:
        for place in group.places:
            assert len(place.positions) == group.channels
            for position in place.positions.flatten().tolist():
                key = (place.layer, place.axis, position)
                assert key not in taken
                taken.add(key)
                assert position < case.network.get_parameter(f"{place.layer}.weight").shape[place.axis]


def test_the_stream_of_a_residual_stage_is_one_group(named_case: Build) -> None:
    case = named_case("resnet18")
    groups = {group.name: layers(group) for group in couplings(case.network, case.images).groups}
    assert groups["blocks.2.conv2"] == (
        {"blocks.2.conv2", "blocks.2.shortcut.0", "blocks.3.conv2"},
        {"blocks.2.bn2", "blocks.2.shortcut.1", "blocks.3.bn2"},
        {"blocks.3.conv1", "blocks.4.conv1", "blocks.4.shortcut.0"},
    )
    assert groups["blocks.2.conv1"] == ({"blocks.2.conv1"}, {"blocks.2.bn1"}, {"blocks.2.conv2"})
    assert len(groups) == 12


def test_a_pre_activation_stream_is_normalised_by_the_blocks_that_read_it(named_case: Build) -> None:
    case = named_case("wide_resnet_28_4")
    groups = {group.name: layers(group) for group in couplings(case.network, case.images).groups}
    producers, norms, consumers = groups["blocks.8.conv2"]
    assert producers == {"blocks.8.shortcut", *(f"blocks.{block}.conv2" for block in (8, 9, 10, 11))}
    assert norms == {"bn", *(f"blocks.{block}.bn1" for block in (9, 10, 11))}
    assert consumers == {"classifier", *(f"blocks.{block}.conv1" for block in (9, 10, 11))}


def test_a_flatten_gives_each_channel_its_pixels(named_case: Build) -> None:
    case = named_case("flatten_cnn")
    (group,) = [group for group in couplings(case.network, case.images).groups if group.name == "3"]
    (consumer,) = group.consumers
    assert consumer.layer == "7"
    assert consumer.positions.tolist() == [list(range(4 * channel, 4 * channel + 4)) for channel in range(8)]


def test_concatenated_channels_keep_their_offsets(named_case: Build) -> None:
    case = named_case("dense")
    groups = {group.name: group for group in couplings(case.network, case.images).groups}
    places = {place.layer: place.positions.flatten().tolist() for place in groups["b"].places}
    offset = [4, 5, 6, 7, 8]
    assert places == {"b": [0, 1, 2, 3, 4], "bn2": offset, "c": offset, "last": offset}


def test_frozen_parameters_no_grad_and_mode_do_not_hide_groups(named_case: Build) -> None:
    case = named_case("resnet18")
    expected = [layers(group) for group in couplings(case.network, case.images).groups]
    case.network.requires_grad_(False).train()
    case.network.get_submodule("blocks.0").eval()
    modes = [module.training for module in case.network.modules()]
    before = copy.deepcopy(case.network.state_dict())
    with torch.no_grad():
        found = couplings(case.network, case.images)
    assert [layers(group) for group in found.groups] == expected
    assert [module.training for module in case.network.modules()] == modes
    assert not any(parameter.requires_grad for parameter in case.network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in case.network.state_dict().items())


def test_an_ignored_layer_freezes_its_group_as_producer_and_as_consumer(named_case: Build) -> None:
    case = named_case("resnet18")
    reasons = frozen_reasons(case.network, case.images, ("blocks.3.conv2",))
    tied = "its channels are tied to 'blocks.3.conv2', which is left alone: ignored by 'blocks.3.conv2'"
    assert reasons == {
        "blocks.2.conv2": tied,
        "blocks.2.shortcut.0": tied,
        "blocks.3.conv1": tied,
        "blocks.3.conv2": "ignored by 'blocks.3.conv2'",
        "classifier": "its channels are the network's outputs",
    }


def test_a_glob_that_matches_nothing_is_an_error(named_case: Build) -> None:
    case = named_case("mlp")
    with pytest.raises(ConfigError, match="ignore='fc' matches no layer"):
        couplings(case.network, case.images, ("fc",))


def test_a_network_without_layers_is_an_error() -> None:
    with pytest.raises(
        ModelError, match=r"no Conv1d, Conv2d, Conv3d or Linear layer, so no channels to prune"
    ):
        couplings(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)), torch.rand(2, 3))


class Shuffled(nn.Module):
    """A channel shuffle written with view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        batch, channels, height, width = features.shape
        features = features.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        features = self.second(features.reshape(batch, channels, height, width))
        logits: Tensor = self.last(features.mean((2, 3)))
        return logits


class HandMade(nn.Module):
    """A convolution that is no layer: its weight is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight)


class Scaled(nn.Module):
    """One learnt factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale


class Attention(nn.Module):
    """Squeeze and excitation, whose sigmoid turns zeros into halves."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Linear(4, 2)
        self.excite = nn.Linear(2, 4)

    def forward(self, images: Tensor) -> Tensor:
        weights = self.excite(F.relu(self.squeeze(images.mean((2, 3))))).sigmoid()
        scaled: Tensor = images * weights[:, :, None, None]
        return scaled


class Part(nn.Module):
    """Takes some of the channels."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__()
        self.first, self.end = first, end

    def forward(self, images: Tensor) -> Tensor:
        return images[:, self.first : self.end]


class ChannelPad(nn.Module):
    """Adds a channel of zeros on both sides."""

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images, (0, 0, 0, 0, 1, 1))


class Parts(nn.Module):
    """Cuts the channels into parts and swaps them."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(images.split(self.sizes, 1)[::-1], 1)


class Gram(nn.Module):
    """Products of all pairs of channels."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(2)
        return torch.bmm(flat, flat.transpose(1, 2))[:, None].expand(-1, 6, -1, -1)


class WrittenInto(nn.Module):
    """Copies the channels into a tensor of its own."""

    def forward(self, images: Tensor) -> Tensor:
        written = torch.zeros_like(images)
        written[:, :] = images
        return written


def sandwich(*middle: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *middle, nn.Conv2d(channels, 6, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )


@pytest.mark.parametrize(
    ("middle", "channels", "reason"),
    [
        ((nn.GroupNorm(2, 4),), 4, "pass through GroupNorm '1', from which none can be removed exactly"),
        ((nn.LayerNorm([4, 6, 6]),), 4, "pass through LayerNorm '1', from which none"),
        ((nn.InstanceNorm2d(4, affine=True),), 4, "pass through InstanceNorm2d '1', from which none"),
        (
            (nn.BatchNorm2d(4, affine=False),),
            4,
            "with affine=False: a removed channel would leave a constant",
        ),
        ((nn.PReLU(4),), 4, "pass through PReLU '1', where they meet values of a fixed size"),
        ((nn.PixelShuffle(2),), 1, "pass through Conv2d '2', from which none can be removed"),
        ((nn.Sigmoid(),), 4, "its channels reach '2' as something other than zero"),
        ((nn.Softmax(1),), 4, "pass through Softmax '1', from which none"),
        ((nn.Softmax(2),), 4, "its channels reach '2' as something other than zero"),
        ((nn.ConvTranspose2d(4, 4, 3),), 4, "pass through ConvTranspose2d '1'"),
        ((HandMade(),), 4, "pass through Convolution in HandMade '1', which may mix, move or shift them"),
        ((Scaled(),), 4, "pass through Mul in Scaled '1', where they meet a parameter of a fixed size"),
        ((ChannelPad(), Part(1, 5)), 4, "Slice in Part '2', which cuts out a fixed part"),
        ((Part(0, 3),), 3, "pass through Slice in Part '1', which cuts out a fixed part of them"),
        ((Parts((1, 3)),), 4, "SplitWithSizes in Parts '1': a single one of its channels is picked"),
        ((Gram(),), 6, "pass through View in Gram '1', |pass through Bmm in Gram '1', which may mix"),
        ((WrittenInto(),), 4, "pass through Copy in WrittenInto '1', which may mix, move or shift them"),
        ((nn.ConstantPad2d(1, 0.5),), 4, "pass through ConstantPad2d '1', where they meet values that stay"),
        ((nn.Flatten(), nn.Unflatten(1, (1, 12, 12))), 1, "Conv2d '3', from which none"),
    ],
    ids=lambda value: type(value[0]).__name__ if isinstance(value, tuple) else "",
)
def test_what_cannot_lose_channels_exactly_is_frozen_with_a_reason(
    middle: tuple[nn.Module, ...], channels: int, reason: str
) -> None:
    network, images = sandwich(*middle, channels=channels), torch.rand(2, 3, 8, 8)
    network(images)  # sizes the last layer
    found = couplings(network, images)
    assert re.search(reason, {item.name: item.reason for item in found.frozen}["0"])
    assert [group.name for group in found.groups if group.name.isdigit()] == [str(len(middle) + 1)]


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_channel_shuffle_ties_the_channels_that_change_places(by_hand: bool) -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 2)
    )
    found = couplings(Shuffled() if by_hand else plain, torch.rand(2, 3, 6, 6))
    group = found.groups[0]
    assert group.producers[0].positions.tolist() == [[j, 4 + j] for j in range(4)]
    assert group.consumers[0].positions.tolist() == [[2 * j, 2 * j + 1] for j in range(4)]
    assert len(found.groups) == 2


@pytest.mark.parametrize("images", [torch.rand(2, 3, 6, 6), torch.rand(1, 3, 6, 6)])
def test_a_sigmoid_gate_is_no_obstacle_where_it_multiplies_the_channel_that_it_gates(images: Tensor) -> None:
    network = sandwich(Attention())
    network(images)
    found = couplings(network, images)
    assert [layers(group) for group in found.groups] == [
        ({"0", "1.excite"}, set(), {"1.squeeze", "2"}),
        ({"1.squeeze"}, set(), {"1.excite"}),
        ({"2"}, set(), {"5"}),
    ]
    assert rehearse(network, images, found) == found


def test_halves_that_are_multiplied_lose_the_same_channels() -> None:
    class Gated(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            first, second = images.chunk(2, 1)
            return first * second.sigmoid()

    network, images = sandwich(Gated(), channels=2), torch.rand(2, 3, 8, 8)
    network(images)
    found = couplings(network, images)
    assert found.groups[0].producers[0].positions.tolist() == [[0, 2], [1, 3]]
    assert rehearse(network, images, found) == found


def test_unequal_parts_are_frozen() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 1), Parts((2, 3)), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(64, 2)
    )
    reasons = frozen_reasons(network, torch.rand(2, 3, 4, 4))
    assert (
        reasons["0"]
        == "its channels pass through SplitWithSizes in Parts '1', which cuts them into unequal parts"
    )


def test_channels_that_are_all_tied_together_are_frozen() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.Conv2d(3, 6, 1, groups=3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 1, groups=2),
    )
    network.extend([nn.ChannelShuffle(3), nn.Conv2d(6, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 2)])
    reasons = frozen_reasons(network, torch.rand(2, 3, 4, 4))
    assert reasons["3"] == "its channels can only go all at once"


def test_a_module_that_runs_twice_is_tied_to_both_its_neighbours() -> None:
    again = nn.Linear(4, 4)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), again, nn.ReLU(), again, nn.Linear(4, 2))
    found = couplings(network, torch.rand(2, 3))
    assert [layers(group) for group in found.groups] == [({"0", "2"}, set(), {"2", "5"})]
    assert rehearse(network, torch.rand(2, 3), found) == found


def test_a_layer_that_runs_twice_under_one_name_is_tied_to_both_its_neighbours() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.step, self.leave = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.leave(self.step(self.step(self.enter(images)).relu()).relu())
            return logits

    found = couplings(Recurrent(), torch.rand(2, 3))
    assert [layers(group) for group in found.groups] == [({"enter", "step"}, set(), {"step", "leave"})]
    assert rehearse(Recurrent(), torch.rand(2, 3), found) == found


def test_a_shared_weight_freezes_both_layers() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    second = network[2]
    assert isinstance(second, nn.Linear)
    second.weight = network[0].weight  # type: ignore[assignment]  # a parameter
    reasons = frozen_reasons(network, torch.rand(2, 4))
    assert reasons["2"] == "shares its weight with '0'"
    assert reasons["0"] == "its channels are tied to the shared parameter ['0.weight', '2.weight']"


def test_a_shared_normalisation_parameter_freezes_both_groups() -> None:
    network = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    network[3].bias = network[1].bias
    reasons = frozen_reasons(network, torch.rand(2, 3))
    shared = "its channels are tied to the shared parameter ['1.bias', '3.bias']"
    assert (reasons["0"], reasons["2"]) == (shared, shared)


def test_a_computed_weight_freezes_its_neighbours() -> None:
    network = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 2)
    )
    reasons = frozen_reasons(network, torch.rand(2, 3))
    assert reasons["2"] == "its weight is computed by a parametrization"
    assert reasons["0"].startswith("its channels pass through Addmm in ParametrizedLinear '2', which may")


class Spare(nn.Module):
    """Has a layer that is never called, one whose weight is changed, and one cut off from autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.spare = nn.Linear(3, 3)
        self.cut = nn.Linear(3, 2)
        self.centred = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        images = images + F.linear(images, self.centred.weight - self.centred.weight.mean())
        logits: Tensor = self.body(images) + self.cut(images).detach()
        return logits


def test_layers_outside_the_graph_are_frozen() -> None:
    reasons = frozen_reasons(Spare(), torch.rand(2, 3))
    assert reasons["spare"] == "the network does not call it as a layer"
    assert reasons["centred"] == "its weight passes through Sub before it is used"
    assert reasons["cut"] == "its channels are the network's outputs"
    assert "body.0" not in reasons


class Halves(nn.Module):
    """Adds the concatenation of an input and a layer's output to another layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Conv2d(3, 2, 1)
        self.five = nn.Conv2d(3, 5, 1)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        mixed = torch.cat([self.two(images), images], 1) + self.five(images)
        logits: Tensor = self.last(mixed).mean((2, 3))
        return logits


def test_partly_coupled_layers_are_frozen() -> None:
    reasons = frozen_reasons(Halves(), torch.rand(2, 3, 4, 4))
    assert set(reasons) == {"two", "five", "last"}
    assert reasons["two"] == reasons["five"]
    assert reasons["two"] == "its channels pass through Add, where they meet values that stay"


class Wide(nn.Module):
    """Puts its features out without a layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.second(self.first(images))).mean((2, 3))


def test_channels_that_become_logits_are_frozen() -> None:
    found = couplings(Wide(), torch.rand(2, 3, 8, 8))
    assert [group.name for group in found.groups] == ["first"]
    assert [(item.name, item.reason) for item in found.frozen] == [
        ("second", "its channels are the network's outputs")
    ]
