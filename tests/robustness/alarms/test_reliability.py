import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError, DataError, ModelError
from robustcompress.robustness.alarms import kinds
from robustcompress.robustness.alarms.reliability import Reliability, check_reliability
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat
from tests.robustness.alarms.masked import Masked, rounded

Trained = tuple[nn.Module, Tensor, Tensor]
Batches = list[tuple[Tensor, Tensor]]
THREAT = Threat(eps=0.08)


def _batches(trained: Trained, size: int = 150) -> Batches:
    return list(zip(trained[1].split(size), trained[2].split(size), strict=True))


def _check(network: nn.Module | Target, batches: Batches, **settings: object) -> Reliability:
    given: dict[str, object] = {"threat": THREAT, "seed": 0, "device": "cpu", **settings}
    return check_reliability(network, batches, **given)  # type: ignore[arg-type]  # tests pass what they vary


def test_a_network_that_hides_nothing_sets_no_alarm_off(trained: Trained) -> None:
    found = _check(trained[0], _batches(trained))
    assert found.status == "no alarm"
    assert (found.images, found.fired) == (200, ())
    assert found.right > 150
    assert {check.verdict for check in found.checks} == {"quiet"}
    assert [check.name for check in found.checks] == [
        kind.name for kind in kinds.ALL if kind.name != "headline"
    ]
    assert sum(check.alpha for check in found.checks) == pytest.approx(0.01)


def test_numbers_say_how_many_each_attack_left_standing(trained: Trained) -> None:
    numbers = _check(trained[0], _batches(trained)).numbers
    standing = {name.removeprefix("standing, "): n for name, n in numbers.items() if "standing" in name}
    assert standing["PGD-20x1 within half the radius"] > standing["PGD-20x1"]
    assert standing["PGD-20x1"] > standing["PGD-20x1 within twice the radius"]
    assert standing["PGD-20x1 within the whole range"] == 0
    assert standing["PGD-100x1"] <= standing["PGD-20x1"] <= standing["Square with 500 queries"]
    assert numbers["zero gradient of the margin"] == 0


def test_one_alarm_makes_the_evaluation_unreliable_and_says_what_to_do(trained: Trained) -> None:
    found = _check(Masked(trained[0], factor=1e4), _batches(trained))
    assert found.status == "unreliable"
    assert "blind_cross_entropy" in [check.name for check in found.fired]
    text = str(found)
    assert text.startswith("unreliable: 11 checks on ")
    assert "The logits are saturated: attack with margin or DLR losses" in text


def test_few_images_leave_the_answer_open(trained: Trained) -> None:
    found = _check(trained[0], _batches(trained), limit=15)
    assert found.status == "undecided"
    assert "too few images to tell" in str(found)
    assert _check(Masked(trained[0], rounded(3)), _batches(trained), limit=15).status == "unreliable"


def test_a_network_that_is_always_wrong_leaves_the_answer_open(trained: Trained) -> None:
    _, images, labels = trained
    wrong = [(images, (trained[0](images).argmax(1) + 1) % 4)]
    found = _check(trained[0], wrong)
    assert (found.right, found.status) == (0, "undecided")
    assert len(labels) == 300


def test_a_constant_answer_is_right_about_one_class_and_no_alarm(trained: Trained) -> None:
    _, images, labels = trained

    class Constant(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return 0 * pixels.flatten(1)[:, :4] + torch.tensor([0.0, 1, 0, 0])

    found = _check(Constant(), [(images, labels)])
    assert not found.fired
    assert found.check("whole_range").verdict == "quiet"
    assert found.check("whole_range").tolerance == 0.25
    alone = _check(Constant(), [(images[labels == 1], labels[labels == 1])])
    assert not alone.fired
    assert "100% of the images are of one class" in str(alone)


def test_a_twin_shows_the_gradients_and_the_predictor_is_judged(trained: Trained) -> None:
    network = trained[0]
    twin = Target(lambda pixels: network(pixels.detach()).detach(), twin=network)
    assert _check(twin, _batches(trained)).status == "no alarm"
    blind = _check(Target(network, twin=Masked(network, rounded(255))), _batches(trained))
    assert blind.check("blind_gradient").fired


def test_without_a_twin_the_checks_of_gradients_are_open_and_the_others_made(trained: Trained) -> None:
    network, images, labels = trained
    found = _check(Target(network, reason="Foo is an operation that nothing is known of"), _batches(trained))
    assert found.status == "undecided"
    for check in found.checks:
        open_ = check.name not in ("random", "batch", "headline")
        assert (check.verdict == "undecided") == open_
        assert check.reason.endswith("Foo is an operation that nothing is known of" if open_ else "")
    torch.manual_seed(0)
    noisy = _check(Target(lambda x: network(x + 0.1 * torch.randn_like(x))), [(images, labels)])
    assert [check.name for check in noisy.fired] == ["random"]


def test_images_that_withstood_the_evaluation_and_not_the_checks_make_it_unreliable(trained: Trained) -> None:
    clean = trained[0](trained[1]).argmax(1) == trained[2]
    outcomes = [("clean", clean), ("PGD-1x1", clean)]  # an attack that broke nothing
    found = _check(trained[0], _batches(trained), outcomes=outcomes, threat=Threat(eps=0.15))
    assert [check.name for check in found.fired] == ["headline"]
    assert found.check("headline").hits > 20
    broken = [("clean", clean), ("everything", torch.zeros_like(clean))]
    assert _check(trained[0], _batches(trained), outcomes=broken).status == "no alarm"


def test_outcomes_of_fewer_images_are_refused(trained: Trained) -> None:
    outcomes = [("clean", torch.ones(199, dtype=torch.bool))]
    with pytest.raises(
        DataError, match="the outcomes of clean are about 199 images, and the batches hold more"
    ):
        _check(trained[0], _batches(trained), outcomes=outcomes)


def test_the_seed_decides_and_nothing_global_does(trained: Trained) -> None:
    states = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        random.getstate(),
    )
    first = _check(trained[0], _batches(trained), limit=60)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[1]
    assert random.getstate() == states[2]
    torch.manual_seed(99)
    assert _check(trained[0], _batches(trained), limit=60) == first


def test_the_network_comes_back_as_it_was() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 3)
    )
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(30, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = _check(network, [(images, torch.arange(30) % 3)])
    assert found.check("random").hits == found.check("batch").hits == 0
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_progress_is_told_per_batch(trained: Trained) -> None:
    told: list[tuple[str, int, int]] = []
    _check(
        trained[0],
        _batches(trained, 20),
        limit=40,
        progress=lambda task, done, total: told.append((task, done, total)),
    )
    assert told == [("alarms", 1, 2), ("alarms", 2, 2)]


def test_reliability_is_the_same_after_json(trained: Trained) -> None:
    found = _check(trained[0], _batches(trained), limit=20)
    assert Reliability.model_validate_json(found.model_dump_json()) == found


def test_an_alarm_of_another_name_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="no alarm is called 'smoke'; there are \\['blind_gradient'"):
        _check(trained[0], _batches(trained), limit=1).check("smoke")


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_a_probability_that_is_none_is_refused(trained: Trained, alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha must be in \(0, 0.5\)"):
        _check(trained[0], _batches(trained), alpha=alpha)


def test_a_network_without_gradients_is_refused(trained: Trained) -> None:
    class Cut(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = trained[0](images)
            return logits.detach()

    with pytest.raises(ModelError, match="a gradient attack needs logits that depend on the images"):
        _check(Cut(), _batches(trained))
