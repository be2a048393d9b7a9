"""Masks against brute force, their gradient against the closed form."""

import itertools
from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Plan
from robustcompress.pruning.patterns.unstructured import Unstructured
from robustcompress.pruning.scores import Score
from robustcompress.pruning.scores.learned import Learned
from robustcompress.pruning.scores.magnitude import Magnitude
from robustcompress.pruning.selection import keep_largest


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


Build = Callable[[str], Case]
PlanOf = Callable[[str, Case], Plan]


def attach(case: Case, sparsity: float, *, plan: Plan | None = None, score: Score | None = None) -> Masking:
    return Masking(
        (plan or Unstructured().plan(case.network, case.images, ())).sites,
        score=score or Learned(),
        budget=Uniform(),
        sparsity=sparsity,
        parameters=dict(case.network.named_parameters()),
    )


def dropped_by_brute_force(values: list[float], removed: int) -> set[int]:
    """Drop one after the other the smallest, of equals the first."""
    left = list(range(len(values)))
    for _ in range(removed):
        left.remove(min(left, key=lambda index: (abs(values[index]), index)))
    return set(range(len(values))) - set(left)


@settings(deadline=None)
@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=24),
    data=st.data(),
)
def test_keep_largest_drops_exactly_the_smallest_whatever_the_ties(
    values: list[float], data: st.DataObject
) -> None:
    removed = data.draw(st.integers(0, len(values)))
    mask = keep_largest(torch.tensor(values), removed)
    assert mask.dtype == torch.bool
    assert set((~mask).nonzero().flatten().tolist()) == dropped_by_brute_force(values, removed)


def test_keep_largest_of_every_small_tensor_agrees_with_brute_force() -> None:
    for values in itertools.product([-1.0, 0.0, 1.0, 2.0], repeat=4):
        for removed in range(5):
            mask = keep_largest(torch.tensor(values).reshape(4, 1), removed)
            assert mask.shape == (4, 1)
            assert set((~mask).flatten().nonzero().flatten().tolist()) == dropped_by_brute_force(
                list(values), removed
            )


@pytest.mark.parametrize("removed", [-1, 5])
def test_keep_largest_refuses_to_remove_what_is_not_there(removed: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected to remove 0 to 4 of 4 scores; got {removed}"):
        keep_largest(torch.rand(2, 2), removed)


def test_no_memory_format_changes_a_mask() -> None:
    scores = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = keep_largest(scores, 150)
    assert int((~expected).sum()) == 150
    for other in (
        scores.to(memory_format=torch.channels_last),
        scores.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
        torch.stack([scores, scores], -1)[..., 0],
    ):
        assert not other.is_contiguous()
        assert torch.equal(keep_largest(other, 150), expected)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_masks_of_channels_last_weights_count_and_place_like_those_of_contiguous_ones(
    named_case: Build, sparsity: float
) -> None:
    plain, other = named_case("vgg16_bn"), named_case("vgg16_bn")
    other.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own stub
    expected, actual = attach(plain, sparsity), attach(other, sparsity)
    assert all(scores.is_contiguous() for scores in actual.scores)
    for site, left, right in zip(expected.sites, expected.masks, actual.masks, strict=True):
        assert torch.equal(left, right)
        weight = plain.network.get_parameter(site.parameters[0]).detach()
        # Rounded up or down, whichever makes the sum over the layers exact.
        removed = int((~left).sum())
        assert abs(removed - sparsity * weight.numel()) < 1
        assert not removed or float(weight.abs()[~left].max()) <= float(weight.abs()[left].min())
    effective = actual.tensors(dict(other.network.named_parameters()))
    for site, mask in zip(actual.sites, actual.masks, strict=True):
        assert torch.equal(effective[site.parameters[0]] != 0, mask)


def test_the_first_mask_of_scaled_scores_is_the_lowest_magnitude_mask(case: Case) -> None:
    for sparsity in (0.5, 0.9):
        for learned, magnitude in zip(
            attach(case, sparsity).masks, attach(case, sparsity, score=Magnitude()).masks, strict=True
        ):
            assert torch.equal(learned, magnitude)


@pytest.mark.parametrize("name", ["flatten_cnn", "separable", "conv1d", "conv3d", "mlp", "resnet18"])
def test_the_score_gradient_is_straight_through(named_case: Build, name: str) -> None:
    """Closed form: dL/ds = dL/dW_eff * W * sign(s), for kept and removed weights alike."""
    case = named_case(name)
    network, images = case.network.double().eval(), case.images.double()
    masking = attach(case, 0.6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # other signs than the weights have
        for scores in masking.scores:
            scores.copy_(torch.randn(scores.shape, generator=generator, dtype=torch.float64))
    masking.refresh()
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    functional_call(network, masking.tensors(parameters), (images,)).square().sum().backward()
    leaves = {
        site.parameters[0]: (parameters[site.parameters[0]].detach() * mask).requires_grad_()
        for site, mask in zip(masking.sites, masking.masks, strict=True)
    }
    functional_call(network, leaves, (images,)).square().sum().backward()
    for site, scores in zip(masking.sites, masking.scores, strict=True):
        effective = leaves[site.parameters[0]]
        assert effective.grad is not None
        assert scores.grad is not None
        closed_form = effective.grad * parameters[site.parameters[0]].detach() * scores.detach().sign()
        torch.testing.assert_close(scores.grad, closed_form, rtol=1e-12, atol=1e-14)


def test_removed_weights_get_gradient_and_come_back() -> None:
    network = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0]]))
    masking = Masking(
        Unstructured().plan(network, torch.zeros(1, 2), ()).sites,
        score=Learned(),
        budget=Uniform(),
        sparsity=0.5,
        parameters=dict(network.named_parameters()),
    )
    assert masking.masks[0].tolist() == [[False, True]]
    optimizer = torch.optim.SGD(masking.learnable(), lr=2.0)
    target = torch.tensor([[1.0]], dtype=torch.float64)  # what the removed weight alone would give
    images = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    logits = functional_call(network, masking.tensors(dict(network.named_parameters())), (images,))
    (0.5 * (logits - target).square().sum()).backward()
    assert masking.scores[0].grad is not None
    assert masking.scores[0].grad.tolist() == [[-1.0, 0.0]]
    optimizer.step()
    masking.after_step()
    assert masking.masks[0].tolist() == [[True, False]]


