import random
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError, DataError, ModelError
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.attacks.apgd import Apgd
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.curve import eps_curve
from robustcompress.robustness.evaluation import Evaluation, evaluate, robust_accuracy
from robustcompress.robustness.predictor import as_predictor
from robustcompress.robustness.threat import Threat

Trained = tuple[nn.Module, Tensor, Tensor]
Batches = list[tuple[Tensor, Tensor]]
Function = Callable[[Tensor], Tensor]


class Shift(Attack):
    """Adds ``by`` to every pixel, whatever the threat: an attack whose outcome is known."""

    by: float

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        del logits_of, labels, threat, generator
        return images + self.by

    def __str__(self) -> str:
        return f"Shift{self.by:+g}"


class Crop(Shift):
    """Loses an image."""

    by: float = 0

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
    ) -> Tensor:
        return images[1:]


class Above(nn.Module):
    """Class 1 where the pixel is above ``level``, else class 0."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, images: Tensor) -> Tensor:
        pixel = images.flatten(1)
        return torch.cat([torch.full_like(pixel, self.level), pixel], 1)


def _pixels(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


# Level 0.5 and shifts of 0.1: pixels 0.41 to 0.59 change sides, each under one of the two shifts.
PIXELS = _pixels(0.2, 0.45, 0.55, 0.8, 0.3, 0.47, 0.9)
LABELS = torch.tensor([0, 0, 1, 1, 1, 0, 1])  # the fifth is wrong already
BATCHES: Batches = list(zip(PIXELS.split(3), LABELS.split(3), strict=True))
SHIFTS = [Shift(by=0.1), Shift(by=-0.1)]
THREAT = Threat(eps=0.1)


def _evaluate(network: nn.Module, batches: Batches = BATCHES, **settings: object) -> Evaluation:
    given: dict[str, object] = {"threat": THREAT, "attacks": SHIFTS, "seed": 0, "device": "cpu", **settings}
    return evaluate(network, batches, **given)  # type: ignore[arg-type]  # tests pass what they vary


def _correct(evaluation: Evaluation) -> dict[tuple[str, str], int]:
    return {(m.subject, m.attack): m.correct for m in evaluation.measurements}


def test_accuracies_are_those_counted_by_hand() -> None:
    assert _correct(_evaluate(Above(0.5))) == {
        ("network", "clean"): 6,
        ("network", "Shift+0.1"): 4,  # 0.45 and 0.47 cross the level
        ("network", "Shift-0.1"): 5,  # 0.55 crosses it
        ("network", "8-bit pixels"): 3,
        ("network", "worst case"): 3,
    }


def test_an_image_that_is_wrong_clean_is_not_right_under_an_attack_that_mends_it() -> None:
    evaluation = _evaluate(Above(0.35), attacks=[Shift(by=0.1)], batches=[(_pixels(0.3), torch.tensor([1]))])
    assert [m.correct for m in evaluation.measurements] == [0, 0, 0, 0]


def test_files_are_judged_on_the_networks_own_adversarial_images() -> None:
    seen: list[Tensor] = []

    def file(images: Tensor) -> Tensor:
        seen.append(images)
        logits: Tensor = Above(0.4)(images)
        return logits

    evaluation = _evaluate(Above(0.5), files={"model.onnx": file}, subject="pruned")
    counts = _correct(evaluation)
    assert counts[("pruned", "worst case")] == 3
    # At level 0.4: 0.45 and 0.47 are wrong clean; nothing else is within 0.1 of it on its wrong side.
    assert counts[("model.onnx", "clean")] == 4
    assert counts[("model.onnx", "Shift+0.1")] == 4
    assert counts[("model.onnx", "Shift-0.1")] == 4
    assert counts[("model.onnx", "worst case")] == 4
    # Of each batch: the clean images, then those of each attack, as they are and in 8 bits.
    torch.testing.assert_close(torch.cat(seen[::5]), PIXELS)
    torch.testing.assert_close(torch.cat(seen[1::5]), PIXELS + 0.1)


def test_measurements_say_how_they_were_made() -> None:
    evaluation = _evaluate(Above(0.5), files={"f": Above(0.5)}, attacks=[Pgd(steps=5)], seed=11)
    rows = [(m.subject, m.attack, m.access, m.norm, m.eps) for m in evaluation.measurements]
    assert rows == [
        ("network", "clean", "none", None, None),
        ("network", "PGD-5x1", "white-box", "linf", 0.1),
        ("network", "8-bit pixels", "white-box", "linf", 0.1),
        ("network", "worst case", "white-box", "linf", 0.1),
        ("f", "clean", "none", None, None),
        ("f", "PGD-5x1", "transfer", "linf", 0.1),
        ("f", "8-bit pixels", "transfer", "linf", 0.1),
        ("f", "worst case", "transfer", "linf", 0.1),
    ]
    assert {(m.seed, m.count) for m in evaluation.measurements} == {(11, 7)}
    assert evaluation.measurements[1].settings["step_size"] == pytest.approx(0.05)
    assert evaluation.measurements[2].settings == {"attacks": "PGD-5x1"}
    assert evaluation.measurements[3].settings == {"attacks": "PGD-5x1, 8-bit pixels"}


def test_without_attacks_only_clean_accuracy_is_measured() -> None:
    assert _correct(_evaluate(Above(0.5), attacks=[])) == {("network", "clean"): 6}


def test_worst_case_is_at_most_each_attack_and_each_attack_at_most_clean(trained: Trained) -> None:
    network, images, labels = trained
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    attacks = [Pgd(steps=3), Apgd(steps=5), Pgd(steps=3, loss="margin", random_start=False)]
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    evaluation = _evaluate(network, batches, attacks=attacks, files={"other": other.requires_grad_(False)})
    for subject in ("network", "other"):
        clean, *attacked, worst = [m.correct for m in evaluation.measurements if m.subject == subject]
        assert worst <= min(attacked)
        assert max(attacked) <= clean
        assert worst > 0
    assert {m.count for m in evaluation.measurements} == {300}


def test_an_attacks_number_does_not_depend_on_the_other_attacks(trained: Trained) -> None:
    network, images, labels = trained
    batches = [(images, labels)]
    pgd, apgd = Pgd(steps=2), Apgd(steps=3)
    alone = _correct(_evaluate(network, batches, attacks=[apgd], seed=3))
    beside = _correct(_evaluate(network, batches, attacks=[pgd, apgd], seed=3))
    key = ("network", "APGD-CE-3x1")
    assert alone[key] == beside[key]


def test_every_attack_draws_for_every_batch_from_a_generator_of_its_own() -> None:
    class Listening(Shift):
        heard: ClassVar[list[int]] = []

        def run(
            self,
            logits_of: Logits,
            images: Tensor,
            labels: Tensor,
            *,
            threat: Threat,
            generator: torch.Generator,
        ) -> Tensor:
            self.heard.append(generator.initial_seed())
            return images

    for seed in (0, 1):
        _evaluate(Above(0.5), attacks=[Listening(by=1), Listening(by=2)], seed=seed)
    assert len(Listening.heard) == 2 * 2 * 3
    assert len(set(Listening.heard)) == 2 * 2 * 3


def test_the_seed_decides_and_nothing_global_does(trained: Trained) -> None:
    network, images, labels = trained
    batches = list(zip(images.split(100), labels.split(100), strict=True))
    states = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        random.getstate(),
    )
    first = _evaluate(network, batches, attacks=[Pgd(steps=1)], seed=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[1]
    assert random.getstate() == states[2]
    torch.manual_seed(99)
    assert _evaluate(network, batches, attacks=[Pgd(steps=1)], seed=1).measurements == first.measurements


def test_the_network_is_judged_in_eval_mode_and_comes_back_as_it_was() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2)
    )
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = _evaluate(network, attacks=[Pgd(steps=3), Apgd(steps=3)])
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert _evaluate(network, attacks=[Pgd(steps=3), Apgd(steps=3)]).measurements == first.measurements


def test_examples_show_what_fooled_the_network() -> None:
    evaluation = _evaluate(Above(0.5), files={"file": Above(0.48)})
    assert [e.attack for e in evaluation.examples] == ["Shift+0.1", "Shift-0.1", "Shift+0.1"]
    first = evaluation.examples[0]
    assert float(first.original) == pytest.approx(0.45)
    assert float(first.adversarial) == pytest.approx(0.55)
    assert first.original.shape == (1, 1, 1)
    assert first.label == 0
    assert first.clean_predictions == {"network": 0, "file": 0}
    assert first.attacked_predictions == {"network": 1, "file": 1}
    assert evaluation.examples[1].attacked_predictions == {"network": 0, "file": 0}


def test_examples_are_few_of_each_class_and_no_image_is_shown_twice() -> None:
    batches = [(_pixels(*[0.45] * 20, *[0.55] * 20), torch.tensor([0] * 20 + [1] * 20))]
    attacks = [Shift(by=0.1), Shift(by=0.09), Shift(by=-0.1)]
    examples = _evaluate(Above(0.5), batches, attacks=attacks, keep_examples=8).examples
    assert [e.label for e in examples] == [0, 0, 1, 1]
    assert [e.attack for e in examples] == ["Shift+0.1", "Shift+0.1", "Shift-0.1", "Shift-0.1"]
    assert len(_evaluate(Above(0.5), batches, attacks=attacks, keep_examples=1).examples) == 1
    assert _evaluate(Above(0.5), batches, attacks=attacks, keep_examples=0).examples == ()
    again = _evaluate(Above(0.5), batches, attacks=[Shift(by=0.1), Shift(by=0.09)], keep_examples=100)
    assert {e.attack for e in again.examples} == {"Shift+0.1"}


def test_progress_is_told_per_batch_and_task() -> None:
    told: list[tuple[str, int, int]] = []
    _evaluate(Above(0.5), progress=lambda task, done, total, _: told.append((task, done, total)))
    tasks = ("clean", "Shift+0.1", "Shift-0.1")
    assert told == [(task, done, 3) for done in (1, 2, 3) for task in tasks]


def test_a_limit_judges_the_first_images() -> None:
    evaluation = _evaluate(Above(0.5), limit=4)
    assert {m.count for m in evaluation.measurements} == {4}
    assert _correct(evaluation)[("network", "worst case")] == 2


def test_an_image_outside_the_threat_stops_the_evaluation() -> None:
    with pytest.raises(
        ModelError, match=r"batch 0: Shift\+0.11 returned 3 images outside Linf eps 0.1 \(moved by up to 0.11"
    ):
        _evaluate(Above(0.5), attacks=[Shift(by=0.11)])


def test_an_image_outside_the_pixel_range_stops_the_evaluation() -> None:
    with pytest.raises(ModelError, match=r"batch 2: Shift\+0.2 returned 1 images outside"):
        _evaluate(Above(0.5), attacks=[Shift(by=0.2)], threat=Threat(eps=0.3))


def test_an_attack_that_loses_images_stops_the_evaluation() -> None:
    with pytest.raises(ModelError, match=r"must return images of shape \[3, 1, 1, 1\]; got \[2, 1, 1, 1\]"):
        _evaluate(Above(0.5), attacks=[Crop()])


def test_gradients_that_are_no_numbers_stop_the_evaluation() -> None:
    class Root(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pixel = images.flatten(1)
            return torch.cat([torch.ones_like(pixel), 0 * (pixel - pixel.detach()).sqrt()], 1)

    with pytest.raises(ModelError, match="expected finite gradients of the loss by the images; 7 of 7"):
        _evaluate(Root(), attacks=[Pgd()], batches=[(PIXELS, torch.zeros(7).long())])


def test_logits_that_are_no_numbers_stop_the_evaluation_and_name_subject_and_batch() -> None:
    def file(images: Tensor) -> Tensor:
        logits: Tensor = Above(0.5)(images)
        return torch.where(images.flatten(1) == 0.8, torch.nan, logits)

    with pytest.raises(ModelError, match=r"batch 1 \(file, clean\): expected finite logits; 1 of 3 images"):
        _evaluate(Above(0.5), files={"file": file})


def test_a_pixel_range_that_images_leave_stops_the_evaluation() -> None:
    with pytest.raises(DataError, match=r"batch 2: the threat allows pixels of 0 to 0.85; found 0.9 to 0.9"):
        _evaluate(Above(0.5), threat=Threat(eps=0.1, upper=0.85), attacks=[Pgd()])


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="got none"):
        _evaluate(Above(0.5), batches=[])


def test_a_label_that_names_no_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"batch 0 \(network, clean\): label 2 is out of range"):
        _evaluate(Above(0.5), batches=[(PIXELS, LABELS + 1)])


def test_a_file_with_the_networks_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="a file is called 'network' like the network"):
        _evaluate(Above(0.5), files={"network": Above(0.5)})


def test_robust_accuracy_agrees_with_the_evaluation(trained: Trained) -> None:
    network, images, labels = trained
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    attack, threat = Pgd(steps=4, random_start=False), Threat(eps=0.12)
    counts = _correct(_evaluate(network, batches, attacks=[attack], threat=threat))
    with as_predictor(network, "cpu") as predictor:
        found = robust_accuracy(predictor, batches, threat=threat, attack=attack, seed=0, device="cpu")
    assert found == (counts[("network", "clean")] / 300, counts[("network", "PGD-4x1")] / 300)
    assert 0 < found[1] < found[0] <= 1


def test_robust_accuracy_of_a_network_that_is_always_wrong_is_zero() -> None:
    batches = [(PIXELS, 1 - (PIXELS.flatten() > 0.5).long())]
    found = robust_accuracy(Above(0.5), batches, threat=THREAT, attack=Pgd(), seed=0, device="cpu")
    assert found == (0.0, 0.0)


def test_the_curve_of_a_linear_model_is_the_share_of_margins_beyond_eps(
    two_class: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, images, labels = two_class
    network.requires_grad_(False)
    logits = network(images)
    weight = next(network.parameters())
    margins = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])).squeeze(1)
    reach = margins / (weight[labels] - weight[1 - labels]).abs().sum(1)
    radii = [0.05, 0.0, 0.02, 0.1, 0.02]
    curve = eps_curve(
        network,
        [(images[:120], labels[:120]), (images[120:], labels[120:])],
        radii,
        threat=Threat(eps=0.3),
        attack=Pgd(steps=5),
        seed=0,
        device="cpu",
    )
    expected = [(eps, float((reach > eps).double().mean())) for eps in (0.0, 0.02, 0.05, 0.1)]
    assert curve == expected
    assert expected[0][1] > expected[1][1] > expected[2][1] > expected[3][1]


@pytest.mark.parametrize("radii", [[], [0.1, -0.1]])
def test_a_curve_without_radii_or_with_a_negative_one_is_refused(radii: list[float]) -> None:
    with pytest.raises(ConfigError, match="one radius or more, each 0 or above"):
        eps_curve(Above(0.5), BATCHES, radii, threat=THREAT, attack=Pgd(), seed=0, device="cpu")
