import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.pruning.dependence import Dependence
from robustcompress.pruning.readings import Reading

Between = Callable[[Tensor], Tensor]


class Body(nn.Module):
    """Two convolutions, the first with filters of zeros; something happens between them."""

    def __init__(self, between: Between, taken: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.between = between
        self.second = nn.Conv2d(taken, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(self.between(self.first(images))).mean((2, 3))
        return logits


def body(between: Between, taken: int = 4) -> Body:
    torch.manual_seed(0)
    network = Body(between, taken).double().eval()
    with torch.no_grad():
        network.first.weight[[0, 2]] = 0.0
        assert network.first.bias is not None
        network.first.bias[:] = torch.tensor([0.5, 0.1, 0.0, -0.2])
    return network


def varying(network: nn.Module, images: Tensor) -> Tensor:
    """Return which channels the second layer ever sees change or vary in space: brute force."""
    seen: list[Tensor] = []
    twin = copy.deepcopy(network)
    second = twin.get_submodule("second")
    second.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for scale in (0.0, 0.5, 1.0, 10.0, -10.0):
            twin(torch.randn(images.shape, generator=generator, dtype=torch.float64) * scale)
    values = torch.cat(seen).movedim(1, 0).flatten(1)
    return (values.amax(1) - values.amin(1)) > 1e-9


def reading(network: nn.Module) -> Reading:
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    return Dependence(network, images).readings["second"][0]


def concatenated(features: Tensor) -> Tensor:
    return torch.cat([features, features.relu()], 1)


def in_place(features: Tensor) -> Tensor:
    features = features * 2
    half = features[:, 1:3]
    half.relu_()
    half += 1.0
    return features


def written(features: Tensor) -> Tensor:
    out = torch.zeros(2, 4, 6, 6, dtype=torch.float64)[: len(features)]
    out[:, 1] = features[:, 1]
    out[:, 2].copy_(features[:, 2])
    out[:, 0] += features[:, 3]
    return out


def gated(features: Tensor) -> Tensor:
    return features * torch.sigmoid(features.mean((1, 2, 3), keepdim=True))


def unfolded(features: Tensor) -> Tensor:
    return F.fold(F.unfold(features, 1), (6, 6), 1)


def chosen(features: Tensor) -> Tensor:
    return torch.where(features > 0.1, features, torch.zeros_like(features))


EXACT: dict[str, tuple[Between, int]] = {
    "relu": (torch.relu, 4),
    "gelu": (F.gelu, 4),
    "hardswish": (F.hardswish, 4),
    "relu_in_place": (torch.relu_, 4),
    "shifted": (lambda x: 1.5 - x, 4),
    "pooled": (lambda x: F.max_pool2d(F.avg_pool2d(x, 2), 2, 1), 4),
    "resized": (lambda x: F.interpolate(x, scale_factor=2), 4),
    "bilinear": (lambda x: F.interpolate(x, size=(8, 8), mode="bilinear"), 4),
    "mean": (lambda x: x.mean((2, 3), keepdim=True), 4),
    "largest": (lambda x: x.amax((2, 3), keepdim=True), 4),
    "flipped": (lambda x: x.flip(1).roll(1, 1), 4),
    "concatenated": (concatenated, 8),
    "turned": (lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 4),
    "split": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 4),
    "in_place": (in_place, 4),
    "written": (written, 4),
    "shuffled": (lambda x: F.pixel_unshuffle(x, 2), 16),
    "reflected": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 4),
    "normalised": (nn.BatchNorm2d(4, dtype=torch.float64).eval(), 4),
    "batch_statistics": (nn.BatchNorm2d(4, track_running_stats=False, dtype=torch.float64).eval(), 4),
    "compared": (lambda x: (x > 0.2).double(), 4),
    "chosen": (chosen, 4),
    "residual": (lambda x: x + torch.tanh(x), 4),
    "constant_gate": (lambda x: x * torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1), 4),
    "depthwise": (lambda x: F.conv2d(x, torch.ones(4, 1, 2, 2, dtype=torch.float64), groups=4), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_exactly_the_channels_that_change_on_no_image_are_constant(name: str) -> None:
    network = body(*EXACT[name])
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    changes = varying(network, images)
    assert bool(changes.any())
    assert not bool(changes.all())
    assert torch.equal(reading(network).constant, ~changes)


CAUTIOUS: dict[str, tuple[Between, list[bool]]] = {
    # Never wrong, though not everything that is constant is seen to be.
    "sorted": (lambda x: x.sort(1)[0], [False] * 4),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), [False] * 4),
    "folded": (unfolded, [False] * 4),
    "noise": (lambda x: x + torch.zeros_like(x).normal_(), [False] * 4),
    "gated": (gated, [False, False, True, False]),
    "zeros_around": (lambda x: F.pad(x, (1, 1, 1, 1)), [True, False, True, False]),
    "relu_that_is_dead_on_these_images": (lambda x: (x - 1e6).relu(), [True, False, True, False]),
    "a_number_that_leaves": (lambda x: x * float(x.detach().mean()), [False] * 4),
    "a_shape_that_leaves": (lambda x: x * len(x.nonzero()), [False] * 4),
    "in_places_in_memory": (lambda x: x.T.T.as_strided(x.shape, x.stride()), [True, False, True, False]),
}


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize("name", CAUTIOUS)
def test_what_cannot_be_followed_is_not_taken_for_constant(name: str) -> None:
    between, constant = CAUTIOUS[name]
    network = body(between)
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    readings = Dependence(network, images).readings
    assert (readings["second"][0].constant.tolist() if readings else [False] * 4) == constant


