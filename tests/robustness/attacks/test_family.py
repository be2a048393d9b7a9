"""What every attack promises; a new file in the family is tested here by being there."""

import random

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from robustcompress import families
from robustcompress.errors import ModelError
from robustcompress.robustness.attacks import Attack, Logits, TargetedAttack
from robustcompress.robustness.attacks.autoattack import AutoAttack
from robustcompress.robustness.threat import Norm, Threat

Trained = tuple[nn.Module, Tensor, Tensor]
THREATS = (Threat(norm="linf", eps=0.15), Threat(norm="l2", eps=0.6))
BLACK_BOX = ("square",)
# Nothing is random in the first, nor in a first attempt of the others, which starts at the image.
WITHOUT_CHANCE = ("fgsm", "fab", "fab_t")
# What is promised does not depend on the budget.
SHORT: dict[str, dict[str, int]] = {
    "apgd": {"steps": 20},
    "apgd_t": {"steps": 20},
    "fab": {"steps": 10, "restarts": 2},
    "fab_t": {"steps": 10},
    "square": {"queries": 200},
}

pytestmark = pytest.mark.parametrize("kind", families.kinds(Attack.family))


def _attack(kind: str) -> Attack:
    return Attack.find({"kind": kind, **SHORT.get(kind, {})})


@pytest.fixture(autouse=True)
def short_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give AutoAttack, whose budgets are fixed, members with short ones."""
    real = AutoAttack.members

    def short(self: AutoAttack, classes: int) -> tuple[Attack, ...]:
        return tuple(member.model_copy(update=SHORT[member.kind]) for member in real(self, classes))

    monkeypatch.setattr(AutoAttack, "members", short)


def _run(
    attack: Attack, trained: tuple[Logits, Tensor, Tensor], threat: Threat, *, seed: int = 5, count: int = 40
) -> Tensor:
    network, images, labels = trained
    generator = torch.Generator().manual_seed(seed)
    return attack.run(network, images[:count], labels[:count], threat=threat, generator=generator)


def test_settings_survive_yaml(kind: str) -> None:
    attack = Attack.find(kind)
    text = yaml.safe_dump(attack.model_dump())
    assert Attack.find(yaml.safe_load(text)) == attack


def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Attack.find({"kind": kind, "stepz": 3})


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_what_comes_back_lies_in_the_threat_and_fools_some(
    kind: str, threat: Threat, trained: Trained
) -> None:
    network, images, labels = trained
    adversarial = _run(_attack(kind), trained, threat)
    assert adversarial.shape == images[:40].shape
    assert bool(threat.contains(adversarial, images[:40]).all())
    fooled = network(adversarial).argmax(1) != labels[:40]
    assert int(fooled.sum()) > int((network(images[:40]).argmax(1) != labels[:40]).sum())


def test_images_that_are_wrong_already_come_back_as_they_are(kind: str, trained: Trained) -> None:
    network, images, _ = trained
    others = (network(images).argmax(1) + 1) % 4
    adversarial = _run(_attack(kind), (network, images, others), THREATS[0])
    assert torch.equal(adversarial, images[:40])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_radius_nothing_moves(kind: str, norm: Norm, trained: Trained) -> None:
    adversarial = _run(_attack(kind), trained, Threat(norm=norm, eps=0))
    assert torch.equal(adversarial, trained[1][:40])


def test_the_seed_decides_and_nothing_global_does(kind: str, trained: Trained) -> None:
    attack = _attack(kind)
    torch.manual_seed(1)
    states = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        random.getstate(),
    )
    first = _run(attack, trained, THREATS[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[1]
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    assert torch.equal(_run(attack, trained, THREATS[0]), first)
    if kind not in WITHOUT_CHANCE:
        assert not torch.equal(_run(attack, trained, THREATS[0], seed=6), first)


def test_network_images_and_labels_stay_as_they_are(kind: str, trained: Trained) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    network.train()
    network[2].eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images, labels = trained[1][:8].clone(), trained[2][:8].clone()
    _attack(kind).run(network, images, labels, threat=THREATS[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, trained[1][:8])
    assert torch.equal(labels, trained[2][:8])
    assert not images.requires_grad
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert [module.training for module in network.modules()] == [True, True, True, False, True, True]


def test_the_attack_prints_itself_and_tells_plain_settings(kind: str) -> None:
    attack = _attack(kind)
    assert str(attack)
    told = attack.settings(THREATS[0])
    assert told["kind"] == kind
    assert all(value is None or isinstance(value, str | int | float | bool) for value in told.values())


@pytest.mark.parametrize(
    ("shape", "classes", "dtype"),
    [
        ((12,), 2, torch.float32),
        ((3, 4), 3, torch.float64),
        ((3, 2, 2), 4, torch.float32),
        ((1, 3, 2, 2), 3, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "threat",
    [
        Threat(norm="linf", eps=0.5, lower=-2, upper=3),
        Threat(norm="l2", eps=1.2, lower=-2, upper=3),
    ],
    ids=str,
)
def test_any_shape_class_count_precision_and_pixel_range_will_do(
    kind: str, shape: tuple[int, ...], classes: int, dtype: torch.dtype, threat: Threat
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, 12, generator=generator, dtype=dtype)
    images = 5 * torch.rand(8, *shape, generator=generator, dtype=dtype) - 2
    images[0].flatten()[:2] = torch.tensor([-2, 3], dtype=dtype)  # at the ends of the range

    def logits_of(points: Tensor) -> Tensor:
        return points.flatten(1) @ weight.T

    labels = logits_of(images).argmax(1)
    found = _attack(kind).run(logits_of, images, labels, threat=threat, generator=generator)
    assert found.shape == images.shape
    assert found.dtype == dtype
    assert bool(threat.contains(found, images).all())
    assert int((logits_of(found).argmax(1) != labels).sum()) >= 1


def test_who_needs_gradients_refuses_to_go_without_and_who_does_not_needs_none(
    kind: str, trained: Trained
) -> None:
    network, images, labels = trained
    attack = _attack(kind)
    assert attack.needs_gradient == (kind not in BLACK_BOX)

    def without(points: Tensor) -> Tensor:
        assert not points.requires_grad or attack.needs_gradient
        logits: Tensor = network(points.detach())
        return logits

    if attack.needs_gradient:
        with pytest.raises(ModelError, match="through differentiable operations"):
            _run(attack, (without, images, labels), THREATS[0])
    else:
        found = _run(attack, (without, images, labels), THREATS[0])
        assert bool((network(found).argmax(1) != labels[:40]).any())


def test_bounds_that_exclude_nothing_change_nothing_and_what_they_prove_is_left_alone(
    kind: str, trained: Trained
) -> None:
    attack = _attack(kind)
    if not isinstance(attack, TargetedAttack):
        return
    network, images, labels = (trained[0], trained[1][:40], trained[2][:40])
    found = []
    for proven in (False, True):
        reachable = torch.full((40, 4), not proven)
        generator = torch.Generator().manual_seed(5)
        found.append(
            attack.run(network, images, labels, threat=THREATS[0], generator=generator, reachable=reachable)
        )
    assert torch.equal(found[0], _run(attack, trained, THREATS[0]))
    assert torch.equal(found[1], images)
