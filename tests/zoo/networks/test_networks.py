"""What every network of the zoo promises, and what each paper says of its own."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustcompress import families
from robustcompress.pruning.patterns.channel import Channel, ChannelSite
from robustcompress.zoo.initialisation import he_normal
from robustcompress.zoo.networks import Network
from robustcompress.zoo.networks.resnet18 import Resnet18
from robustcompress.zoo.networks.resnet50 import Resnet50
from robustcompress.zoo.networks.small_cnn import SmallCnn
from robustcompress.zoo.networks.vgg16_bn import Vgg16Bn
from robustcompress.zoo.networks.wide_resnet_28_4 import WideResnet284

KINDS = families.kinds(Network.family)
# Narrow enough that a test takes seconds. A new member without an entry is tested as it comes.
SMALLER: dict[str, dict[str, object]] = {
    "cifar_model_large": {"width": 4, "hidden": 16},
    "mnist_model_large": {"width": 4, "hidden": 16},
    "resnet18": {"width": 4},
    "resnet34": {"width": 4},
    "resnet50": {"width": 4},
    "vgg11_bn": {"width": 4},
    "vgg13_bn": {"width": 4},
    "vgg16_bn": {"width": 4},
    "wide_resnet_28_10": {"width": 2},
    "wide_resnet_28_4": {"width": 2},
    "wide_resnet_34_10": {"width": 2},
}
# They differ from another of the zoo in numbers alone: all but the quick tests of them are slow ones.
ALIKE = {
    "cifar_model",
    "mnist_model_large",
    "resnet34",
    "vgg11_bn",
    "vgg13_bn",
    "wide_resnet_28_10",
    "wide_resnet_34_10",
}
EVERY = [pytest.param(kind, marks=pytest.mark.slow) if kind in ALIKE else kind for kind in KINDS]
# What the papers, their code or torchvision count in the whole network, batch normalisation included.
PUBLISHED: dict[str, tuple[dict[str, object], int]] = {
    # Wong et al. 2018, table 1: the small and the large network.
    "mnist_model": ({}, 166_406),
    "mnist_model_large": ({}, 1_974_762),
    "cifar_model": ({}, 214_918),
    "cifar_model_large": ({}, 2_466_858),
    # torchvision's documentation.
    "resnet18 imagenet": ({"stem": "imagenet", "num_classes": 1000}, 11_689_512),
    "resnet34 imagenet": ({"stem": "imagenet", "num_classes": 1000}, 21_797_672),
    "resnet50": ({}, 25_557_032),
    # 21.28M and 23.52M: the tables for CIFAR-10 of those who use the small stem.
    "resnet34": ({}, 21_282_122),
    "resnet50 small": ({"stem": "small", "num_classes": 10}, 23_520_842),
    # 9,231,114 and 9,416,010 with the biases before normalisation, which are left out here.
    "vgg11_bn": ({}, 9_231_114 - 2_752),
    "vgg13_bn": ({}, 9_416_010 - 2_944),
    # 36.5M and 46.2M: Zagoruyko and Komodakis 2016, table 4, and the literature on robust training.
    "wide_resnet_28_10": ({}, 36_479_194),
    "wide_resnet_34_10": ({}, 46_160_474),
}


def small_member(kind: str) -> Network:
    return Network.find({"kind": kind, "num_classes": 7, **SMALLER.get(kind, {})})


def images_for(member: Network, count: int) -> Tensor:
    side = getattr(member, "image_size", 32)
    return torch.rand(count, member.in_channels, side, side, generator=torch.Generator().manual_seed(0))


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def prunable_count(network: nn.Module) -> int:
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_the_zoo_has_the_networks_of_the_papers() -> None:
    assert set(KINDS) >= {"small_cnn", *SMALLER, *(name.split()[0] for name in PUBLISHED)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_has_the_published_number_of_parameters(name: str) -> None:
    settings, published = PUBLISHED[name]
    with torch.device("meta"):  # nothing is drawn
        network = Network.find({"kind": name.split()[0], **settings}).build()
    assert parameter_count(network) == published


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "small_cnn"])
def test_channels_of_every_network_can_be_followed_and_removed(kind: str) -> None:
    member = small_member(kind)
    network = member.build().eval()
    images = images_for(member, 2)
    plan = Channel(round_to=1).plan(network, images, ())
    assert plan.sites
    layers = {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    followed = {layer for site in plan.sites for layer in cast(ChannelSite, site).layers}
    # All but what makes the logits.
    assert len(layers - followed) == 1


@pytest.mark.parametrize("kind", ["vgg11_bn", "vgg13_bn", "vgg16_bn"])
def test_the_head_of_hydra_is_there_for_its_checkpoints(kind: str) -> None:
    network = Network.find({"kind": kind, "width": 4, "head": "hydra"}).build().eval()
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    shapes = {
        name: tuple(tensor.shape) for name, tensor in network.named_parameters() if "classifier" in name
    }
    assert shapes["classifier.0.weight"] == (256, 32 * 2 * 2)
    assert shapes["classifier.2.weight"] == (256, 256)
    assert shapes["classifier.4.weight"] == (10, 256)


def test_a_stem_for_imagenet_halves_the_image_twice() -> None:
    network = Network.find({"kind": "resnet18", "width": 4, "stem": "imagenet"}).build()
    seen: list[tuple[int, ...]] = []
    blocks = network.get_submodule("blocks")
    blocks.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 10)
    assert seen == [(2, 4, 16, 16)]


@pytest.mark.parametrize("kind", ["mnist_model", "cifar_model_large"])
def test_plain_networks_fit_the_image_size_they_are_told(kind: str) -> None:
    for side in (4, 17, 30):
        member = Network.find({"kind": kind, "image_size": side, "in_channels": 2, "width": 2, "hidden": 4})
        assert member.build()(torch.rand(2, 2, side, side)).shape == (2, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_survives_the_way_through_its_settings(kind: str) -> None:
    for member in (Network.find(kind), small_member(kind)):
        assert member.kind == kind
        assert Network.find(member.model_dump()) == member
        assert Network.find(member.model_dump(mode="json")) == member


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_maps_images_to_logits(kind: str) -> None:
    member = small_member(kind)
    network = member.build()
    assert network(images_for(member, 3)).shape == (3, 7)


@pytest.mark.parametrize("kind", EVERY)
def test_the_same_seed_builds_the_same_network(kind: str) -> None:
    member = small_member(kind)
    torch.manual_seed(5)
    first = member.build().state_dict()
    torch.manual_seed(5)
    second = member.build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", EVERY)
def test_every_parameter_of_a_network_gets_a_gradient(kind: str) -> None:
    member = small_member(kind)
    network = member.build()
    logits = network(images_for(member, 4))
    F.cross_entropy(logits, torch.arange(4)).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []


@pytest.mark.parametrize("kind", EVERY)
def test_every_network_traces_to_a_graph_that_computes_the_same(kind: str) -> None:
    member = small_member(kind)
    network = member.build().eval()
    images = images_for(member, 3)
    assert torch.equal(fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize("kind", EVERY)
def test_every_network_exports_with_a_batch_of_any_size(kind: str) -> None:
    member = small_member(kind)
    network = member.build().eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(network, (images_for(member, 2),), dynamic_shapes=(batch,))
    for count in (1, 5):
        images = images_for(member, count)
        torch.testing.assert_close(program.module()(images), network(images))


@pytest.mark.parametrize("kind", ["resnet18", "resnet50", "vgg16_bn", "wide_resnet_28_4"])
@pytest.mark.parametrize("size", [(28, 28), (33, 47)])
def test_networks_that_pool_take_images_of_other_sizes(kind: str, size: tuple[int, int]) -> None:
    assert small_member(kind).build()(torch.rand(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["in_channels", "num_classes"])
def test_a_network_refuses_less_than_one_of_anything(kind: str, field: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\s+Input should be greater than or equal to 1"):
        Network.find({"kind": kind, field: 0})


def test_resnet18_has_the_published_number_of_parameters() -> None:
    # 11.17M: what every CIFAR-10 table that uses this stem states; exact from the closed form below.
    def block(a: int, b: int) -> int:
        return 9 * a * b + 9 * b * b + (a * b if a != b else 0)

    convolutions = 9 * 3 * 64 + sum(
        block(a, b) + block(b, b) for a, b in ((64, 64), (64, 128), (128, 256), (256, 512))
    )
    normalised = 64 + 4 * (64 + 128 + 256 + 512) + (128 + 256 + 512)
    network = Resnet18().build()
    assert prunable_count(network) == convolutions + 5120 == 11_164_352
    assert parameter_count(network) == convolutions + 2 * normalised + 5130 == 11_173_962


def test_vgg16_bn_has_the_published_number_of_weights() -> None:
    # Keras documents 14,714,688 parameters for VGG-16 without its top: weights and 4,224 biases.
    network = Vgg16Bn().build()
    assert prunable_count(network) == 14_714_688 - 4_224 + 512 * 10
    assert parameter_count(network) == 14_714_688 - 4_224 + 512 * 10 + 10 + 2 * 4_224
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 13


def test_wide_resnet_28_4_has_the_closed_form_number_of_weights() -> None:
    # Depth 28, widening factor 4: three stages of four blocks of two convolutions.
    stem = 9 * 3 * 16
    stages = sum(9 * (a * b + 7 * b * b) + a * b for a, b in ((16, 64), (64, 128), (128, 256)))
    network = WideResnet284().build()
    assert prunable_count(network) == stem + stages + 256 * 10 == 5_841_840
    three_by_three = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(three_by_three) == 28 - 3  # the paper counts three shortcut convolutions of the stages too


def test_small_cnn_has_the_closed_form_number_of_parameters() -> None:
    convolutions = 16 * 25 + 32 * 16 * 9
    linear = 32 * 7 * 7 * 128 + 128 * 10
    network = SmallCnn().build()
    assert prunable_count(network) == convolutions + linear
    assert parameter_count(network) == convolutions + linear + 10 + 2 * (16 + 32 + 128)


@pytest.mark.parametrize("image_size", [1, 7, 28, 29, 32])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_small_cnn_fits_the_image_size_it_is_told(image_size: int, batch_norm: bool) -> None:
    member = SmallCnn(
        in_channels=2, image_size=image_size, widths=(3, 4, 5), kernel_sizes=(5, 3, 1), batch_norm=batch_norm
    )
    network = member.build().eval()
    assert network(torch.rand(2, 2, image_size, image_size)).shape == (2, 10)
    has_norm = any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in network.modules())
    assert has_norm == batch_norm


def test_small_cnn_refuses_kernel_sizes_that_do_not_fit_the_widths() -> None:
    with pytest.raises(ValidationError, match="one entry for each of the 3 widths; got 2"):
        SmallCnn(widths=(1, 2, 3))
    with pytest.raises(ValidationError, match=r"kernel_sizes must be odd; got \[4, 3\]"):
        SmallCnn(kernel_sizes=(4, 3))


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def _resnet18_by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """He et al. 2016, equations 1 and 2, with the second ReLU after the sum."""
    x = F.relu(_norm(F.conv2d(images, state["conv1.weight"], padding=1), state, "bn1"))
    for index in range(8):
        at, stride = f"blocks.{index}.", 2 if index in (2, 4, 6) else 1
        y = F.conv2d(x, state[at + "conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(F.relu(_norm(y, state, at + "bn1")), state[at + "conv2.weight"], padding=1)
        if stride == 2:
            x = _norm(F.conv2d(x, state[at + "shortcut.0.weight"], stride=2), state, at + "shortcut.1")
        x = F.relu(_norm(y, state, at + "bn2") + x)
    return F.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


def _resnet50_by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """He et al. 2016, figure 5 right, the stride in the middle; the stem of table 1."""
    x = F.relu(_norm(F.conv2d(images, state["conv1.weight"], stride=2, padding=3), state, "bn1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for index in range(16):
        at, stride = f"blocks.{index}.", 2 if index in (3, 7, 13) else 1
        y = F.relu(_norm(F.conv2d(x, state[at + "conv1.weight"]), state, at + "bn1"))
        y = F.conv2d(y, state[at + "conv2.weight"], stride=stride, padding=1)
        y = F.conv2d(F.relu(_norm(y, state, at + "bn2")), state[at + "conv3.weight"])
        if index in (0, 3, 7, 13):
            x = _norm(F.conv2d(x, state[at + "shortcut.0.weight"], stride=stride), state, at + "shortcut.1")
        x = F.relu(_norm(y, state, at + "bn3") + x)
    return F.linear(x.mean((2, 3)), state["classifier.weight"], state["classifier.bias"])


def _wide_resnet_by_hand(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """He et al. 2016b, pre-activation; the shortcut of a stage's first block takes the activated input."""
    x = F.conv2d(images, state["conv.weight"], padding=1)
    for index in range(12):
        at, stride = f"blocks.{index}.", 2 if index in (4, 8) else 1
        active = F.relu(_norm(x, state, at + "bn1"))
        y = F.conv2d(active, state[at + "conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(F.relu(_norm(y, state, at + "bn2")), state[at + "conv2.weight"], padding=1)
        x = y + (F.conv2d(active, state[at + "shortcut.weight"], stride=stride) if index % 4 == 0 else x)
    pooled = F.relu(_norm(x, state, "bn")).mean((2, 3))
    return F.linear(pooled, state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(
    ("member", "by_hand"),
    [
        (Resnet18(width=4), _resnet18_by_hand),
        (Resnet50(width=4, num_classes=10), _resnet50_by_hand),
        (WideResnet284(width=2), _wide_resnet_by_hand),
    ],
    ids=["resnet18", "resnet50", "wide_resnet_28_4"],
)
def test_residual_networks_compute_what_their_papers_draw(
    member: Network, by_hand: Callable[[dict[str, Tensor], Tensor], Tensor]
) -> None:
    network = member.build().double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):  # away from 0 and 1, so that a swapped layer shows
                for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                    assert tensor is not None
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    images = torch.rand(2, 3, 16, 16, generator=generator).double()
    torch.testing.assert_close(network.eval()(images), by_hand(network.state_dict(), images))


def test_fresh_convolutions_have_the_variance_of_he() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 60, 5)
    he_normal(layer)
    assert layer.weight.std().item() == pytest.approx((2 / (25 * 60)) ** 0.5, rel=0.02)
    assert layer.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
