"""Masks whose budget learns, and sites that choose for themselves."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Budget, Rates
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.costs import NetworkCosts
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Site
from robustcompress.pruning.patterns.unstructured import Unstructured, WeightSite
from robustcompress.pruning.scores.learned import Learned
from robustcompress.pruning.scores.magnitude import Magnitude

IMAGES = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


class Fractions(Rates):
    """One number a site, the kept fraction itself."""

    def __init__(self, sites: int) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.full((sites,), 0.5))
        self.epochs = 0

    def fractions(self) -> Tensor:
        return self.kept

    def counts(self, sites: Sequence[Site]) -> list[int]:
        kept = self.kept.tolist()
        return [site.units - round(part * site.units) for site, part in zip(sites, kept, strict=True)]

    def penalty(self) -> Tensor:
        return 3 * self.kept.sum()

    def after_epoch(self) -> None:
        self.epochs += 1


class Learning(Uniform):
    """A budget whose rates are the fractions themselves."""

    def rates(
        self,
        sites: Sequence[Site],
        scores: Sequence[Tensor],
        sparsity: float,
        *,
        costs: NetworkCosts | None = None,
    ) -> Rates | None:
        return Fractions(len(sites))


class Stubborn(WeightSite):
    """Always loses its first two weights."""

    fixed_removed = 2

    def select(self, scores: Tensor, removed: int) -> Tensor:
        mask = torch.ones(self.units, dtype=torch.bool)
        mask[:removed] = False
        return mask.reshape(self.shape)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def masked(model: nn.Module, budget: Budget | None = None, *, learned: bool = True) -> Masking:
    return Masking(
        Unstructured().plan(model, IMAGES, ()).sites,
        score=Learned() if learned else Magnitude(),
        budget=budget or Learning(),
        sparsity=0.5,
        parameters=dict(model.named_parameters()),
    )


def rates_of(masking: Masking) -> Fractions:
    assert isinstance(masking.rates, Fractions)
    return masking.rates


@pytest.mark.parametrize("learned", [True, False])
def test_a_kept_fraction_gets_the_gradient_of_all_gates_of_its_site(learned: bool) -> None:
    model = network()
    masking = masked(model, learned=learned)
    parameters = dict(model.named_parameters())
    functional_call(model, {**parameters, **masking.tensors(parameters)}, (IMAGES,)).square().sum().backward()
    gates = [mask.float().requires_grad_() for mask in masking.masks]
    opened = {site.parameters[0]: parameters[site.parameters[0]].detach() for site in masking.sites}
    closed = {name: opened[name] * gate for (name, gate) in zip(opened, gates, strict=True)}
    functional_call(model, {**parameters, **closed}, (IMAGES,)).square().sum().backward()
    expected = torch.stack([gate.grad.sum() for gate in gates if gate.grad is not None])
    got = rates_of(masking).kept.grad
    assert got is not None
    torch.testing.assert_close(got, expected)
    for scores, gate in zip(masking.scores, gates, strict=True):
        if learned:
            assert gate.grad is not None
            torch.testing.assert_close(scores.grad, gate.grad * scores.sign())
        else:
            assert scores.grad is None


def test_masks_follow_the_rates_step_by_step() -> None:
    masking = masked(network())
    assert [int(mask.sum()) for mask in masking.masks] == [12, 6]
    with torch.no_grad():
        rates_of(masking).kept.copy_(torch.tensor([0.25, 1.0]))
    masking.after_step()
    assert [int(mask.sum()) for mask in masking.masks] == [6, 12]
    assert masking.removed == [18, 0]
    smallest = masking.scores[0].abs().flatten().sort().values[17]
    assert torch.equal(masking.masks[0], masking.scores[0].abs() > smallest)


def test_rates_learn_are_told_of_epochs_and_ask_for_their_penalty_until_masks_are_frozen() -> None:
    masking = masked(network())
    assert any(parameter is rates_of(masking).kept for parameter in masking.learnable())
    penalty = masking.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == 3.0
    masking.after_epoch(None)
    assert rates_of(masking).epochs == 1
    masking.freeze()
    masking.after_epoch(0.5)
    assert rates_of(masking).epochs == 1
    assert masking.penalty() is None
    assert not list(masking.learnable())


def test_rates_are_saved_and_come_back_with_the_masks() -> None:
    masking = masked(network())
    with torch.no_grad():
        rates_of(masking).kept.copy_(torch.tensor([0.75, 0.25]))
    masking.after_step()
    saved = {name: tensor.clone() for name, tensor in masking.state().items()}
    again = masked(network())
    again.restore(saved)
    assert torch.equal(rates_of(again).kept, rates_of(masking).kept)
    assert again.removed == masking.removed == [6, 9]
    assert all(torch.equal(a, b) for a, b in zip(again.masks, masking.masks, strict=True))
    with pytest.raises(ConfigError, match=r"rates\.kept must be \[2\]; the saved state has none.*another"):
        again.restore({name: tensor for name, tensor in saved.items() if not name.startswith("rates.")})


def test_a_site_that_chooses_for_itself_is_not_asked_of_its_budget() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    sites = [Stubborn("0", parameters["0.weight"]), WeightSite("2", parameters["2.weight"])]
    masking = Masking(sites, score=Learned(), budget=Uniform(), sparsity=0.75, parameters=parameters)
    assert masking.removed == [2, 9]
    assert masking.masks[0].flatten().tolist() == [False] * 2 + [True] * 22


def test_scores_may_come_from_elsewhere() -> None:
    model = network()
    sites = Unstructured().plan(model, IMAGES, ()).sites
    given = [torch.arange(24.0), torch.arange(12.0).flip(0)]
    masking = Masking(
        sites,
        score=Magnitude(),
        budget=Uniform(),
        sparsity=0.5,
        parameters=dict(model.named_parameters()),
        initial=given,
    )
    assert masking.masks[0].flatten().tolist() == [False] * 12 + [True] * 12
    assert masking.masks[1].flatten().tolist() == [True] * 6 + [False] * 6
