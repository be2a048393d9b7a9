"""What every attack promises; a new file in the family is tested here by being there."""

import random

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from robustcompress import families
from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.threat import Norm, Threat

Trained = tuple[nn.Module, Tensor, Tensor]
THREATS = (Threat(norm="linf", eps=0.15), Threat(norm="l2", eps=0.6))

pytestmark = pytest.mark.parametrize("kind", families.kinds(Attack.family))


def _run(attack: Attack, trained: Trained, threat: Threat, *, seed: int = 5, count: int = 40) -> Tensor:
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
    adversarial = _run(Attack.find(kind), trained, threat)
    assert adversarial.shape == images[:40].shape
    assert bool(threat.contains(adversarial, images[:40]).all())
    fooled = network(adversarial).argmax(1) != labels[:40]
    assert int(fooled.sum()) > int((network(images[:40]).argmax(1) != labels[:40]).sum())


def test_images_that_are_wrong_already_come_back_as_they_are(kind: str, trained: Trained) -> None:
    network, images, _ = trained
    others = (network(images).argmax(1) + 1) % 4
    adversarial = _run(Attack.find(kind), (network, images, others), THREATS[0])
    assert torch.equal(adversarial, images[:40])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_radius_nothing_moves(kind: str, norm: Norm, trained: Trained) -> None:
    adversarial = _run(Attack.find(kind), trained, Threat(norm=norm, eps=0))
    assert torch.equal(adversarial, trained[1][:40])


def test_the_seed_decides_and_nothing_global_does(kind: str, trained: Trained) -> None:
    attack = Attack.find(kind)
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
    assert not torch.equal(_run(attack, trained, THREATS[0], seed=6), first)


def test_network_images_and_labels_stay_as_they_are(kind: str, trained: Trained) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    network.train()
    network[2].eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images, labels = trained[1][:8].clone(), trained[2][:8].clone()
    Attack.find(kind).run(
        network, images, labels, threat=THREATS[0], generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(images, trained[1][:8])
    assert torch.equal(labels, trained[2][:8])
    assert not images.requires_grad
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert [module.training for module in network.modules()] == [True, True, True, False, True, True]


def test_the_attack_prints_itself_and_tells_plain_settings(kind: str) -> None:
    attack = Attack.find(kind)
    assert str(attack)
    told = attack.settings(THREATS[0])
    assert told["kind"] == kind
    assert all(value is None or isinstance(value, str | int | float | bool) for value in told.values())
