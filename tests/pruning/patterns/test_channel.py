"""Channel scores: what they start from, what they gate, and the gradient they get."""

from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ModelError
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Plan
from robustcompress.pruning.patterns.channel import Channel, ChannelSite
from robustcompress.pruning.scores.learned import Learned


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]
SitesOf = Callable[[Case], list[ChannelSite]]


@pytest.fixture
def sites_of(plan_of: Callable[[str, Case], Plan]) -> SitesOf:
    def channel_sites(case: Case) -> list[ChannelSite]:
        return [site for site in plan_of("channel", case).sites if isinstance(site, ChannelSite)]

    return channel_sites


def attach(sites: list[ChannelSite], network: nn.Module, sparsity: float) -> Masking:
    parameters = dict(network.named_parameters())
    return Masking(sites, score=Learned(), budget=Uniform(), sparsity=sparsity, parameters=parameters)


def test_the_saliency_is_the_norm_over_all_layers_that_make_the_channel(
    named_case: Build, sites_of: SitesOf
) -> None:
    case = named_case("resnet18")
    parameters = dict(case.network.named_parameters())
    (site,) = [site for site in sites_of(case) if site.name == "blocks.2.conv2"]
    layers = ("blocks.2.conv2", "blocks.2.shortcut.0", "blocks.3.conv2")
    assert site.layers == layers
    saliency = site.saliency(parameters).detach()
    for channel in range(site.units):
        filters = torch.cat([parameters[f"{layer}.weight"][channel].flatten() for layer in layers])
        assert float(saliency[channel]) == pytest.approx(float(filters.detach().norm()), rel=1e-5)


def test_the_site_names_what_a_mask_covers(named_case: Build, sites_of: SitesOf) -> None:
    case = named_case("small_cnn")
    first = sites_of(case)[0]
    assert first.parameters == (
        "features.0.weight",
        "features.1.weight",
        "features.1.bias",
        "features.3.weight",
    )
    assert (first.name, first.shape, first.fan_in) == ("features.0", (6,), 25)
    assert Channel.removes_structure


def test_a_baked_mask_covers_filters_biases_and_normalisations(named_case: Build, sites_of: SitesOf) -> None:
    case = named_case("separable")
    parameters = dict(case.network.named_parameters())
    (site,) = [site for site in sites_of(case) if site.name == "0"]
    mask = torch.arange(8) != 5
    site.bake(parameters, mask)
    for name in ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias"):
        assert not bool(parameters[name][5].any()), name
        assert bool(parameters[name][mask].reshape(7, -1).any(1).all()), name
    assert bool(parameters["6.weight"][:, 5].any())


