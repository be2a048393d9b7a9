"""What every pattern promises; a new file in the family is tested here by being there."""

import copy
from collections.abc import Callable
from typing import Protocol

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress import families
from robustcompress.errors import ConfigError, ModelError
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import PRUNABLE, Pattern, Plan
from robustcompress.pruning.scores.learned import Learned


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]
PlanOf = Callable[[str, Case], Plan]

KINDS = families.kinds(Pattern.family)
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_settings_survive_yaml(kind: str) -> None:
    pattern = Pattern.find(kind)
    assert pattern.kind == kind
    assert Pattern.find(yaml.safe_load(yaml.safe_dump(pattern.model_dump()))) == pattern


@each_kind
def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Pattern.find({"kind": kind, "depth": 3})


@each_kind
def test_planning_changes_nothing(kind: str, named_case: Build) -> None:
    case = named_case("resnet18")
    case.network.get_submodule("blocks.0").eval().requires_grad_(False)
    before = copy.deepcopy(case.network.state_dict())
    modes = [module.training for module in case.network.modules()]
    learns = [parameter.requires_grad for parameter in case.network.parameters()]
    state = torch.get_rng_state()
    Pattern.find(kind).plan(case.network, case.images, ())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in case.network.modules()] == modes
    assert [parameter.requires_grad for parameter in case.network.parameters()] == learns
    assert all(torch.equal(before[name], tensor) for name, tensor in case.network.state_dict().items())
    assert not any(module._forward_hooks for module in case.network.modules())


@each_kind
def test_every_prunable_layer_is_masked_or_frozen_once(kind: str, case: Case, plan_of: PlanOf) -> None:
    plan = plan_of(kind, case)
    named = [layer for site in plan.sites for layer in site.layers] + [item.name for item in plan.frozen]
    layers = [name for name, module in case.network.named_modules() if isinstance(module, PRUNABLE)]
    assert sorted(named) == sorted(layers)


@each_kind
def test_sites_describe_their_units(kind: str, case: Case, plan_of: PlanOf) -> None:
    parameters = dict(case.network.named_parameters())
    plan = plan_of(kind, case)
    assert len({site.name for site in plan.sites}) == len(plan.sites)
    for site in plan.sites:
        saliency = site.saliency(parameters)
        assert tuple(saliency.shape) == site.shape
        assert site.units == saliency.numel()
        assert site.units >= site.minimum_kept >= 1
        assert site.fan_in == parameters[f"{site.name}.weight"][0].numel()
        assert set(site.parameters) <= set(parameters)


@each_kind
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_gated_and_baked_networks_agree(
    kind: str, double_case: Case, sparsity: float, plan_of: PlanOf
) -> None:
    network, images = double_case.network, double_case.images
    plan = plan_of(kind, double_case)
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    masking = Masking(plan.sites, score=Learned(), budget=Uniform(), sparsity=sparsity, parameters=parameters)
    with torch.no_grad():
        dense = network(images)
        gated = functional_call(network, masking.tensors(parameters), (images,))
        masking.bake(network)
        baked = network(images)
    assert bool((gated - baked).abs().max() <= 1e-12 * baked.abs().max())
    assert torch.equal(dense, baked) is not any(masking.removed)


@each_kind
def test_gates_of_one_give_the_parameters_themselves(kind: str, case: Case, plan_of: PlanOf) -> None:
    parameters: dict[str, Tensor] = dict(case.network.named_parameters())
    tensors = dict(parameters)
    for site in plan_of(kind, case).sites:
        site.apply(tensors, torch.ones(site.shape))
    assert all(torch.equal(tensors[name], parameters[name]) for name in parameters)


@each_kind
def test_apply_touches_only_what_the_site_names(kind: str, case: Case, plan_of: PlanOf) -> None:
    parameters: dict[str, Tensor] = dict(case.network.named_parameters())
    for site in plan_of(kind, case).sites:
        tensors = dict(parameters)
        site.apply(tensors, torch.zeros(site.shape))
        touched = {name for name in parameters if tensors[name] is not parameters[name]}
        assert touched
        assert touched <= set(site.parameters)


@each_kind
def test_bake_of_a_full_mask_changes_nothing(kind: str, case: Case, plan_of: PlanOf) -> None:
    before = copy.deepcopy(case.network.state_dict())
    parameters = dict(case.network.named_parameters())
    for site in plan_of(kind, case).sites:
        site.bake(parameters, torch.ones(site.shape, dtype=torch.bool))
    assert all(torch.equal(before[name], tensor) for name, tensor in case.network.state_dict().items())


@each_kind
def test_ignored_layers_are_in_no_site(kind: str, named_case: Build) -> None:
    case = named_case("vgg16_bn")
    plan = Pattern.find(kind).plan(case.network, case.images, ("features.7", "class*"))
    reasons = {item.name: item.reason for item in plan.frozen}
    assert reasons["features.7"] == "ignored by 'features.7'"
    assert reasons["classifier"] == "ignored by 'class*'"
    for site in plan.sites:
        assert not {"features.7.weight", "features.7.bias", "classifier.weight"} & set(site.parameters)


@each_kind
def test_a_glob_that_matches_nothing_is_refused(kind: str, named_case: Build) -> None:
    case = named_case("small_cnn")
    with pytest.raises(
        ConfigError, match=r"ignore='clasifier' matches no layer\. Did you mean 'classifier'\?"
    ):
        Pattern.find(kind).plan(case.network, case.images, ("clasifier",))


@each_kind
def test_a_network_with_nothing_left_to_prune_is_refused(kind: str, named_case: Build) -> None:
    case = named_case("mlp")
    with pytest.raises(ModelError, match=r"1: ignored by '\*'"):
        Pattern.find(kind).plan(case.network, case.images, ("*",))
    with pytest.raises(ModelError, match="no Conv1d, Conv2d, Conv3d or Linear layer"):
        Pattern.find(kind).plan(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(27)), case.images, ())
