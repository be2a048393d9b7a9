"""Small networks whose constants and carriers are known in closed form."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import CompactionError
from robustcompress.pruning import constants
from robustcompress.pruning.compaction import Compacted, compact

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def double(network: nn.Module) -> nn.Module:
    """Return a network in float64 and eval mode, with statistics and biases as after training."""
    generator = torch.Generator().manual_seed(1)

    def draw(tensor: Tensor | None, offset: float, scale: float) -> None:
        if tensor is not None:
            tensor.copy_(offset + scale * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                draw(module.weight, 1.0, 0.2)
                draw(module.running_mean, 0.0, 0.5)
                draw(module.bias, 0.0, 0.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                draw(module.weight, 0.0, 0.3)
                draw(module.bias, 0.0, 0.3)
    return network.double().eval()


def constant(layer: nn.Module, values: dict[int, float]) -> None:
    """Let channels of a layer with a bias put out constants."""
    with torch.no_grad():
        for channel, value in values.items():
            layer.get_parameter("weight")[channel] = 0.0
            layer.get_parameter("bias")[channel] = value


def agree(network: nn.Module, result: Compacted, images: Tensor = IMAGES) -> None:
    unseen = torch.randn((3, *images.shape[1:]), dtype=torch.float64) * 4
    with torch.no_grad():
        expected, actual = network(unseen), result.network(unseen)
    assert float((expected - actual).abs().max()) <= 1e-10 * float(expected.abs().max())


def chain(reader: nn.Module, *after: nn.Module, act: nn.Module | None = None) -> nn.Sequential:
    """A convolution of four channels, a reader of six outputs, a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU() if act is None else act, reader, *after, nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def weight(network: nn.Module, layer: str) -> Tensor:
    return network.get_parameter(f"{layer}.weight").detach()


@pytest.mark.parametrize("reader", [nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, stride=2)])
def test_without_padding_a_constant_moves_into_the_bias(reader: nn.Module) -> None:
    network = double(chain(copy.deepcopy(reader)))
    constant(network.get_submodule("0"), {1: 2.0, 3: 0.5})
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.folded, result.carried) == (2, {"2": 2}, {})
    old = weight(network, "2")
    expected = network.get_parameter("2.bias") + 2.0 * old[:, 1].sum((1, 2)) + 0.5 * old[:, 3].sum((1, 2))
    assert torch.allclose(result.network.get_parameter("2.bias"), expected, rtol=1e-14)
    assert torch.equal(weight(result.network, "2"), old[:, [0, 2]])
    agree(network, result)


def test_without_a_bias_it_moves_into_the_running_mean_and_no_parameter_appears() -> None:
    network = double(chain(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)))
    constant(network.get_submodule("0"), {1: 2.0, 3: 0.5})
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.folded, result.carried) == (2, {"2": 2}, {})
    old = weight(network, "2").sum((2, 3))
    expected = network.get_buffer("3.running_mean") - 2.0 * old[:, 1] - 0.5 * old[:, 3]
    assert torch.allclose(result.network.get_buffer("3.running_mean"), expected, rtol=1e-14)
    assert list(result.network.state_dict()) == list(network.state_dict())
    agree(network, result)


PADDED: dict[str, Callable[[], nn.Sequential]] = {
    "padded": lambda: chain(nn.Conv2d(4, 6, 3, padding=1)),
    "same": lambda: chain(nn.Conv2d(4, 6, 2, padding="same")),
    "strided": lambda: chain(nn.Conv2d(4, 6, 3, padding=2, stride=2, dilation=2)),
    "padded_before": lambda: chain(nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(4, 6, 3)),
    "neither_bias_nor_norm": lambda: chain(nn.Conv2d(4, 6, 3, bias=False)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", PADDED)
def test_where_zeros_surround_it_the_largest_constant_carries_the_others(name: str) -> None:
    network = double(PADDED[name]())
    constant(network.get_submodule("0"), {0: 0.5, 1: 2.0, 3: 1.0})
    result = compact(network, IMAGES)
    (layer,) = result.carried
    assert (result.removed["0"], result.folded, result.carried) == (2, {}, {layer: 2})
    assert torch.equal(result.network.get_parameter("0.bias")[:1], torch.tensor([2.0]).double())
    old, new = weight(network, layer), weight(result.network, layer)
    assert torch.allclose(new[:, 0], old[:, 1] + 0.25 * old[:, 0] + 0.5 * old[:, 3], rtol=1e-14)
    assert torch.equal(new[:, 1], old[:, 2])
    assert {shape[2:] for shape in result.checked} >= {(8, 8), (11, 12)}
    agree(network, result)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_that_repeats_a_constant_lets_the_bias_take_it(mode: Any) -> None:
    network = double(chain(nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)))
    constant(network.get_submodule("0"), {0: 0.5, 1: 2.0})
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.folded, result.carried) == (2, {"2": 2}, {})
    agree(network, result)


