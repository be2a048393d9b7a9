"""The command verify: its table, its JSON, its exit code."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from robustcompress.cli.main import app
from robustcompress.errors import ConfigError
from robustcompress.export.claims import bare_sha256, write_claims
from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.session import OnnxSession
from robustcompress.export.twin import read_twin
from robustcompress.pipeline.claims import Claim, Claims, images_sha256
from robustcompress.pipeline.context import versions
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.target import Target
from robustcompress.robustness.threat import Threat
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini

COUNT = 40
THREAT = Threat(eps=0.005)
ASKED = ["verify", "--data", "fashion-mnist-mini", "--test-size", str(COUNT), "--device", "cpu"]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Claims]:
    """A file of a linear network whose rows are mean images, and what is true of it."""
    images = FashionMnistMini(test_size=COUNT).load("test")
    (pixels, labels), *_ = images.batches(COUNT)
    layer = nn.Linear(784, 10)
    network = nn.Sequential(nn.Flatten(), layer)
    means = torch.stack([pixels[labels == label].mean(0).flatten() for label in range(10)])
    with torch.no_grad():
        layer.weight.copy_(means)
        layer.bias.copy_(-means.square().sum(1) / 2)
    path = tmp_path_factory.mktemp("claims") / "model.onnx"
    Onnx().write(network, path, images=pixels[:4], metadata={})
    session = OnnxSession(path)
    target = Target(session, read_twin(path, session, pixels[:4]).network)
    attacks = (Pgd(steps=5),)
    found = evaluate(target, [(pixels, labels)], threat=THREAT, attacks=attacks, seed=3, device="cpu")
    return path, Claims(
        sha256=bare_sha256(path),
        data="fashion_mnist_mini",
        judged_on="test",
        images_sha256=images_sha256([(pixels, labels)], COUNT),
        count=COUNT,
        batch_size=COUNT,
        threat=THREAT,
        attacks=attacks,
        seed=3,
        device="cpu",
        versions=versions(),
        claims=tuple(Claim.of(measurement) for measurement in found.measurements),
    )


def test_true_claims_are_confirmed(claims: tuple[Path, Claims]) -> None:
    path, true = claims
    write_claims(path, true.model_dump(mode="json"))
    done = CliRunner().invoke(app, [*ASKED, str(path)])
    assert done.exit_code == 0, done.output
    assert "40 test images of fashion_mnist_mini, Linf eps 0.005, seed 3" in done.stdout
    assert "confirmed     PGD-5x1" in done.stdout
    assert "refuted" not in done.stdout


def test_a_false_claim_ends_with_1_and_json_says_which(claims: tuple[Path, Claims]) -> None:
    path, true = claims
    boast = tuple(row.model_copy(update={"correct": COUNT}) for row in true.claims)
    write_claims(path, true.model_copy(update={"claims": boast, "device": "cuda"}).model_dump(mode="json"))
    done = CliRunner().invoke(app, [*ASKED, str(path), "--json"])
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout)
    assert found["refuted"] is True
    assert {row["verdict"] for row in found["checked"]} == {"refuted"}
    table = CliRunner().invoke(app, [*ASKED, str(path)]).stdout
    assert "claimed 100.0%, found" in table
    assert "gradients were computed on cuda then and on cpu now" in table


def test_what_is_neither_a_file_nor_a_folder_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*ASKED, str(tmp_path / "model.pt")])
    assert isinstance(done.exception, ConfigError)
    assert "expected an artifact's folder or an .onnx file" in str(done.exception)