def test_a_masked_channel_matters_to_no_layer_after_it(double_case: Case, sites_of: SitesOf) -> None:
    """Whatever the masked channels hold, the logits are the same."""
    network, images = double_case.network, double_case.images
    sites = sites_of(double_case)
    masking = attach(sites, network, 0.5)
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    with torch.no_grad():
        expected = functional_call(network, masking.tensors(parameters), (images,))
        for site, mask in zip(sites, masking.masks, strict=True):
            for place in (*site.group.producers, *site.group.norms):
                for name in place.parameters:
                    parameters[name][place.positions[~mask].flatten()] += 3.0
        actual = functional_call(network, masking.tensors(parameters), (images,))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_the_gate_derivative_agrees_with_finite_differences(double_case: Case, sites_of: SitesOf) -> None:
    network, images = double_case.network, double_case.images
    sites = sites_of(double_case)
    parameters: dict[str, Tensor] = {
        name: parameter.detach() for name, parameter in network.named_parameters()
    }
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(site.shape, generator=generator, dtype=torch.float64).round() for site in sites]

    def loss(gates: list[Tensor]) -> Tensor:
        tensors = dict(parameters)
        for site, gate in zip(sites, gates, strict=True):
            site.apply(tensors, gate)
        logits: Tensor = functional_call(network, tensors, (images,))
        return logits.square().sum()

    gates = [mask.clone().requires_grad_() for mask in masks]
    gradients = torch.autograd.grad(loss(gates), gates)
    step = 1e-6
    for index, gradient in enumerate(gradients[:6]):
        for channel in {0, len(gradient) - 1}:
            ends: list[float] = []
            for sign in (1, -1):
                moved = [mask.clone() for mask in masks]
                moved[index][channel] += sign * step
                ends.append(float(loss(moved)))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(gradient[channel]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_the_score_gradient_sums_over_all_weights_that_take_the_channel_in(
    double_case: Case, sites_of: SitesOf
) -> None:
    """Closed form: dL/ds_i = sign(s_i) * sum over consumers of sum(dL/dW_eff[:, i] * W[:, i])."""
    network, images = double_case.network, double_case.images
    sites = sites_of(double_case)
    masking = attach(sites, network, 0.5)
    with torch.no_grad():
        for scores in masking.scores:
            scores[::2] *= -1
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    effective = {name: tensor.detach().clone() for name, tensor in masking.tensors(parameters).items()}
    functional_call(network, masking.tensors(parameters), (images,)).square().sum().backward()
    leaves = {name: tensor.requires_grad_() for name, tensor in effective.items()}
    functional_call(network, leaves, (images,)).square().sum().backward()
    for site, scores, mask in zip(sites, masking.scores, masking.masks, strict=True):
        expected = torch.zeros(site.units, dtype=torch.float64)
        for place in site.group.consumers:
            name = place.parameters[0]
            gradient = leaves[name].grad
            assert gradient is not None
            weight = parameters[name].detach().clone()
            for other, other_mask in zip(sites, masking.masks, strict=True):
                for theirs in other.group.consumers:  # other groups gate other columns of the same weight
                    if theirs.layer == place.layer and other.name != site.name:
                        weight[:, theirs.positions[~other_mask].flatten()] = 0
            columns = (gradient * weight).transpose(0, 1).flatten(1).sum(1)
            expected += columns[place.positions].sum(1)
        assert scores.grad is not None
        torch.testing.assert_close(scores.grad, expected * scores.detach().sign(), rtol=1e-10, atol=1e-12)
        assert bool(mask.any())


@pytest.mark.parametrize("name", ["small_cnn", "vgg16_bn", "resnet18", "wide_resnet_28_4"])
def test_removed_channels_get_gradient_in_training(named_case: Build, name: str, sites_of: SitesOf) -> None:
    """A gate before the ReLU would leave them at exactly 0, where its derivative is 0, for good."""
    case = named_case(name)
    images = torch.rand(16, *case.images.shape[1:], generator=torch.Generator().manual_seed(1))
    network = case.network.double().train()
    masking = attach(sites_of(case), network, 0.5)
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    functional_call(network, masking.tensors(parameters), (images.double(),)).square().sum().backward()
    gradients = [scores.grad for scores in masking.scores]
    for gradient, mask in zip(gradients, masking.masks, strict=True):
        assert gradient is not None
        assert bool((gradient[~mask] != 0).all())


def test_a_removed_channel_that_would_help_comes_back() -> None:
    network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.tensor([[1.0], [-2.0]]))
        network.get_parameter("2.weight").fill_(1.0)
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    plan = Channel().plan(network, torch.ones(2, 1), ())
    masking = Masking(plan.sites, score=Learned(), budget=Uniform(), sparsity=0.5, parameters=parameters)
    assert masking.masks[0].tolist() == [False, True]
    optimizer = torch.optim.SGD(masking.learnable(), lr=4.0)
    logits = functional_call(network, masking.tensors(parameters), (torch.ones(1, 1),))
    (logits - 1).square().sum().backward()
    optimizer.step()
    masking.after_step()
    assert masking.masks[0].tolist() == [True, False]


def test_a_network_without_a_removable_channel_says_why() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    with pytest.raises(
        ModelError,
        match=r"\(0: its channels reach '2' as something other than zero; 2: .* outputs\)\. Use the",
    ):
        Channel().plan(network, torch.rand(2, 3), ())


def test_what_only_the_rehearsal_finds_is_frozen_in_the_plan() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.c(self.b(self.a(images) + 1).relu())
            return logits

    plan = Channel().plan(Constant(), torch.rand(2, 3), ())
    assert [site.name for site in plan.sites] == ["b"]
    assert [item.name for item in plan.frozen] == ["a", "c"]


def test_every_group_keeps_the_least_or_all(named_case: Build) -> None:
    case = named_case("resnet18")
    plan = Channel(round_to=2, least=6).plan(case.network, case.images, ())
    sites = [site for site in plan.sites if isinstance(site, ChannelSite)]
    masking = attach(sites, case.network, 0.9)
    assert any(site.units > 6 for site in sites)
    for site, mask in zip(sites, masking.masks, strict=True):
        assert int(mask.sum()) == min(site.units, 6)