def test_channels_that_circular_padding_copies_about_stay() -> None:
    network = double(chain(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")))
    constant(network.get_submodule("0"), {0: 0.5, 1: 2.0})
    result = compact(network, IMAGES)
    assert result.removed == {"2": 0}
    assert {item.name for item in result.frozen} == {"0", "6"}


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_of_zero_goes_and_leaves_nothing(padding: int) -> None:
    network = double(chain(nn.Conv2d(4, 6, 3, padding=padding)))
    constant(network.get_submodule("0"), {0: -0.5, 1: -2.0})
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.folded, result.carried) == (2, {}, {})
    assert torch.equal(weight(result.network, "2"), weight(network, "2")[:, 2:])
    assert torch.equal(result.network.get_parameter("2.bias"), network.get_parameter("2.bias"))
    assert result.rounding == result.difference


def test_a_normalised_constant_is_the_one_that_arrives() -> None:
    network = double(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Hardtanh(-9.0, 9.0),
            nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 5),
        )
    )  # fmt: skip
    with torch.no_grad():
        weight(network, "0")[2] = 0.0
    result = compact(network, IMAGES)
    norm = network.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    value = norm.bias[2] - norm.running_mean[2] * norm.weight[2] / (norm.running_var[2] + norm.eps).sqrt()
    expected = network.get_parameter("3.bias") + value * weight(network, "3")[:, 2, 0, 0]
    assert torch.allclose(result.network.get_parameter("3.bias"), expected, rtol=1e-13)
    assert (result.removed["0"], result.folded) == (1, {"3": 1})
    agree(network, result)


@pytest.mark.parametrize("bias", [True, False])
def test_each_pixel_of_a_flattened_constant_moves(bias: bool) -> None:
    network = double(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5, bias=bias))
    )
    constant(network.get_submodule("0"), {1: 2.0, 2: 0.5})
    result = compact(network, IMAGES)
    old = weight(network, "3").reshape(5, 4, 64)
    if bias:
        expected = network.get_parameter("3.bias") + 2.0 * old[:, 1].sum(1) + 0.5 * old[:, 2].sum(1)
        assert torch.allclose(result.network.get_parameter("3.bias"), expected, rtol=1e-13)
        assert (result.removed["0"], result.folded) == (2, {"3": 2})
    else:
        new = weight(result.network, "3").reshape(5, 3, 64)
        assert torch.allclose(new[:, 1], old[:, 1] + 0.25 * old[:, 2], rtol=1e-13)
        assert (result.removed["0"], result.carried) == (1, {"3": 1})
    agree(network, result)


