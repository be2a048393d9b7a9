"""The command evaluate on a file or an artifact: its table, its JSON, what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

from robustcompress import Judgement
from robustcompress.cli.main import app
from robustcompress.errors import ConfigError, StorageError
from robustcompress.export.formats.onnx import Onnx
from robustcompress.storage.artifact import Artifact, save_artifact
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini
from robustcompress.zoo.networks.small_cnn import SmallCnn

COUNT = 100
ON = ["--data", "fashion-mnist-mini", "--device", "cpu", "--limit", str(COUNT)]
QUICK = [*ON, "--eps", "2/255", "--attack", "pgd:steps=2", "--attack", "square:queries=3", "--no-alarms"]


def call(*arguments: object) -> str:
    """Return what the command prints on stdout."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["evaluate", *map(str, arguments)])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.stdout


def refused(*arguments: object) -> str:
    """Return why the command ends with a wrong setting."""
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert isinstance(done.exception, ConfigError)
    return str(done.exception)


@pytest.fixture(scope="module")
def means() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of a linear network that finds the nearest of ten mean images."""
    images = FashionMnistMini().load("test")
    (pixels, labels), *_ = images.batches(1000)
    rows = torch.stack([pixels[labels == label].mean(0).flatten() for label in range(10)])
    return rows, -rows.square().sum(1) / 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def _linear(means: tuple[torch.Tensor, torch.Tensor], factor: float = 1.0) -> nn.Module:
    layer = nn.Linear(784, 10)
    with torch.no_grad():
        layer.weight.copy_(means[0] * factor)
        layer.bias.copy_(means[1] * factor)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture(scope="module")
def exported(folder: Path, means: tuple[torch.Tensor, torch.Tensor]) -> Path:
    path = folder / "model.onnx"
    Onnx().write(_linear(means), path, images=torch.rand(4, 1, 28, 28), metadata={})
    return path


@pytest.fixture(scope="module")
def odd(folder: Path, means: tuple[torch.Tensor, torch.Tensor]) -> Path:
    """Return a file with an operator that is not understood."""
    nodes = [
        helper.make_node("Sinh", ["x"], ["bent"]),
        helper.make_node("Flatten", ["bent"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"]),
    ]
    weights = {"w": means[0].T.contiguous().numpy(), "b": means[1].numpy()}
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    path = folder / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    settings: dict[str, Any] = {"kind": "small_cnn", "widths": [2, 4], "hidden": 8}
    torch.manual_seed(0)
    network = SmallCnn.find(settings).build()
    path = folder / "artifact"
    save_artifact(
        Artifact(stage="compact", tensors=network.state_dict(), seed=0, architecture=settings), path
    )
    return path


def test_a_file_is_judged_in_a_table(exported: Path) -> None:
    shown = call(exported, *QUICK)
    assert re.search(r"model\.onnx on fashion-mnist-mini test: \d+\.\d% clean, \d+\.\d% \(", shown)
    assert "under Linf eps 0.007843, white-box attacks" in shown
    assert re.search(r"PGD-2x1 +│ white-box", shown)
    assert re.search(r"Square-3x1 +│ black-box", shown)
    assert "worst class" in shown
    assert "100.0% of 16 images get the same class" in shown
    assert "unreliable" not in shown


def test_json_is_one_value_that_reads_back(exported: Path) -> None:
    text = call(exported, *QUICK, "--json", "--seed", "7", "--norm", "l2")
    found = Judgement.model_validate_json(text)
    assert json.loads(found.model_dump_json()) == json.loads(text)
    assert (found.subject, found.seed, found.norm, found.reliability) == ("model.onnx", 7, "l2", None)
    assert found.eps == pytest.approx(2 / 255)
    assert {row.count for row in found.measurements} == {COUNT}
    assert found.robust is not None
    assert json.loads(text)["robust"]["correct"] == found.robust.correct


def test_the_usual_attacks_and_alarms_are_run_unless_others_are_named(exported: Path) -> None:
    found = Judgement.model_validate_json(call(exported, *ON, "--limit", "10", "--eps", "0.01", "--json"))
    attacks = [row.attack for row in found.measurements]
    assert attacks == ["clean", "PGD-20x1", "APGD-CE-100x1", "Square-500x1", "8-bit pixels", "worst case"]
    assert found.reliability is not None


def test_a_file_that_is_not_understood_says_that_its_numbers_are_black_box_only(odd: Path) -> None:
    shown = call(odd, *QUICK)
    assert "black-box attacks alone" in shown
    assert "no attack followed the gradients of odd.onnx" in shown
    assert "take the robust accuracy as an upper bound" in shown
    assert "PGD-2x1 was not run on odd.onnx" in shown
    assert "white-box" not in shown


def test_images_made_on_an_artifact_are_scored_on_the_file(exported: Path, artifact: Path) -> None:
    text = call(exported, *QUICK, "--transfer-from", artifact, "--json")
    found = Judgement.model_validate_json(text)
    rows = {(row.attack, row.access) for row in found.measurements}
    assert {("PGD-2x1", "white-box"), ("PGD-2x1", "transfer"), ("Square-3x1", "transfer")} <= rows
    assert {row.subject for row in found.measurements} == {"model.onnx"}
    assert found.transfer_from


def test_an_artifact_is_judged_like_a_file(artifact: Path) -> None:
    found = Judgement.model_validate_json(call(artifact, *QUICK, "--json"))
    assert found.subject == "artifact"
    assert [row.access for row in found.measurements[:3]] == ["none", "white-box", "black-box"]
    assert found.twin is None


def test_what_alarms_do_not_believe_is_withheld_with_what_to_do(
    tmp_path: Path, means: tuple[torch.Tensor, torch.Tensor]
) -> None:
    path = tmp_path / "saturated.onnx"
    Onnx().write(_linear(means, 100.0), path, images=torch.rand(4, 1, 28, 28), metadata={})
    shown = call(path, *ON, "--eps", "2/255", "--attack", "pgd:steps=2")
    assert "robust accuracy under Linf eps 0.007843 withheld: unreliable" in shown
    assert re.search(r"worst case +│ white-box +│ unreliable", shown)
    assert "attack with margin or DLR losses, or divide the logits by a constant" in shown.replace("\n", "")
    assert "worst class" not in shown


def test_what_is_missing_or_does_not_belong_is_named(exported: Path, artifact: Path, tmp_path: Path) -> None:
    assert "--data is needed: on which images" in refused(exported, "--eps", "0.1")
    assert "--eps is needed" in refused(exported, *ON)
    assert "--eps is needed" in refused(artifact, *ON)
    assert "threat.eps: " in refused(exported, *ON, "--eps", "-1")
    assert "threat.norm: " in refused(exported, *ON, "--eps", "0.1", "--norm", "l1")
    assert "Did you mean 'cifar10'" in refused(exported, "--data", "cifar11", "--eps", "0.1")
    assert "takes kind:name=value" in refused(exported, *ON, "--eps", "0.1", "--attack", "pgd:steps")
    assert "limit must be 1 or more" in refused(exported, *ON, "--eps", "0.1", "--limit", "0")
    assert "expected a run's folder, an artifact's folder or an .onnx file" in refused(tmp_path / "a.pt")
    given = refused(tmp_path, "--data", "cifar10", "--transfer-from", artifact)
    assert "--data, --transfer-from is for an .onnx file or an artifact's folder" in given
    assert "holds no run: there is no" in refused(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "gone.onnx"), *QUICK])
    assert isinstance(done.exception, StorageError)
    assert "gone.onnx: No such file" in str(done.exception)
