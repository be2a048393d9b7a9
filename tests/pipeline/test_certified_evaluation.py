"""Certifiers of the recipe judge the network and the file, and agree with the attacks."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from robustcompress import Recipe, Report
from robustcompress.errors import InterruptedRunError, ModelError
from robustcompress.events import Event, Progress
from robustcompress.pipeline import certified_evaluation
from robustcompress.robustness.certifiers import Certificate
from tests.pipeline.conftest import compressor, recipe

RADII = [0.002, 0.01, 0.05]
EVALUATION = {
    "attacks": [{"kind": "pgd", "steps": 5}],
    "curve": [],
    "certifiers": [
        {"kind": "best", "radii": RADII},
        {"kind": "interval", "radii": RADII},
        {"kind": "smoothing", "sigma": 0.1, "n": 100, "n0": 20},
    ],
    "certify_limit": 24,
}


def certified_recipe() -> Recipe:
    return recipe(
        objective={"kind": "crown_ibp", "ramp": 0.5},
        prune={"epochs": 2, "lr": 0.1, "batch_size": 16, "objective": {"kind": "crown_ibp", "ramp": 0}},
        finetune={"epochs": 4, "lr": 0.05, "batch_size": 16, "select": "certified"},
        evaluation=EVALUATION,
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("certified") / "run"
    result = compressor(folder, recipe=certified_recipe()).compress()
    assert result.report is not None
    return folder, result.report


def test_every_certifier_judges_the_network_and_the_file(judged: tuple[Path, Report]) -> None:
    report = judged[1]
    assert [(part.subject, part.settings["kind"]) for part in report.certified] == [
        (subject, kind) for subject in ("network", "model.onnx") for kind in ("best", "interval", "smoothing")
    ]
    for part in report.certified:
        assert [item.count for item in part.accuracies] == [24] * len(part.accuracies)
        assert part.smoothed == (part.norm == "l2")
    network, file = report.certified[:2], report.certified[3:5]
    for one, other in zip(network, file, strict=True):
        assert one.accuracies == other.accuracies
    best, interval = network
    assert best.accuracies[0].correct > 0
    for more, less in zip(best.accuracies, interval.accuracies, strict=True):
        assert more.correct >= less.correct


def test_certified_is_at_most_attacked_and_that_at_most_clean(judged: tuple[Path, Report]) -> None:
    report = judged[1]
    for subject in ("network", "model.onnx"):
        clean, attacked = report.measured(subject, "clean"), report.measured(subject, "PGD")
        assert clean is not None
        assert attacked is not None
        assert attacked.correct <= clean.correct
    for part in report.certified:
        if not part.smoothed:
            measured = report.measured(part.subject, "PGD")
            assert measured is not None
            assert part.accuracies[-1].correct <= measured.correct


def test_certificates_are_kept_as_they_are_made(judged: tuple[Path, Report]) -> None:
    folder, report = judged
    kept = sorted((folder / "certificates").iterdir())
    assert len(kept) == len(report.certified)
    for path in kept:
        lines = path.read_text().splitlines()
        assert len(lines) == 25
        assert [json.loads(line)["index"] for line in lines[1:]] == list(range(24))


def test_an_evaluation_that_was_stopped_goes_on_with_its_certificates(
    judged: tuple[Path, Report], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(judged[0], folder)
    shutil.rmtree(folder / "certificates")

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.task == "smoothing 0.1 of model.onnx" and event.done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="stopped in evaluate"):
        compressor(folder, recipe=certified_recipe(), sinks=[interrupt], resume=True).compress()
    said: list[Progress] = []

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and " of " in event.task:
            said.append(event)

    result = compressor(folder, recipe=certified_recipe(), sinks=[listen], resume=True).compress()
    assert {event.task for event in said} == {"smoothing 0.1 of model.onnx"}
    assert [event.done for event in said] == list(range(6, 25))
    assert result.report is not None
    assert result.report.certified == judged[1].certified


def test_a_proof_that_an_attack_contradicts_stops_the_evaluation(
    judged: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(judged[0], folder)

    def overclaim(*_: object, **__: object) -> tuple[Certificate, ...]:
        return tuple(
            Certificate(index=index, label=label, predicted=label, radius=1.0)
            for index, label in enumerate([0, 1, 2] * 8)
        )

    monkeypatch.setattr(certified_evaluation, "certify", overclaim)
    # Half of all images lie within such a radius of one grey image.
    strong = {**EVALUATION, "threat": {"eps": 0.6}, "attacks": [{"kind": "pgd", "steps": 10}]}
    values = certified_recipe().model_dump(mode="json") | {"evaluation": strong}
    with pytest.raises(ModelError, match=r"best proves class \d of network as far as 1, but"):
        compressor(folder, recipe=Recipe.from_values(values), resume=True).compress()


def test_smoothing_alone_does_not_look_into_the_file(
    judged: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(judged[0], folder)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(certified_evaluation, "read_network", refuse)
    smoothing = {**EVALUATION, "certifiers": EVALUATION["certifiers"][2:]}  # type: ignore[index]
    values = certified_recipe().model_dump(mode="json") | {"evaluation": smoothing}
    result = compressor(folder, recipe=Recipe.from_values(values), resume=True).compress()
    assert result.report is not None
    assert result.report.certified == tuple(part for part in judged[1].certified if part.smoothed)
