"""Adversarial weight perturbation against its equations, written out."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Score
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Moment, Objective, StepView
from robustcompress.training.objectives.free import Free
from robustcompress.training.objectives.natural import Natural
from robustcompress.training.settings import StepSettings
from robustcompress.training.step import Stepper
from robustcompress.training.weight_perturbation import WeightPerturbation
from tests.training.test_step import Net

GAMMA = 0.05
Found = dict[str, Tensor]


class Bench:
    """One step at learning rate zero: gradients stay to be looked at."""

    def __init__(
        self,
        objective: Objective,
        *,
        stage: str = "pretrain",
        awp: WeightPerturbation | None = None,
        moment: Moment | None = None,
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.network = Net().double()
        self.images, self.labels = torch.rand(8, 2, 8, 8, dtype=torch.float64), torch.arange(8) % 4
        self.masking: Masking | None = None
        if stage != "pretrain":
            self.masking = Masking(
                Pattern.find("unstructured").plan(self.network, self.images, ()).sites,
                score=Score.find("learned"),
                budget=Budget.find("uniform"),
                sparsity=0.5,
                parameters=dict(self.network.named_parameters()),
            )
        if stage == "prune":
            for parameter in self.network.parameters():
                parameter.requires_grad_(parameter.ndim == 1)
        elif self.masking:
            self.masking.freeze()
        beside = list(self.masking.learnable()) if self.masking else []
        self.learnt = [*beside, *(p for p in self.network.parameters() if p.requires_grad)]
        self.before = copy.deepcopy(self.network)
        self.moment = moment or Moment(epoch=0, epochs=1, step=0, steps=4)
        self.stepper = Stepper(
            self.network,
            self.masking,
            objective=objective,
            threat=Threat(eps=0.1),
            optimizer=torch.optim.SGD(self.learnt, lr=0.0),
            device=torch.device("cpu"),
            precision="fp32",
            clip_gradient=None,
            seed=7,
            settings=StepSettings(**settings),
            awp=awp,
        )

    def step(self) -> float:
        return self.stepper.step(self.images, self.labels, self.moment)

    def effective(self) -> Found:
        """Return the masked weights, detached."""
        named = dict(self.before.named_parameters())
        masked = self.masking.tensors(named) if self.masking else {}
        return {name: tensor.detach().clone() for name, tensor in {**named, **masked}.items()}

    def loss_at(self, weights: Found) -> Tensor:
        network = copy.deepcopy(self.before).train()
        logits = functional_call(network, weights, (self.images,))
        assert isinstance(logits, Tensor)
        return F.cross_entropy(logits, self.labels)

    def perturbed(self, gamma: float) -> Found:
        """Equations 9 and 10 with one step: v = gamma * |w| * g / |g| in every layer, within the mask."""
        effective = self.effective()
        weights = {name: tensor for name, tensor in effective.items() if tensor.ndim > 1}
        for tensor in weights.values():
            tensor.requires_grad_()
        gradients = torch.autograd.grad(self.loss_at(effective), list(weights.values()))
        found = {name: tensor.detach() for name, tensor in effective.items()}
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            kept = gradient * (weight != 0)
            found[name] = (weight + gamma * weight.norm() * kept / kept.norm()).detach()
        return found


STAGES = ("pretrain", "prune", "finetune")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "settings", [{}, {"memory_format": "channels_last"}, {"recompute": "learner"}], ids=str
)
def test_the_gradient_is_taken_at_the_worst_weights_nearby(stage: str, settings: dict[str, Any]) -> None:
    bench = Bench(Natural(), stage=stage, awp=WeightPerturbation(gamma=GAMMA), **settings)
    value = bench.step()
    worst = {name: tensor.clone().requires_grad_() for name, tensor in bench.perturbed(GAMMA).items()}
    loss = bench.loss_at(worst)
    gradients = dict(zip(worst, torch.autograd.grad(loss, list(worst.values())), strict=True))
    assert value == pytest.approx(loss.item(), rel=1e-9)
    assert value > bench.loss_at(bench.effective()).item() + 1e-3
    masks = {}
    if bench.masking:
        sites = zip(bench.masking.sites, bench.masking.masks, strict=True)
        masks = {site.parameters[0]: mask for site, mask in sites}
    for name, parameter in bench.network.named_parameters():
        if parameter.requires_grad:
            expected = gradients[name] * masks[name] if name in masks else gradients[name]
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-10)
    if stage == "prune":
        assert bench.masking is not None
        weights = dict(bench.before.named_parameters())
        for site, scores in zip(bench.masking.sites, bench.masking.scores, strict=True):
            name = site.parameters[0]
            expected = gradients[name] * weights[name] * scores.sign()
            torch.testing.assert_close(scores.grad, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_come_back_bit_for_bit(stage: str) -> None:
    bench = Bench(Natural(), stage=stage, awp=WeightPerturbation(gamma=GAMMA))
    bench.step()
    for name, parameter in bench.network.named_parameters():
        assert torch.equal(parameter, bench.before.get_parameter(name)), name


class Spy(Objective):
    """Cross-entropy on images that it attacks itself; remembers what the step showed it."""

    keeps: bool = False
    fails: bool = False

    def model_post_init(self, context: object, /) -> None:
        object.__setattr__(self, "weights", [])
        object.__setattr__(self, "answers", [])
        object.__setattr__(self, "learnt", [])

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        weights: list[Found] = self.__dict__["weights"]
        weights.append({name: tensor.detach().clone() for name, tensor in view.tensors.items()})
        if self.fails and len(weights) == 2:
            raise ValueError("in the second pass")

        def attack() -> Tensor:
            answers: list[Tensor] = self.__dict__["answers"]
            answers.append(view.frozen(images).detach().clone())
            return view.random_point(images)

        adversarial = view.found(attack) if self.keeps else attack()
        self.__dict__["learnt"].append((adversarial, view.normal(images)))
        return F.cross_entropy(view.learning(adversarial), labels)


@pytest.mark.parametrize("stage", STAGES)
def test_each_layer_is_moved_by_gamma_times_its_own_length_and_no_removed_weight(stage: str) -> None:
    spy = Spy()
    bench = Bench(spy, stage=stage, awp=WeightPerturbation(gamma=GAMMA))
    bench.step()
    first, second = spy.__dict__["weights"]
    for name, weight in first.items():
        move = second[name] - weight
        if weight.ndim == 1:
            assert not bool(move.any())
            continue
        assert move.norm().item() == pytest.approx(GAMMA * weight.norm().item(), rel=1e-9)
        assert not bool(move[weight == 0].any())
        assert bool((weight == 0).any()) == (stage != "pretrain")


@pytest.mark.parametrize("keeps", [False, True])
def test_the_attack_never_sees_the_perturbed_weights(keeps: bool) -> None:
    spy = Spy(keeps=keeps)
    bench = Bench(spy, stage="finetune", awp=WeightPerturbation(gamma=GAMMA), micro_batches=2)
    bench.step()
    answers: list[Tensor] = spy.__dict__["answers"]
    # Two parts; kept findings are asked for once a part, others once a part and pass.
    assert len(answers) == (2 if keeps else 4)
    network = copy.deepcopy(bench.before).eval()
    expected = functional_call(network, bench.effective(), (bench.images,))
    assert isinstance(expected, Tensor)
    for answer in answers[::2]:  # the second part's statistics have been moved by the first
        torch.testing.assert_close(answer, expected[:4].detach())


@pytest.mark.parametrize("keeps", [False, True])
def test_both_passes_learn_from_the_same_images_and_random_numbers(keeps: bool) -> None:
    spy = Spy(keeps=keeps)
    Bench(spy, awp=WeightPerturbation(gamma=GAMMA)).step()
    first, second = spy.__dict__["learnt"]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_batch_statistics_move_in_the_second_pass_alone() -> None:
    bench = Bench(Natural(), awp=WeightPerturbation(gamma=GAMMA))
    worst = bench.perturbed(GAMMA)
    bench.step()
    network = copy.deepcopy(bench.before).train()
    functional_call(network, worst, (bench.images,))
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(bench.network.get_buffer(name), buffer, msg=name)
    assert int(bench.network.get_buffer("first.1.num_batches_tracked")) == 1


def test_a_failure_in_between_leaves_the_weights_as_they_were() -> None:
    bench = Bench(Spy(fails=True), awp=WeightPerturbation(gamma=GAMMA))
    with pytest.raises(ValueError, match="in the second pass"):
        bench.step()
    for name, parameter in bench.network.named_parameters():
        assert torch.equal(parameter, bench.before.get_parameter(name)), name


@pytest.mark.parametrize("kind", ["pgd", "trades", "mart", "fgsm_rs", "smoothing"])
def test_a_perturbation_of_zero_changes_nothing(kind: str) -> None:
    values = [Bench(Objective.find(kind), awp=awp).step() for awp in (None, WeightPerturbation(gamma=0))]
    assert values[0] == values[1]


@pytest.mark.parametrize("kind", ["pgd", "trades", "mart", "fgsm_rs", "smoothing"])
def test_micro_batches_do_not_change_what_is_perturbed(kind: str) -> None:
    found: list[Tensor] = []
    for parts in (1, 2):
        torch.manual_seed(0)
        bench = Bench(Objective.find(kind), awp=WeightPerturbation(gamma=GAMMA), micro_batches=parts)
        for module in bench.stepper.networks.learner.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # would see each part by itself
        bench.step()
        found.append(torch.cat([p.grad.flatten() for p in bench.learnt if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_perturbation_begins_after_the_warmup() -> None:
    awp = WeightPerturbation(gamma=GAMMA, warmup=0.5)

    def moments() -> Iterator[bool]:
        for step in range(4):
            yield awp.is_due(Moment(epoch=0, epochs=1, step=step, steps=4))

    assert list(moments()) == [False, False, True, True]
    early = Bench(Natural(), awp=awp).step()
    assert early == Bench(Natural()).step()
    late = Bench(Natural(), awp=awp, moment=Moment(epoch=0, epochs=1, step=2, steps=4)).step()
    assert late > early


def test_a_carried_perturbation_moves_once_a_step() -> None:
    bench = Bench(Free(alpha=0.25), awp=WeightPerturbation(gamma=GAMMA))
    bench.step()
    assert bench.stepper.state()["perturbation"].abs().max().item() == pytest.approx(0.025)
