import json
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import robustcompress
from robustcompress import Compressor, Recipe, certify_data_set
from robustcompress.cli.main import app
from robustcompress.errors import ConfigError
from robustcompress.events import Event, Progress
from robustcompress.robustness.certification import certify
from robustcompress.robustness.certifiers.smoothing import Smoothing

DATA = {"kind": "fashion_mnist_mini", "test_size": 20}
CERTIFIER = {"kind": "smoothing", "sigma": 0.3, "n0": 10, "n": 50}
SMALLER, FEWER = {**CERTIFIER, "sigma": 0.2}, {**DATA, "test_size": 10}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that trained one epoch for smoothing, and exported."""
    folder = tmp_path_factory.mktemp("certified") / "run"
    training = {"epochs": 1, "lr": 0.01, "optimizer": "adam"}
    values = {
        "model": {"kind": "small_cnn", "widths": [2, 4], "hidden": 8},
        "data": {"kind": "fashion_mnist_mini", "train_size": 500, "test_size": 20},
        "threat": {"eps": 0.1},
        "objective": {"kind": "smoothing", "sigma": 0.3},
        "sparsity": 0.5,
        "pretrain": training,
        "prune": training,
        "finetune": training,
        "validation": {"attack": {"kind": "pgd", "steps": 1}},
        "stages": ["pretrain", "prune", "finetune", "compact", "export"],
    }
    Compressor(recipe=Recipe.from_values(values), run_dir=folder, progress=False).compress()
    return folder


class _Linear(nn.Module):
    """Class 1 where the pixels' sum is above 200."""

    def forward(self, images: Tensor) -> Tensor:
        above = images.flatten(1).sum(1) - 200
        return torch.stack([-above, above, *[torch.full_like(above, -1e9)] * 8], dim=1)


def test_a_data_set_is_certified_image_for_image() -> None:
    seen: list[Event] = []
    found = certify_data_set(
        _Linear(), DATA, certifier=CERTIFIER, radii=[0, 0.1], seed=4, device="cpu", sinks=[seen.append]
    )
    images = robustcompress.datasets.FashionMnistMini(test_size=20).load("test")
    for certificate, (pixels, label) in zip(found.certificates, images.batches(1), strict=True):
        distance = (float(pixels.sum()) - 200) / 28  # the sum's gradient has length sqrt(784)
        assert certificate.label == int(label)
        assert certificate.radius == 0 or certificate.predicted == int(distance > 0)
        if abs(distance) > 2:  # more than six deviations: all draws agree
            assert certificate.radius == pytest.approx(0.3 * NormalDist().inv_cdf(0.001 ** (1 / 50)))
    batches = list(images.batches(7))
    chosen = Smoothing(sigma=0.3, n0=10, n=50)
    assert certify(_Linear(), batches, certifier=chosen, seed=4) == found.certificates
    assert found.abstained == sum(item.predicted is None for item in found.certificates)
    assert [item.correct for item in found.accuracies] == [
        sum(item.predicted == item.label and item.radius >= radius for item in found.certificates)
        for radius in (0, 0.1)
    ]
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert seen == [Progress("certify", "smoothing 0.3", done, 20) for done in range(1, 21)]


def test_an_interrupted_certification_goes_on(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 8:
            raise StoppedError

    keep, seen = tmp_path / "kept.jsonl", list[Event]()
    with pytest.raises(StoppedError):
        certify_data_set(_Linear(), DATA, certifier=CERTIFIER, radii=[0], keep=keep, sinks=[stop])
    again = certify_data_set(_Linear(), DATA, certifier=CERTIFIER, radii=[0], keep=keep, sinks=[seen.append])
    assert len(seen) == 12
    assert again == certify_data_set(_Linear(), DATA, certifier=CERTIFIER, radii=[0])
    other_batches = {**CERTIFIER, "batch_size": 3}
    assert certify_data_set(_Linear(), DATA, certifier=other_batches, radii=[0], keep=keep).certificates == (
        again.certificates
    )
    different: list[Callable[[], object]] = [
        lambda: certify_data_set(_Linear(), DATA, certifier=CERTIFIER, radii=[0], keep=keep, seed=1),
        lambda: certify_data_set(_Linear(), DATA, certifier=CERTIFIER, radii=[0], keep=keep, fingerprint="b"),
        lambda: certify_data_set(_Linear(), DATA, certifier=SMALLER, radii=[0], keep=keep),
        lambda: certify_data_set(_Linear(), FEWER, certifier=CERTIFIER, radii=[0], keep=keep),
    ]
    for name, attempt in zip(("seed", "network", "certifier", "images"), different, strict=True):
        with pytest.raises(ConfigError, match=f"holds certificates of something else: {name} differ"):
            attempt()


@pytest.mark.parametrize(
    ("certifier", "message"),
    [
        ({"kind": "smoothing", "n": 5}, "alpha 0.001 needs n of 10 or more; got 5"),
        ({"kind": "smoothing", "sigma": -1}, "sigma: Input should be greater than 0; got -1"),
        ("smothing", "unknown certifier 'smothing'. Did you mean 'smoothing'"),
    ],
)
def test_a_wrong_certifier_is_refused(certifier: str | dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        certify_data_set(_Linear(), DATA, certifier=certifier, radii=[0])


def test_wrong_radii_are_refused_before_the_work() -> None:
    with pytest.raises(ConfigError, match="radii must be 0 or more; got -1"):
        certify_data_set(_Linear(), DATA, certifier=CERTIFIER, radii=[-1])


def test_artifact_and_exported_file_are_certified_alike_from_the_command_line(
    run_dir: Path, tmp_path: Path
) -> None:
    options = ["--data", "fashion-mnist-mini", "--sigma", "0.3", "--n", "60", "--n0", "10", "--limit", "6"]
    found = []
    for target in (run_dir / "artifact", run_dir / "export" / "model.onnx"):
        done = CliRunner().invoke(app, ["certify", str(target), *options, "--radius", "0.1", "--json"])
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    assert [item["subject"] for item in found] == ["artifact", "model.onnx"]
    assert found[0]["certificates"] == found[1]["certificates"]  # but for draws that rounding decides
    assert len(found[0]["certificates"]) == 6
    assert [item["radius"] for item in found[0]["accuracies"]] == [0.1]
    kept = ["--out", str(tmp_path / "kept.jsonl")]
    table = CliRunner().invoke(app, ["certify", str(run_dir / "artifact"), *options, *kept])
    assert "6 images of fashion-mnist-mini" in table.stdout
    assert "certified accuracy (95% interval)" in table.stdout
    refused = CliRunner().invoke(app, ["certify", str(run_dir / "export" / "model.onnx"), *options, *kept])
    assert isinstance(refused.exception, ConfigError)
    assert "network differ" in str(refused.exception)


def test_what_is_neither_artifact_nor_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    done = CliRunner().invoke(app, ["certify", str(path), "--data", "cifar10", "--sigma", "0.25"])
    assert isinstance(done.exception, ConfigError)
    assert "expected an artifact's folder or an .onnx file" in str(done.exception)