class Sum(nn.Module):
    """Two layers whose sum two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.wide, self.narrow = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        summed = self.one(images) + self.two(images)
        features = self.wide(summed.relu()) + self.narrow(summed)
        logits: Tensor = self.last(features.relu().mean((2, 3)))
        return logits


def test_a_channel_of_a_sum_is_constant_if_all_its_terms_are() -> None:
    network = double(Sum())
    constant(network.get_submodule("one"), {0: 1.0, 1: 1.0, 2: -0.25})
    constant(network.get_submodule("two"), {0: 2.0, 2: 0.75, 3: 5.0})
    result = compact(network, IMAGES)
    assert (result.removed["one"], result.folded, result.carried) == (1, {"narrow": 1}, {"wide": 1})
    old, new = weight(network, "wide"), weight(result.network, "wide")
    assert torch.allclose(new[:, 0], old[:, 0] + old[:, 2] * 0.5 / 3.0, rtol=1e-13)
    bias = network.get_parameter("narrow.bias") + 0.5 * weight(network, "narrow")[:, 2, 0, 0]
    assert torch.allclose(result.network.get_parameter("narrow.bias"), bias, rtol=1e-13)
    agree(network, result)


class Concatenated(nn.Module):
    """Two layers whose outputs lie side by side for the third."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.both = nn.Conv2d(7, 6, 3, padding=1)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.both(torch.cat([self.two(images), self.one(images)], 1))
        logits: Tensor = self.last(features.relu().mean((2, 3)))
        return logits


def test_each_part_of_a_concatenation_has_its_own_carrier() -> None:
    network = double(Concatenated())
    constant(network.get_submodule("one"), {0: 1.0, 3: -2.0})
    constant(network.get_submodule("two"), {1: 4.0, 2: 1.0})
    result = compact(network, IMAGES)
    assert result.removed["one"] == 1
    assert result.removed["two"] == 1
    assert result.carried == {"both": 2}
    old, new = weight(network, "both"), weight(result.network, "both")
    assert torch.allclose(new[:, 1], old[:, 1] + 0.25 * old[:, 2], rtol=1e-13)
    assert torch.allclose(new[:, 4], old[:, 6] - 0.5 * old[:, 3], rtol=1e-13)
    agree(network, result)


def depthwise(padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=padding, groups=4), nn.Conv2d(4, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def test_a_depthwise_filter_makes_another_constant_of_one() -> None:
    network = double(depthwise(0))
    constant(network.get_submodule("0"), {1: 2.0})
    result = compact(network, IMAGES)
    value = 2.0 * weight(network, "1")[1].sum() + network.get_parameter("1.bias")[1]
    expected = network.get_parameter("2.bias") + value * weight(network, "2")[:, 1, 0, 0]
    assert torch.allclose(result.network.get_parameter("2.bias"), expected, rtol=1e-13)
    assert (result.removed["0"], result.folded) == (1, {"2": 1})
    agree(network, result)


def test_a_depthwise_filter_of_zeros_makes_a_constant_of_anything() -> None:
    network = double(depthwise(1))
    constant(network.get_submodule("1"), {1: 2.0})
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.folded) == (1, {"2": 1})
    agree(network, result)


def test_a_border_that_padding_left_is_no_constant() -> None:
    network = double(depthwise(1))
    constant(network.get_submodule("0"), {1: 2.0})
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.folded, result.carried) == (0, {}, {})


def test_a_border_that_hides_at_one_size_is_found_at_another() -> None:
    network = double(depthwise(1))
    constant(network.get_submodule("0"), {1: 2.0})
    pixel = IMAGES[:, :, :1, :1]  # on a single pixel everything is constant in space
    result = compact(network, pixel)
    assert {shape[2:] for shape in result.checked} == {(1, 1), (4, 5)}
    assert result.removed["0"] == 0


def test_every_group_of_a_convolution_has_its_share_of_the_carrier() -> None:
    network = double(
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(256, 5)
        )
    )
    constant(network.get_submodule("0"), {0: 1.0, 3: -3.0, 2: 2.0, 5: 6.0})  # channels 0 and 2 of both groups
    result = compact(network, IMAGES)
    assert (result.removed["0"], result.carried) == (1, {"1": 1})
    old, new = weight(network, "1"), weight(result.network, "1")
    assert torch.allclose(new[:2, 1], old[:2, 2] + old[:2, 0] * 1.0 / 2.0, rtol=1e-13)
    assert torch.allclose(new[2:, 1], old[2:, 2] - old[2:, 0] * 3.0 / 6.0, rtol=1e-13)
    agree(network, result)


