from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.attacks import Attack, Ensemble, Logits, TargetedAttack
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.evaluation import Evaluation, evaluate
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat


class Above(nn.Module):
    """Class 1 where the pixel is above ``level``, else class 0."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, images: Tensor) -> Tensor:
        pixel = images.flatten(1)
        return torch.cat([torch.full_like(pixel, self.level), pixel], 1)


class Shift(Attack):
    """Adds ``by`` to every pixel of images that are not wrong yet; asks for logits alone."""

    needs_gradient: ClassVar[bool] = False
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
        del threat, generator
        wrong = logits_of(images).argmax(1) != labels
        return torch.where(wrong.reshape(-1, 1, 1, 1), images, images + self.by)

    def __str__(self) -> str:
        return f"Shift{self.by:+g}"


class Both(Ensemble):
    """Up, then down."""

    def members(self, classes: int) -> tuple[Attack, ...]:
        assert classes == 2
        return Shift(by=0.1), Shift(by=-0.1)

    def __str__(self) -> str:
        return "Both"


def _pixels(*values: float) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


PIXELS = _pixels(0.2, 0.45, 0.55, 0.8, 0.3, 0.47, 0.9)
LABELS = torch.tensor([0, 0, 1, 1, 1, 0, 1])  # the fifth is wrong already
BATCHES = list(zip(PIXELS.split(3), LABELS.split(3), strict=True))


def _evaluate(network: nn.Module | Target, **settings: object) -> Evaluation:
    given: dict[str, object] = {"threat": Threat(eps=0.1), "seed": 0, "device": "cpu", **settings}
    return evaluate(network, BATCHES, **given)  # type: ignore[arg-type]  # tests pass what they vary


def _counts(evaluation: Evaluation) -> dict[tuple[str, str, str], int]:
    return {(m.subject, m.attack, m.access): m.correct for m in evaluation.measurements}


def _session(level: float) -> Target:
    def predict(images: Tensor) -> Tensor:
        logits: Tensor = Above(level)(images)
        return logits.detach()

    return Target(predict, Above(level))


def test_a_file_with_a_twin_is_attacked_itself_besides_what_was_made_on_the_network() -> None:
    # The network is blind to the pixel's neighbourhood of 0.5: what is made on it does not break the file.
    counts = _counts(_evaluate(Above(0.1), attacks=[Pgd(steps=5)], files={"f": _session(0.5)}))
    assert counts["f", "clean", "none"] == 6
    assert counts["f", "PGD-5x1", "white-box"] == 3
    assert counts["f", "worst case", "white-box"] == 3
    assert counts["f", "PGD-5x1", "transfer"] > 3


def test_a_session_is_judged_by_its_own_classes_not_by_its_twins() -> None:
    session = _session(0.5)
    strange = Target(session.predictor, Above(0.9))
    counts = _counts(_evaluate(strange, attacks=[Pgd(steps=5)], subject="session"))
    # Where the twin leads the attack astray, the session is what counts.
    assert counts["session", "clean", "none"] == 6
    assert counts["session", "PGD-5x1", "white-box"] >= 3


def test_without_a_twin_there_are_black_box_numbers_and_what_was_left_out_is_said() -> None:
    blind = Target(_session(0.5).predictor, None, "operator 'Mystery' is unknown")
    found = _evaluate(blind, attacks=[Pgd(steps=5), Shift(by=0.1)], subject="model.onnx")
    assert _counts(found) == {
        ("model.onnx", "clean", "none"): 6,
        ("model.onnx", "Shift+0.1", "black-box"): 4,
        ("model.onnx", "8-bit pixels", "black-box"): 4,
        ("model.onnx", "worst case", "black-box"): 4,
    }
    assert found.skipped == ("PGD-5x1 was not run on model.onnx: operator 'Mystery' is unknown",)


def test_a_target_on_which_no_attack_can_run_is_refused_with_the_reason() -> None:
    blind = Target(_session(0.5).predictor, None, "operator 'Mystery' is unknown")
    with pytest.raises(ConfigError, match=r"all need gradients.*'Mystery' is unknown.*square"):
        _evaluate(blind, attacks=[Pgd(steps=5)])


def test_attacks_without_gradients_ask_the_quick_way_and_the_predictor_decides() -> None:
    asked: list[int] = []

    def quick(images: Tensor) -> Tensor:
        asked.append(len(images))
        logits: Tensor = Above(0.5)(images)
        return logits

    network = Above(0.5)
    counts = _counts(_evaluate(Target(network, network, quick=quick), attacks=[Shift(by=0.1)]))
    assert asked
    assert counts["network", "Shift+0.1", "black-box"] == 4


def test_each_member_of_an_ensemble_is_told_and_the_whole_is_their_worst_case() -> None:
    found = _evaluate(Above(0.5), attacks=[Both()])
    assert _counts(found) == {
        ("network", "clean", "none"): 6,
        ("network", "Shift+0.1", "black-box"): 4,
        ("network", "Shift-0.1", "black-box"): 3,  # of those that the first one left
        ("network", "Both", "white-box"): 3,
        ("network", "8-bit pixels", "white-box"): 3,
        ("network", "worst case", "white-box"): 3,
    }
    parts = {m.attack: m.settings.get("part of") for m in found.measurements}
    assert parts["Shift+0.1"] == parts["Shift-0.1"] == "Both"
    assert parts["Both"] is None


def test_what_an_ensembles_members_made_is_taken_from_the_store_the_second_time() -> None:
    class Memory:
        def __init__(self) -> None:
            self.kept: dict[str, Tensor] = {}
            self.taken = 0

        def get(self, key: str) -> Tensor | None:
            self.taken += key in self.kept
            return self.kept.get(key)

        def put(self, key: str, adversarial: Tensor) -> None:
            assert key not in self.kept
            self.kept[key] = adversarial.clone()

    store = Memory()
    files = {"f": _session(0.46)}
    first = _evaluate(Above(0.5), attacks=[Both()], files=files, store=store)
    assert store.taken == 0
    again = _evaluate(Above(0.5), attacks=[Both()], files=files, store=store)
    assert store.taken == len(store.kept) == 12  # three batches, two subjects, two members
    assert again.measurements == first.measurements


def test_bounds_spare_an_ensemble_what_is_proven_and_change_no_count() -> None:
    given: list[int] = []
    aimed: list[list[list[bool]]] = []

    class Counting(TargetedAttack):
        def run(
            self,
            logits_of: Logits,
            images: Tensor,
            labels: Tensor,
            *,
            threat: Threat,
            generator: torch.Generator,
            reachable: Tensor | None = None,
        ) -> Tensor:
            assert reachable is not None
            standing = logits_of(images).argmax(1) == labels
            given.append(int(standing.sum()))
            aimed.append(reachable.tolist())
            found = Pgd(steps=5).run(logits_of, images, labels, threat=threat, generator=generator)
            return torch.where(standing.reshape(-1, 1, 1, 1), found, images)

        def __str__(self) -> str:
            return "Counting"

    class Whole(Ensemble):
        def members(self, classes: int) -> tuple[Attack, ...]:
            return (Counting(),)

        def __str__(self) -> str:
            return "Whole"

    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
    network = nn.Sequential(nn.Flatten(), layer).eval()
    counts = _counts(_evaluate(network, attacks=[Whole()]))
    assert counts["network", "Whole", "white-box"] == 3
    # 0.45, 0.55 and 0.47 lie within 0.1 of the border; 0.2, 0.8 and 0.9 are proven.
    assert sum(given) == 3
    assert [rows for batch in aimed for rows in batch][:3] == [[False, False], [False, True], [True, False]]
