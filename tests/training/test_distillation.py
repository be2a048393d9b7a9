"""Objectives that learn from a teacher: by hand, within a step, within a stage."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from robustcompress.data import ImageSet
from robustcompress.errors import ConfigError, InterruptedRunError
from robustcompress.events import Events
from robustcompress.pruning.budgets import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.scores import Learned
from robustcompress.robustness.threat import Threat
from robustcompress.training.distillation import Teacher, divergence
from robustcompress.training.loop import Training
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.objectives.ard import Ard
from robustcompress.training.objectives.rslad import Rslad
from robustcompress.training.settings import StageSettings, StepSettings, ValidationSettings
from robustcompress.training.sources import as_source
from robustcompress.training.step import Stepper
from tests.training.test_loop import data
from tests.training.test_objectives import Linear, Watched

Array = npt.NDArray[np.float64]
THREAT = Threat(norm="linf", eps=0.1)
MOMENT = Moment(epoch=0, epochs=1, step=0, steps=4)
KINDS = ("ard", "rslad")


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    weights: Array = powers / powers.sum(1, keepdims=True)
    return weights


def _kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum(1).mean())


class Taught:
    """A linear network, a linear teacher and a batch, as tensors and as arrays."""

    def __init__(self, classes: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.network, self.teacher = Linear(classes), Linear(classes)
        with torch.no_grad():
            self.teacher.weight.normal_(generator=generator)
        self.images = torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64)
        self.labels = torch.tensor([0, 1, 1, 0, 1])
        watched = Watched(self.network, threat=THREAT, seed=7)
        self.view = dataclasses.replace(watched.view, teacher=self.teacher)
        self.x, self.y = self.images.numpy().reshape(5, 6), self.labels.numpy()
        self.w, self.t = (m.weight.detach().numpy() for m in (self.network, self.teacher))


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 30.0), (0.7, 4.0), (0.0, 2.0)])
def test_ard_equals_the_computation_by_hand(alpha: float, temperature: float) -> None:
    one = Taught(2)
    loss = Ard(alpha=alpha, temperature=temperature, steps=4).loss(one.view, one.images, one.labels)
    # Of two classes and a linear network the worst image is known.
    worst = np.clip(one.x - 0.1 * np.sign(one.w[one.y] - one.w[1 - one.y]), 0, 1)
    apart = _kl(_softmax(one.x @ one.t.T / temperature), _softmax(worst @ one.w.T / temperature))
    natural = -np.log(_softmax(one.x @ one.w.T)[np.arange(5), one.y]).mean()
    expected = alpha * temperature**2 * apart + (1 - alpha) * natural
    assert apart > 1e-4
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
def test_rslad_equals_the_computation_by_hand(steps: int) -> None:
    one = Taught(3)
    objective = Rslad(adversarial_weight=0.9, clean_weight=0.4, steps=steps, step_size=0.04, start_noise=0.01)
    loss = objective.loss(one.view, one.images, one.labels)
    noise = torch.randn(one.images.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    p = _softmax(one.x @ one.t.T)
    a = np.clip(one.x + 0.01 * noise.numpy().reshape(5, 6), 0, 1)
    for _ in range(steps):
        gradient = (_softmax(a @ one.w.T) - p) @ one.w  # of KL(p || softmax(w a)) by a
        a = np.clip(np.clip(a + 0.04 * np.sign(gradient), one.x - 0.1, one.x + 0.1), 0, 1)
    expected = 0.9 * _kl(p, _softmax(a @ one.w.T)) + 0.4 * _kl(p, _softmax(one.x @ one.w.T))
    assert expected > 1e-2
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_weights_of_rslad_are_those_of_the_paper_and_may_be_fractions() -> None:
    assert (Rslad().adversarial_weight, Rslad().clean_weight) == (5 / 6, 1 / 6)
    assert Objective.find({"kind": "rslad", "adversarial_weight": "5/6"}) == Rslad()


def test_a_high_temperature_compares_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    target, logits = (torch.randn(20, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    apart = (logits - target) - (logits - target).mean(1, keepdim=True)
    expected = apart.square().sum(1).mean() / (2 * 4)  # Hinton et al. 2015, section 2.1
    found = 1e6 * divergence(target, logits, temperature=1000)
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)


def test_a_network_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    one = Taught(3)
    with torch.no_grad():
        one.teacher.weight.copy_(one.network.weight)
    still = dataclasses.replace(one.view, threat=Threat(eps=0))
    for objective in (Ard(), Rslad()):
        loss = objective.loss(still, one.images, one.labels)
        loss.backward()
        assert abs(loss.item()) < 1e-12
        assert one.network.weight.grad is not None
        assert float(one.network.weight.grad.abs().max()) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_teacher_the_objective_says_what_to_do(kind: str) -> None:
    one = Taught(3)
    alone = dataclasses.replace(one.view, teacher=None)
    with pytest.raises(ConfigError, match=r"learns from a teacher, and none was given\. Name the artifact"):
        Objective.find(kind).loss(alone, one.images, one.labels)


def test_only_these_objectives_need_a_teacher() -> None:
    assert all(Objective.find(kind).needs_teacher for kind in KINDS)
    assert not any(Objective.find(kind).needs_teacher for kind in ("natural", "pgd", "trades"))


# --- Within a step ---


def _network(*, norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(6 * 64, 4),
    )


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


class Step:
    """A masked network and its teacher, one step of which can be run."""

    def __init__(self, kind: str, *, prune: bool = False, norm: bool = True, **settings: Any) -> None:
        torch.manual_seed(0)
        self.network = _network(norm=norm).double()
        self.network.get_submodule("3").requires_grad_(False)
        teacher = _network(norm=norm).double().train()  # the step itself has to put it in eval mode
        self.teacher = Teacher(teacher, "a" * 64)
        self.images, self.labels = torch.rand(9, 2, 8, 8, dtype=torch.float64), torch.randint(4, (9,))
        self.masking = Masking(
            Pattern.find("unstructured").plan(self.network, self.images, ()).sites,
            score=Learned(),
            budget=Uniform(),
            sparsity=0.5,
            parameters=dict(self.network.named_parameters()),
        )
        if prune:
            self.network.requires_grad_(False)
        else:
            self.masking.freeze()
        learnt = [*self.masking.learnable(), *(p for p in self.network.parameters() if p.requires_grad)]
        if not norm:
            self.network.get_submodule("3").__dict__["p"] = 0.0  # parts of a batch draw other masks
        self.stepper = Stepper(
            self.network,
            self.masking,
            objective=Objective.find({"kind": kind, "steps": 2}),
            threat=THREAT,
            optimizer=torch.optim.SGD(learnt, lr=0.1),
            device=torch.device("cpu"),
            precision="fp32",
            clip_gradient=None,
            seed=7,
            settings=StepSettings(**settings),
            teacher=self.teacher,
        )

    def run(self) -> float:
        return self.stepper.step(self.images, self.labels, MOMENT)

    def gradients(self) -> dict[str, Tensor]:
        named = {
            **dict(self.network.named_parameters()),
            **{f"s{i}": s for i, s in enumerate(self.masking.scores)},
        }
        return {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}


@pytest.mark.parametrize("prune", [True, False], ids=["scores", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_scores_and_kept_weights_and_never_the_teacher(kind: str, prune: bool) -> None:
    step = Step(kind, prune=prune)
    before = _state(step.teacher.network)
    assert step.run() > 0
    found = step.gradients()
    if prune:
        assert set(found) == {"s0", "s1"}
        assert all(float(gradient.abs().sum()) > 0 for gradient in found.values())
    else:
        assert {"0.weight", "1.weight", "5.weight", "5.bias"} <= set(found)
        for site, mask in zip(step.masking.sites, step.masking.masks, strict=True):
            gradient = found[site.parameters[0]]
            assert float(gradient[~mask].abs().max()) == 0
            assert float(gradient[mask].abs().sum()) > 0
    after = _state(step.teacher.network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in step.teacher.network.parameters())
    assert step.teacher.network.training  # the caller's network is left as it is


@pytest.mark.parametrize("settings", [{}, {"memory_format": "channels_last"}, {"micro_batches": 2}], ids=str)
def test_the_teacher_answers_in_eval_mode_with_its_own_statistics(settings: dict[str, Any]) -> None:
    step = Step("rslad", **settings)
    expected = copy.deepcopy(step.teacher.network).eval()(step.images)
    asked: list[Tensor] = []
    answers: list[Tensor] = []

    class Spy(Rslad):
        def loss(self, view: Any, images: Tensor, labels: Tensor) -> Tensor:
            asked.append(images)
            answers.append(view.teacher_logits(images.clone().requires_grad_()))
            return super().loss(view, images, labels)

    step.stepper._objective = Spy(steps=1)
    step.run()
    assert not any(answer.requires_grad for answer in answers)
    assert torch.equal(torch.cat(asked), step.images)
    torch.testing.assert_close(torch.cat(answers), expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_whole_batchs_gradient(kind: str, parts: int) -> None:
    whole, cut = Step(kind, norm=False), Step(kind, norm=False, micro_batches=parts)
    assert cut.run() == pytest.approx(whole.run(), rel=1e-9)
    for name, gradient in whole.gradients().items():
        torch.testing.assert_close(cut.gradients()[name], gradient, rtol=1e-7, atol=1e-9)


def test_the_teacher_computes_in_the_precision_of_the_network() -> None:
    step = Step("ard")
    seen: list[torch.dtype] = []
    teacher = step.stepper._teacher
    assert teacher is not None
    teacher.get_submodule("5").register_forward_hook(lambda m, inputs, output: seen.append(output.dtype))
    step.stepper._precision = "bf16"
    for module in (step.stepper.networks.learner, step.stepper.networks.attacked, teacher):
        module.float()
    step.images = step.images.float()
    loss = step.run()
    assert seen == [torch.bfloat16]
    assert np.isfinite(loss)


# --- Within a stage ---


def _train(teacher: nn.Module, identity: str = "a" * 64, **changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = _student()
    training, held_out = as_source(data(), batch_size=16, seed=5).split(0.2, seed=0)
    trained = Training(
        stage="finetune",
        model=network,
        overrides=None,
        source=training,
        validation=list(held_out.in_order()),
        objective=Objective.find({"kind": changes.pop("kind", "ard"), "steps": 2}),
        threat=THREAT,
        validation_threat=THREAT,
        settings=StageSettings(epochs=2, lr=0.05, batch_size=16),
        judging=ValidationSettings.model_validate({"attack": {"kind": "pgd", "steps": 2}}),
        seed=7,
        device=torch.device("cpu"),
        precision="fp32",
        events=Events(),
        teacher=Teacher(teacher, identity),
        **changes,
    ).run()
    assert trained.teacher == identity
    return _state(network)


def _student() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def _stopper(at: int) -> Callable[[], bool]:
    done = 0

    def stop() -> bool:
        nonlocal done
        done += 1
        return done == at

    return stop


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_broken_off_ends_with_the_same_weights_and_only_with_the_same_teacher(
    kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    teacher = _student()
    unbroken = _train(teacher, kind=kind)
    with pytest.raises(InterruptedRunError):
        _train(teacher, kind=kind, checkpoint=tmp_path / "state", stop=_stopper(4))
    with pytest.raises(ConfigError, match="begun with the teacher aaaaaaaaaaaa; this one is bbbbbbbbbbbb"):
        _train(teacher, "b" * 64, kind=kind, checkpoint=tmp_path / "state")
    resumed = _train(teacher, kind=kind, checkpoint=tmp_path / "state")
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_the_network_comes_to_answer_as_its_teacher() -> None:
    """Labels are shuffled, so that what is learnt can only come from the teacher."""
    torch.manual_seed(1)
    images = data()
    teacher = _student()
    wrong = ImageSet(images.images, images.labels.roll(1), images.classes, "wrong")
    pixels = images.images.float() / 255
    optimizer = torch.optim.Adam(teacher.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(pixels), images.labels).backward()
        optimizer.step()
    answers = teacher.eval()(pixels).argmax(1)
    assert torch.equal(answers, images.labels)
    torch.manual_seed(0)
    network = _student()
    Training(
        stage="finetune",
        model=network,
        overrides=None,
        source=as_source(wrong, batch_size=16, seed=5),
        validation=list(as_source(images, batch_size=16, seed=5).in_order()),
        objective=Rslad(steps=1),
        threat=Threat(eps=0.01),
        validation_threat=Threat(eps=0.01),
        settings=StageSettings(epochs=60, lr=0.5, batch_size=16, select="last"),
        judging=ValidationSettings.model_validate({"attack": {"kind": "pgd", "steps": 1}}),
        seed=7,
        device=torch.device("cpu"),
        precision="fp32",
        events=Events(),
        teacher=Teacher(teacher, "a" * 64),
    ).run()
    assert float((network.eval()(pixels).argmax(1) == answers).float().mean()) > 0.95