def test_gradients_reach_weights_that_learn_and_only_kept_ones(named_case: Build) -> None:
    case = named_case("mlp")
    masking = attach(case, 0.5)
    masking.freeze()
    assert list(masking.learnable()) == []
    parameters: dict[str, Tensor] = dict(case.network.named_parameters())
    functional_call(case.network, masking.tensors(parameters), (case.images,)).square().sum().backward()
    for site, mask in zip(masking.sites, masking.masks, strict=True):
        gradient = parameters[site.parameters[0]].grad
        assert gradient is not None
        assert not bool(gradient[~mask].any())
        assert bool(gradient[mask].any())


def test_masks_follow_scores_that_learn_and_no_others(named_case: Build) -> None:
    case = named_case("mlp")
    learned, fixed, frozen = (attach(case, 0.5), attach(case, 0.5, score=Magnitude()), attach(case, 0.5))
    frozen.freeze()
    for masking, moves in ((learned, True), (fixed, False), (frozen, False)):
        before = [mask.clone() for mask in masking.masks]
        with torch.no_grad():
            for scores in masking.scores:
                scores.copy_(scores.flatten().abs().sort(descending=True).values.reshape(scores.shape))
        masking.after_step()
        same = all(torch.equal(left, right) for left, right in zip(before, masking.masks, strict=True))
        assert same is not moves
        assert [int(mask.sum()) for mask in masking.masks] == [int(mask.sum()) for mask in before]
    assert list(fixed.learnable()) == []
    assert learned.penalty() is None


@pytest.mark.parametrize("kind", ["unstructured", "channel"])
def test_a_baked_network_computes_what_the_masked_one_computes(
    double_case: Case, kind: str, plan_of: PlanOf
) -> None:
    network, images = double_case.network, double_case.images
    masking = attach(double_case, 0.7, plan=plan_of(kind, double_case))
    with torch.no_grad():
        masked = functional_call(network, masking.tensors(dict(network.named_parameters())), (images,))
        masking.bake(network)
        baked = network(images)
    assert bool((masked - baked).abs().max() <= 1e-12 * baked.abs().max())
    for site in masking.sites:
        for name in site.parameters:
            zeros = network.get_parameter(name).detach()
            assert not bool(zeros[zeros == 0].signbit().any())


@pytest.mark.parametrize("kind", ["unstructured", "channel"])
def test_what_is_saved_comes_back(named_case: Build, kind: str, plan_of: PlanOf) -> None:
    case = named_case("resnet18")
    masking = attach(case, 0.5, plan=plan_of(kind, case))
    with torch.no_grad():
        for scores in masking.scores:
            scores.normal_()
    masking.refresh()
    saved = {name: tensor.clone() for name, tensor in masking.state().items()}
    other = attach(case, 0.5, plan=plan_of(kind, case))
    other.restore(saved)
    for name, tensor in other.state().items():
        assert torch.equal(tensor, saved[name])


def test_masks_are_restored_as_they_are_and_not_made_anew(named_case: Build) -> None:
    case = named_case("mlp")
    masking = attach(case, 0.5)
    state = {name: tensor.clone() for name, tensor in masking.state().items()}
    state["mask.1"] = ~state["mask.1"]
    masking.restore(state)
    assert torch.equal(masking.masks[0], state["mask.1"])


def test_a_state_of_another_network_is_refused(named_case: Build) -> None:
    masking = attach(named_case("mlp"), 0.5)
    state = masking.state()
    with pytest.raises(
        ConfigError, match=r"scores of '1' must be \[12, 27\]; the saved state has none\. Was it"
    ):
        masking.restore({name: tensor for name, tensor in state.items() if name != "scores.1"})
    with pytest.raises(ConfigError, match=r"mask of '3' must be \[9, 12\]; the saved state has \[12, 9\]"):
        masking.restore({**state, "mask.3": state["mask.3"].T})


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90.0, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(named_case: Build, sparsity: float) -> None:
    with pytest.raises(ConfigError, match=rf"sparsity must be in \[0, 1\); got {sparsity}"):
        attach(named_case("mlp"), sparsity)
