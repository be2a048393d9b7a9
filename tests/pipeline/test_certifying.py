import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

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


BY_BOUNDS: dict[str, object] = {"kind": "best", "radii": ["1/255", 0.02, 0.1]}


def _linear() -> nn.Module:
    """Return class 1 where the pixels' sum is above 200, as operations that have bounds."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        model.get_parameter("1.weight").zero_()[:2] = torch.tensor([[-1.0], [1.0]])
        model.get_parameter("1.bias").copy_(torch.tensor([200.0, -200.0] + [-1e4] * 8))
    return model


def test_a_data_set_is_certified_by_bounds() -> None:
    network, seen = _linear(), list[Event]()
    found = certify_data_set(network, DATA, certifier=BY_BOUNDS, device="cpu", sinks=[seen.append])
    images = robustcompress.datasets.FashionMnistMini(test_size=20).load("test")
    for certificate, (pixels, label) in zip(found.certificates, images.batches(1), strict=True):
        above = float(pixels.double().sum()) > 200
        reached = 0.0
        for radius in (1 / 255, 0.02, 0.1):
            away = pixels.double() + (-radius if above else radius)
            if (float(away.clamp(0, 1).sum()) > 200) == above:
                reached = radius
        assert certificate.label == int(label)
        assert certificate.counts["class"] == int(above)
        assert certificate.radius == reached
    assert found.norm == "linf"
    assert found.certifier["radii"] == (1 / 255, 0.02, 0.1)
    assert [item.radius for item in found.accuracies] == [1 / 255, 0.02, 0.1]
    assert found.clean == sum(item.counts["class"] == item.label for item in found.certificates)
    assert found.clean is not None
    assert found.accuracies[0].correct <= found.clean
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert seen == [Progress("certify", "best", done, 20) for done in range(1, 21)]


def test_what_is_certified_under_noise_has_no_clean_count() -> None:
    assert certify_data_set(_Linear(), DATA, certifier=CERTIFIER, limit=2).clean is None


def test_radii_are_the_certifiers_own_if_nobody_asks_for_others() -> None:
    found = certify_data_set(_Linear(), DATA, certifier=CERTIFIER, limit=1)
    assert [item.radius for item in found.accuracies] == pytest.approx([0, 0.15, 0.3, 0.45, 0.6, 0.9])


@pytest.mark.parametrize("certifier", [CERTIFIER, BY_BOUNDS])
def test_shares_kept_in_files_and_merged_are_the_whole(certifier: dict[str, object], tmp_path: Path) -> None:
    network, whole = _linear(), certify_data_set(_linear(), DATA, certifier=certifier, fingerprint="a")
    files = [tmp_path / f"{share}.jsonl" for share in range(3)]
    seen: list[Event] = []
    for share, file in enumerate(files):
        found = certify_data_set(
            network,
            DATA,
            certifier=certifier,
            fingerprint="a",
            share=(share, 3),
            keep=file,
            sinks=[seen.append],
        )
        assert found.share == (share, 3)
        assert found.certificates == whole.certificates[share::3]
    assert [event.done for event in seen if isinstance(event, Progress)] == [
        *range(1, 8),
        *range(1, 8),
        *range(1, 7),
    ]
    seen.clear()
    merged = certify_data_set(
        network,
        DATA,
        certifier={**certifier, "batch_size": 3},
        fingerprint="a",
        merge=files,
        keep=tmp_path / "all.jsonl",
        sinks=[seen.append],
    )
    assert merged.certificates == whole.certificates
    assert merged.accuracies == whole.accuracies
    assert seen == []
    # Of two files the rest is made, and the file that was kept has them all.
    certify_data_set(
        network,
        DATA,
        certifier=certifier,
        fingerprint="a",
        merge=files[:2],
        keep=files[2],
        sinks=[seen.append],
    )
    assert seen == []
    again = certify_data_set(network, DATA, certifier=certifier, fingerprint="a", keep=tmp_path / "all.jsonl")
    assert again.certificates == whole.certificates
    with pytest.raises(ConfigError, match="holds certificates of something else: network differ"):
        certify_data_set(network, DATA, certifier=certifier, fingerprint="b", merge=files)


def test_a_share_that_is_none_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share must be"):
        certify_data_set(_linear(), DATA, certifier=CERTIFIER, share=(2, 2), keep=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("certifier", "message"),
    [
        ("best", "radii: Field required"),
        ({"kind": "interval", "radii": [0.2, 0.1]}, "radii: radii must be finite, above 0 and ascending"),
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


CERTIFY = ["certify", "--data", "fashion-mnist-mini"]


def _json(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*CERTIFY, *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["interval", "crown-ibp", "crown", "best"])
def test_an_artifact_is_certified_by_bounds_from_the_command_line(run_dir: Path, kind: str) -> None:
    eps = ["--eps", "0.02", "--eps", "1/255", "--limit", "8"]
    found = _json(str(run_dir / "artifact"), "--certifier", kind, *eps)
    certifier = {"kind": kind.replace("-", "_"), "radii": [1 / 255, 0.02]}
    network = robustcompress.load(run_dir / "artifact")
    expected = certify_data_set(network, "fashion_mnist_mini", certifier=certifier, limit=8)
    assert found["certificates"] == json.loads(expected.model_dump_json())["certificates"]
    assert [item["radius"] for item in found["accuracies"]] == [1 / 255, 0.02]
    assert found["norm"] == "linf"
    assert any(item["radius"] > 0 for item in found["certificates"]) or kind == "interval"


@pytest.mark.parametrize("kind", ["crown-ibp", "best"])
def test_an_exported_file_is_certified_by_the_operations_that_it_holds(run_dir: Path, kind: str) -> None:
    # Half of the weights are masked, and the file holds them coded.
    eps = ["--certifier", kind, "--eps", "0.02", "--eps", "1/255", "--limit", "30"]
    of_artifact = _json(str(run_dir / "artifact"), *eps)
    of_file = _json(str(run_dir / "export" / "model.onnx"), *eps)
    assert of_file["certificates"] == of_artifact["certificates"]
    assert {item["radius"] for item in of_file["certificates"]} > {0.0}
    assert of_file["subject"] == "model.onnx"


def test_shares_are_merged_on_the_command_line(run_dir: Path, tmp_path: Path) -> None:
    artifact, eps = str(run_dir / "artifact"), ["--eps", "1/255", "--limit", "9"]
    whole = _json(artifact, *eps)
    files = [str(tmp_path / f"{share}.jsonl") for share in range(2)]
    for share, file in enumerate(files):
        part = _json(artifact, *eps, "--share", f"{share}/2", "--out", file)
        assert part["certificates"] == whole["certificates"][share::2]
    merged = _json(artifact, *eps, "--merge", files[0], "--merge", files[1])
    assert merged == whole
    done = CliRunner().invoke(app, [*CERTIFY, artifact, *eps, "--share", "1/2"])
    assert (
        "best bounds in float64, slack 0.0001; 4 images of fashion-mnist-mini test, share 1/2" in done.stdout
    )
    assert "right clean" in done.stdout
    assert "radius (Linf)" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "expected --eps .* or --sigma .*; got neither"),
        ("--eps 0.1 --sigma 0.2", "expected --eps .* or --sigma .*; got both"),
        ("--eps 0.1 --n 100 --radius 1", "--n, --radius is for smoothing, not for best"),
        ("--sigma 0.1 --memory-mib 5", "--memory-mib is for certifiers by bounds, not for smoothing"),
        ("--certifier smoothing --eps 0.1", "--eps is for certifiers by bounds, not for smoothing"),
        ("--certifier smoothing", "--certifier smoothing needs --sigma"),
        ("--certifier crown-ibp", "--certifier crown_ibp needs --eps"),
        ("--certifier crwon --eps 0.1", "unknown certifier 'crwon'. Did you mean 'crown'"),
        ("--eps 0.1 --eps x", "radii.1: Input should be a valid number.*got 'x'"),
        ("--eps 0.1 --share 2/2", "--share takes i/n with i from 0 to n - 1, such as 0/4; got '2/2'"),
        ("--eps 0.1 --share 1", "--share takes i/n"),
        ("--eps 0.1 --dtype float16", "dtype: Input should be 'float64' or 'float32'; got 'float16'"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(run_dir: Path, options: str, message: str) -> None:
    done = CliRunner().invoke(app, [*CERTIFY, str(run_dir / "artifact"), *options.split()])
    assert isinstance(done.exception, ConfigError)
    assert re.search(message, str(done.exception))


def test_what_is_neither_artifact_nor_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    done = CliRunner().invoke(app, ["certify", str(path), "--data", "cifar10", "--sigma", "0.25"])
    assert isinstance(done.exception, ConfigError)
    assert "expected an artifact's folder or an .onnx file" in str(done.exception)
