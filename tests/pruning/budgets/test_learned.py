"""Learned rates against the paper's formulas, finite differences and brute force."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Budget, Learned, Rates, Uniform
from robustcompress.pruning.budgets.learned import LearnedRates
from robustcompress.pruning.costs import Limit, NetworkCosts, network_costs
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Plan, Site
from robustcompress.pruning.patterns.unstructured import Unstructured
from robustcompress.pruning.scores.learned import Learned as LearnedScore
from robustcompress.pruning.scores.magnitude import Magnitude


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]
PlanOf = Callable[[str, Case], Plan]
IMAGES = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))


def attach(
    model: nn.Module, budget: Budget, sparsity: float, *, learned: bool = True
) -> tuple[Masking, NetworkCosts]:
    sites = Unstructured().plan(model, IMAGES, ()).sites
    costs = network_costs(model, IMAGES, sites)
    masking = Masking(
        sites,
        score=LearnedScore() if learned else Magnitude(),
        budget=budget,
        sparsity=sparsity,
        parameters=dict(model.named_parameters()),
        costs=costs,
    )
    return masking, costs


def rates_of(masking: Masking) -> LearnedRates:
    assert isinstance(masking.rates, LearnedRates)
    return masking.rates


def test_fractions_are_the_papers_function_of_the_logits() -> None:
    masking, _ = attach(network(), Learned(floor=0.2), 0.75)
    rates = rates_of(masking)
    with torch.no_grad():
        rates.logits.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    smallest = 0.2 * 0.25
    assert rates.fractions().tolist() == pytest.approx([smallest, 0.5 * (1 - smallest) + smallest, 1.0])


@pytest.mark.parametrize("initial", ["uniform", "erk", "lamp"])
def test_training_begins_with_the_allocation_of_the_initial_budget(initial: str) -> None:
    model = network()
    masking, _ = attach(model, Learned.model_validate({"initial": initial}), 0.5)
    scores = [values.detach() for values in masking.scores]
    expected = Budget.find(initial).removed(masking.sites, scores, 0.5)
    # All of a site cannot be said by a sigmoid: such sites may lose a unit or two.
    assert masking.removed == pytest.approx(expected, abs=2)
    assert sum(masking.removed) == sum(expected)


def test_the_gradient_of_a_logit_is_that_of_all_gates_times_the_slope() -> None:
    """HARP: dL/dr = sum(dL/dW_eff * W) * dk/dr, with dL/dW_eff from a network whose weights are plain."""
    model = network()
    masking, _ = attach(model, Learned(), 0.6)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    loss = functional_call(model, masking.tensors(parameters), (IMAGES,)).square().sum()
    loss.backward()

    plain = network()
    masking.bake(plain)
    plain(IMAGES).square().sum().backward()
    rates = rates_of(masking)
    shares = rates.logits.detach().sigmoid()
    assert rates.logits.grad is not None
    for index, site in enumerate(masking.sites):
        gradient = plain.get_parameter(site.parameters[0]).grad
        assert gradient is not None
        of_fraction = (gradient * parameters[site.parameters[0]]).sum()
        slope = shares[index] * (1 - shares[index]) * (1 - 0.1 * 0.4)
        assert float(rates.logits.grad[index]) == pytest.approx(float(of_fraction * slope), rel=1e-4)


def test_the_gradient_of_the_penalty_agrees_with_finite_differences() -> None:
    masking, costs = attach(network(), Learned(cost="macs", penalty=2.5), 0.6)
    rates = rates_of(masking)
    logits = torch.tensor([0.3, 1.2, -0.4])

    def penalty(values: Tensor) -> float:
        share = values.double().sigmoid() * (1 - 0.04) + 0.04
        kept = share.numpy() * costs.macs.units
        target = costs.effective_macs(
            [site.units - n for site, n in zip(masking.sites, uniform, strict=True)]
        )
        return 2.5 * max(float(costs.effective_macs(kept)) / target - 1, 0.0)

    uniform = Uniform().removed(masking.sites, [s.detach() for s in masking.scores], 0.6)
    with torch.no_grad():
        rates.logits.copy_(logits)
    value = rates.penalty()
    value.backward()
    assert float(value.detach()) == pytest.approx(penalty(logits), rel=1e-5)
    assert rates.logits.grad is not None
    for index in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[index] = 1e-6
        slope = (penalty(logits + step) - penalty(logits - step)) / 2e-6
        assert float(rates.logits.grad[index]) == pytest.approx(slope, rel=1e-4)


def test_within_the_target_nothing_is_added_to_the_loss() -> None:
    masking, _ = attach(network(), Learned(), 0.5)
    rates = rates_of(masking)
    with torch.no_grad():
        rates.logits.fill_(-3.0)
    assert float(rates.penalty().detach()) == 0


def test_the_weight_of_the_penalty_grows_after_epochs_above_the_target_only() -> None:
    masking, _ = attach(network(), Learned(penalty=0.5, growth=0.25), 0.5)
    rates = rates_of(masking)
    for level, expected in ((2.0, 0.75), (2.0, 1.0), (-2.0, 1.0), (2.0, 1.25)):
        with torch.no_grad():
            rates.logits.fill_(level)
        rates.after_epoch()
        assert float(rates.weight) == expected


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_masks_remove_exactly_the_sparsity_wherever_the_rates_went(sparsity: float) -> None:
    masking, _ = attach(network(), Learned(), sparsity)
    rates = rates_of(masking)
    generator = torch.Generator().manual_seed(0)
    units = sum(site.units for site in masking.sites)
    for _ in range(20):
        with torch.no_grad():
            rates.logits.copy_(3 * torch.randn(3, generator=generator))
        masking.refresh()
        removed = sum(int((~mask).sum()) for mask in masking.masks)
        assert removed == round(sparsity * units) == sum(masking.removed)


def test_a_larger_rate_never_keeps_a_smaller_fraction() -> None:
    masking, _ = attach(network(), Learned(), 0.5)
    rates = rates_of(masking)
    with torch.no_grad():
        rates.logits.copy_(torch.tensor([0.5, -0.5, 1.5]))
    kept = [
        1 - count / site.units for site, count in zip(masking.sites, rates.counts(masking.sites), strict=True)
    ]
    assert kept[1] < kept[0] < kept[2]


def test_channels_cost_no_more_than_the_uniform_budget_and_hardly_less(
    named_case: Build, plan_of: PlanOf
) -> None:
    case = named_case("resnet18")
    case.network.eval()
    sites = plan_of("channel", case).sites
    costs = network_costs(case.network, case.images, sites)
    scores = [torch.rand(site.shape) for site in sites]
    for cost, form in (("weights", costs.weights), ("macs", costs.macs)):
        rates = Learned.model_validate({"cost": cost}).rates(sites, scores, 0.5, costs=costs)
        assert isinstance(rates, LearnedRates)
        uniform = Uniform().removed(sites, scores, 0.5)
        target = form([site.units - count for site, count in zip(sites, uniform, strict=True)])
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            with torch.no_grad():
                rates.logits.copy_(torch.randn(len(sites), generator=generator))
            kept = [site.units - count for site, count in zip(sites, rates.counts(sites), strict=True)]
            assert form(kept) <= target
            for index, site in enumerate(sites):
                if kept[index] < site.units:  # not another step fits
                    more = [*kept[:index], kept[index] + site.granularity, *kept[index + 1 :]]
                    assert form(more) > target


def test_what_a_pattern_fixes_does_not_learn() -> None:
    model = network()
    sites = Unstructured().plan(model, IMAGES, ()).sites
    sites[1].fixed_removed = 40
    costs = network_costs(model, IMAGES, sites)
    rates = Learned().rates(sites, [torch.rand(site.shape) for site in sites], 0.5, costs=costs)
    assert isinstance(rates, LearnedRates)
    rates.fractions().sum().backward()
    assert float(rates.fractions()[1].detach()) == 0.5
    assert rates.logits.grad is not None
    assert float(rates.logits.grad[1]) == 0
    assert rates.counts(sites)[1] == 40


def test_limits_that_nothing_meets_leave_the_smallest_counts() -> None:
    model = network()
    sites = Unstructured().plan(model, IMAGES, ()).sites
    costs = network_costs(model, IMAGES, sites)
    scores = [torch.rand(site.shape) for site in sites]
    tight = NetworkCosts(costs.weights, costs.macs, costs.effective_macs, (Limit(costs.weights, 1.0),))
    rates = Learned().rates(sites, scores, 0.5, costs=tight)
    assert rates is not None
    kept = [site.units - count for site, count in zip(sites, rates.counts(sites), strict=True)]
    assert kept == [round(0.05 * site.units) for site in sites]


def test_costs_are_needed() -> None:
    with pytest.raises(ConfigError, match="a budget that learns needs the network's costs; got none"):
        attach_without_costs()


def attach_without_costs() -> Rates | None:
    sites: Sequence[Site] = Unstructured().plan(network(), IMAGES, ()).sites
    return Learned().rates(sites, [torch.rand(site.shape) for site in sites], 0.5)


def test_rates_survive_a_checkpoint() -> None:
    masking, _ = attach(network(), Learned(), 0.5)
    rates = rates_of(masking)
    with torch.no_grad():
        rates.logits.copy_(torch.tensor([1.0, -1.0, 0.25]))
    rates.after_epoch()
    masking.refresh()
    other, _ = attach(network(), Learned(), 0.5)
    other.restore(masking.state())
    assert torch.equal(rates_of(other).logits, rates.logits)
    assert torch.equal(rates_of(other).weight, rates.weight)
    assert other.removed == masking.removed
    assert math.isfinite(float(rates.weight))
