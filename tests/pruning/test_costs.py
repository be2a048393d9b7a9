"""Costs as a function of kept counts, against networks from which the channels are really gone."""

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.graph.cost import count_macs, effective_macs
from robustcompress.pruning.costs import CostForm, Limit, network_costs
from robustcompress.pruning.patterns import Plan
from robustcompress.pruning.patterns.channel import ChannelSite
from robustcompress.pruning.patterns.unstructured import Unstructured
from robustcompress.pruning.removal import Removal, remove


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]
PlanOf = Callable[[str, Case], Plan]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vgg16_bn",
        "separable",
        "flatten_cnn",
        "dense",
        "wide_resnet_28_4",
        "conv1d",
        "conv3d",
        "mlp",
    ],
)
def test_costs_of_random_counts_are_those_of_the_network_without_the_channels(
    name: str, named_case: Build, plan_of: PlanOf
) -> None:
    case = named_case(name)
    case.network.eval()
    sites = plan_of("channel", case).sites
    costs = network_costs(case.network, case.images, sites)
    assert costs.macs.dense == sum(cost.macs for cost in count_macs(case.network, case.images).values())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        small = copy.deepcopy(case.network)
        removals: list[Removal] = []
        kept: list[int] = []
        for site in sites:
            assert isinstance(site, ChannelSite)
            count = int(torch.randint(1, site.units + 1, (), generator=generator))
            gone = torch.ones(site.units, dtype=torch.bool)
            gone[torch.randperm(site.units, generator=generator)[:count]] = False
            removals.append(Removal(site.group, gone))
            kept.append(count)
        remove(small, removals)
        measured = count_macs(small, case.images)
        assert costs.macs(kept) == sum(cost.macs for cost in measured.values())
        assert costs.weights(kept) == sum(cost.weights for cost in measured.values())
        assert costs.effective_macs(kept) == costs.macs(kept)


@pytest.mark.parametrize("name", ["resnet18", "separable", "small_cnn"])
def test_masked_weights_cost_no_effective_operations_but_dense_ones(name: str, named_case: Build) -> None:
    case = named_case(name)
    case.network.eval()
    sites = Unstructured().plan(case.network, case.images, ()).sites
    costs = network_costs(case.network, case.images, sites)
    generator = torch.Generator().manual_seed(0)
    masked = copy.deepcopy(case.network)
    parameters = dict(masked.named_parameters())
    kept: list[int] = []
    for site in sites:
        mask = torch.rand(site.shape, generator=generator) < 0.3
        site.bake(parameters, mask)
        kept.append(int(mask.sum()))
    measured = count_macs(masked, case.images)
    assert costs.weights(kept) == sum(cost.nonzero for cost in measured.values())
    assert costs.effective_macs(kept) == effective_macs(measured)
    assert costs.macs(kept) == costs.macs.dense == sum(cost.macs for cost in measured.values())


class Twice(nn.Module):
    """Two layers that share one weight, and a part that is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.again.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(F.relu(self.again(F.relu(self.first(images)))))
        return logits


def test_a_shared_weight_is_stored_once_and_computed_with_twice() -> None:
    network, images = Twice(), torch.rand(2, 6)
    sites = Unstructured().plan(network, images, ("last",)).sites
    costs = network_costs(network, images, sites)
    assert [site.units for site in sites] == [36]
    assert costs.weights([10]) == 10 + 18
    assert costs.effective_macs([10]) == 10 + 10 + 18
    assert costs.macs([10]) == 36 + 36 + 18


def test_the_differentiable_ratio_is_the_cost_over_the_target(named_case: Build, plan_of: PlanOf) -> None:
    case = named_case("resnet18")
    case.network.eval()
    form = network_costs(case.network, case.images, plan_of("channel", case).sites).macs
    fractions = torch.rand(len(form.units), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fractions.requires_grad_()
    target = form.dense / 3
    assert float(form.ratio(fractions, target).detach()) == pytest.approx(
        form(fractions.detach().numpy() * form.units) / target
    )
    assert torch.autograd.gradcheck(lambda given: form.ratio(given, target), (fractions,))


def test_a_limit_holds_up_to_its_target() -> None:
    form = CostForm(np.array([2.0]), np.array([[3.0, 1.0]]), np.array([[0.0, 1.0]]), np.array([9.0]), ("a",))
    assert form.shapes([4]) == {"a": (13, 1)}
    assert form([4]) == 2 * (3 * 4 + 1)
    assert Limit(form, 26).holds([4])
    assert not Limit(form, 25.9).holds([4])