def test_zeros_around_a_constant_are_told_from_it() -> None:
    found = reading(body(lambda x: F.pad(x, (1, 0, 0, 2))))
    assert found.constant.tolist() == [True, False, True, False]
    assert found.values[0] == 0.5
    assert found.values[2] == 0.0
    assert found.filled.tolist() == [False, False, False, False]
    expected = torch.zeros(2, 8, 7, dtype=torch.bool)
    expected[:, :6, 1:] = True
    assert torch.equal(found.inside[0], expected.flatten())
    assert found.padded
    assert found.biased


def test_a_layer_is_read_with_the_padding_and_bias_of_its_call() -> None:
    class Own(Body):
        def forward(self, images: Tensor) -> Tensor:
            return F.conv2d(self.first(images), self.second.weight).mean((2, 3))

    network = Own(torch.relu, 4).double().eval()
    found = reading(network)
    assert not found.padded
    assert not found.biased


class Chain(nn.Module):
    """Where outputs go: to one normalisation, elsewhere too, or to one that others use."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.norm1 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.twice, self.norm2 = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.one, self.two, self.norm3 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm1(self.alone(images))
        made = self.twice(features)
        features = self.norm2(made) + made
        features = self.norm3(self.one(features)) + self.norm3(self.two(features))
        return self.last(features).mean((2, 3))  # type: ignore[no-any-return]


def test_a_normalisation_belongs_to_a_layer_if_it_takes_all_its_outputs_and_no_others() -> None:
    seen = Dependence(Chain().double().eval(), torch.rand(2, 3, 4, 4, dtype=torch.float64))
    assert seen.means == {"alone": "norm1"}
    assert [len(seen.readings[layer]) for layer in ("alone", "twice", "one", "two", "last")] == [1] * 5


def test_the_network_stays_as_it_is() -> None:
    network = Chain().double().eval()
    calls: list[None] = []
    network.register_forward_pre_hook(lambda module, inputs: calls.append(None))
    network.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    Dependence(network, torch.rand(2, 3, 4, 4, dtype=torch.float64))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training
    assert len(network._forward_pre_hooks) == 1


def test_a_network_that_changes_its_own_parameters_is_not_followed() -> None:
    def growing(features: Tensor) -> Tensor:
        with torch.no_grad():
            network.first.weight.mul_(1.0)
        return features

    network = body(torch.relu)
    network.between = growing
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    assert Dependence(network, images).readings  # the copy that runs is another network than the one changed

    class Growing(Body):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                self.first.weight.mul_(1.0)
            return super().forward(images)

    assert Dependence(Growing(torch.relu, 4).double().eval(), images).readings == {}