class Again(nn.Module):
    """One layer that reads a constant twice, the second time another one."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, 5)
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images).relu()
        features = self.second(features) + self.second(features * self.shift).tanh()
        logits: Tensor = self.last(features.relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize(("shift", "removed"), [(1.0, 1), (1.25, 0)])
def test_a_layer_that_runs_twice_must_see_the_same_constant(shift: float, removed: int) -> None:
    network = double(Again(shift))
    constant(network.get_submodule("first"), {1: 2.0})
    result = compact(network, IMAGES)
    assert result.removed["first"] == removed
    agree(network, result)


class Unread(nn.Module):
    """A channel that is constant for the one reader and unread by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.raw, self.normalised = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        features = self.raw(features) + self.normalised(self.norm(features))
        logits: Tensor = self.last(features.relu().mean((2, 3)))
        return logits


def test_what_a_reader_does_not_read_need_not_be_constant_there() -> None:
    network = double(Unread())
    with torch.no_grad():
        weight(network, "norm")[1] = 0.0
    assert compact(network, IMAGES).removed["first"] == 0
    with torch.no_grad():
        weight(network, "raw")[:, 1] = 0.0
    result = compact(network, IMAGES)
    assert (result.removed["first"], result.folded) == (1, {"normalised": 1})
    agree(network, result)


def test_an_activation_that_happens_to_be_off_is_no_constant() -> None:
    network = double(chain(nn.Conv2d(4, 6, 1)))
    with torch.no_grad():
        network.get_parameter("0.bias")[1] = -1e6
    result = compact(network, IMAGES)
    assert result.removed == {"0": 0, "2": 0}


def test_a_network_of_single_precision_says_what_rounding_its_constants_costs() -> None:
    network = double(chain(nn.Conv2d(4, 6, 3)))
    constant(network.get_submodule("0"), {1: 2.0, 3: 0.7})
    result = compact(network.float(), IMAGES.float())
    assert result.difference < 1e-14
    assert 1e-11 < result.rounding < 1e-6
    assert result.network.get_parameter("2.bias").dtype == torch.float32


Damage = Callable[[Any, int, Tensor], None]


def wrong_sign(reader: Any, carrier: int, channels: Tensor) -> None:
    before = reader._weight.detach().clone()
    CARRY(reader, carrier, channels)
    reader._weight.data = before - (reader._weight.detach() - before)


def forgotten(reader: Any, carrier: int, channels: Tensor) -> None:
    CARRY(reader, carrier, channels[1:])


def misplaced(reader: Any, carrier: int, channels: Tensor) -> None:
    CARRY(reader, (carrier + 1) % 4, channels)


CARRY = constants._Reader.carry


@pytest.mark.parametrize("damage", [wrong_sign, forgotten, misplaced])
def test_the_proof_catches_a_carrier_that_is_wrong_and_names_its_layer(
    damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = double(chain(nn.Conv2d(4, 6, 3, padding=1)))
    constant(network.get_submodule("0"), {0: 0.5, 1: 2.0, 3: 1.0})
    monkeypatch.setattr(constants._Reader, "carry", damage)
    with pytest.raises(CompactionError, match="layer '2' puts out something else"):
        compact(network, IMAGES)


def test_the_proof_catches_a_bias_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = constants._Reader.fold

    def inexact(reader: Any, channels: Tensor) -> None:
        fold(reader, channels)
        reader._bias[0][0] += 1e-8

    network = double(chain(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)))
    constant(network.get_submodule("0"), {1: 2.0})
    monkeypatch.setattr(constants._Reader, "fold", inexact)
    with pytest.raises(CompactionError, match="layer '3' puts out something else"):
        compact(network, IMAGES)


def test_the_proof_catches_a_border_taken_for_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    network = double(chain(nn.Conv2d(4, 6, 3, padding=1)))
    constant(network.get_submodule("0"), {1: 2.0})
    true = constants._Reader.__init__

    def careless(reader: Any, *arguments: Any) -> None:
        true(reader, *arguments)
        reader.folds = torch.ones_like(reader.folds)

    monkeypatch.setattr(constants._Reader, "__init__", careless)
    with pytest.raises(CompactionError, match="layer '2' puts out something else"):
        compact(network, IMAGES)
