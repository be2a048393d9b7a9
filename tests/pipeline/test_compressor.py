import copy
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import robustcompress
from robustcompress import Compressor, Recipe, Report, load
from robustcompress.errors import (
    ConfigError,
    DataError,
    InterruptedRunError,
    ModelError,
    RunLockedError,
    StorageError,
)
from robustcompress.events import Event, Notice, StageDone, StepDone
from robustcompress.export.claims import bare_sha256
from robustcompress.storage.lock import RunLock
from tests.pipeline.conftest import Residual, bars, compressor, recipe


def weights(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


def assert_same(first: nn.Module, second: nn.Module) -> None:
    theirs = weights(second)
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_users_own_network_goes_through_every_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual()
    before = copy.deepcopy(model)
    result = compressor(tmp_path / "run", model=model).compress()
    assert_same(model, before)  # the caller's network is not touched
    smaller = dict(result.network.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            left = int(torch.count_nonzero(smaller[name].get_parameter("weight")))
            assert 0 < left <= round(0.5 * module.weight.numel()), name
    images = bars(30, 1)
    pixels, labels = next(iter(images.batches(30)))
    expected = result.network(pixels).detach()
    session = onnxruntime.InferenceSession(result.files[0].path)
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0])
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert result.report is not None
    clean = result.report.measured("network", "clean")
    assert clean is not None
    assert clean.correct == int((expected.argmax(1) == labels).sum())
    assert clean.accuracy > 0.8


def test_an_artifact_comes_back_without_pickle_into_a_fresh_network(finished: Path) -> None:
    network = load(finished / "artifact", model=Residual())
    pixels, _ = next(iter(bars(30, 1).batches(30)))
    session = onnxruntime.InferenceSession(finished / "export" / "model.onnx")
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0])
    assert torch.allclose(network(pixels), logits, atol=1e-4)
    with pytest.raises(ConfigError, match="not of the zoo; pass model="):
        load(finished / "artifact")


def test_masked_channels_are_gone_and_the_file_agrees(tmp_path: Path) -> None:
    chosen = recipe(pattern="channel", sparsity=0.5)
    result = compressor(tmp_path / "run", recipe=chosen).compress()
    dense = Residual()
    assert result.network.get_parameter("stem.weight").shape[0] == 4
    parameters = sum(p.numel() for p in result.network.parameters())
    assert parameters < 0.4 * sum(p.numel() for p in dense.parameters())
    again = load(result.artifact, model=Residual())
    pixels, _ = next(iter(bars(30, 1).batches(30)))
    assert torch.equal(again(pixels), result.network(pixels))
    report = result.report
    assert report is not None
    assert report.network.compact_macs < 0.5 * report.network.macs
    for attack in ("clean", "PGD", "APGD", "worst"):
        ours, theirs = report.measured("network", attack), report.measured("model.onnx", attack)
        assert ours is not None
        assert theirs is not None
        assert abs(ours.correct - theirs.correct) <= 1


def test_stages_one_by_one_equal_all_at_once(finished: Path, tmp_path: Path) -> None:
    stepwise = compressor(tmp_path / "run")
    stepwise.pretrain()
    stepwise.prune()
    stepwise.finetune()
    stepwise.compact()
    written = stepwise.export("onnx")
    report = stepwise.evaluate()
    assert_same(
        load(tmp_path / "run" / "artifact", model=Residual()), load(finished / "artifact", model=Residual())
    )
    assert written.path.read_bytes() == (finished / "export" / "model.onnx").read_bytes()
    assert report.measurements == Report.read(finished / "report" / "report.json").measurements


def test_data_loaders_and_datasets_are_taken(tmp_path: Path) -> None:
    def loader(count: int, seed: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        pixels, labels = next(iter(bars(count, seed).batches(count)))
        return DataLoader(TensorDataset(pixels, labels), batch_size=16, shuffle=shuffle)

    result = compressor(
        tmp_path / "run",
        train=loader(60, 0, True),
        validation=loader(20, 2, False),
        test=loader(30, 1, False),
    ).compress()
    assert result.report is not None
    assert result.report.measurements[0].count == 30


def test_without_test_data_the_report_says_what_it_was_judged_on(tmp_path: Path) -> None:
    result = compressor(tmp_path / "run", test=None).compress()
    assert result.report is not None
    assert result.report.run.judged_on == "validation"
    assert any("No test data were given" in text for text in result.report.run.warnings)


def test_the_magnitude_baseline_keeps_the_largest_weights_of_the_dense_network(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run", recipe=recipe(score="magnitude", sparsity=0.75))
    dense = run.pretrain().network
    run.prune()
    kept = run.finetune().network
    for name in ("stem.weight", "first.weight", "classifier.weight"):
        magnitude = dense.get_parameter(name).abs().flatten()
        removed = round(0.75 * len(magnitude))
        survivors = set(magnitude.argsort()[removed:].tolist())
        nonzero = set(kept.get_parameter(name).flatten().nonzero().flatten().tolist())
        assert nonzero <= survivors


def test_weights_stand_still_while_scores_learn(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run")
    before = weights(run.pretrain().network)
    after = weights(run.prune().network)
    for name in ("stem.weight", "first.weight", "second.weight", "classifier.weight", "classifier.bias"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["norm.weight"], after["norm.weight"])


def test_norms_can_be_frozen_in_the_prune_stage(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run", recipe=recipe(prune_norms=False))
    before = weights(run.pretrain().network)
    after = weights(run.prune().network)
    assert torch.equal(before["norm.weight"], after["norm.weight"])
    assert not torch.equal(before["norm.running_mean"], after["norm.running_mean"])


def test_a_run_can_begin_with_given_weights(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = Residual()
    path = tmp_path / "given.safetensors"
    save_file(given.state_dict(), path, metadata={"format": "pt"})  # as other libraries write it
    stages = ("prune", "finetune")
    run = compressor(tmp_path / "run", recipe=recipe(weights=str(path), stages=stages))
    assert torch.equal(run.prune().network.get_parameter("stem.weight"), given.stem.weight)
    again = compressor(
        tmp_path / "again",
        recipe=recipe(weights=str(tmp_path / "run" / "stages" / "prune"), stages=["finetune"]),
    )
    network = again.compress().network
    assert int((network.get_parameter("first.weight") == 0).sum()) == round(0.5 * given.first.weight.numel())


@pytest.mark.parametrize("stop_in", ["pretrain", "prune", "finetune"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    stop_in: str, finished: Path, tmp_path: Path
) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage == stop_in and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedRunError, match=f"stopped in {stop_in}.*--resume"):
        compressor(tmp_path / "run", sinks=[interrupt]).compress()
    compressor(tmp_path / "run", resume=True).compress()
    assert_same(
        load(tmp_path / "run" / "artifact", model=Residual()), load(finished / "artifact", model=Residual())
    )
    assert (tmp_path / "run" / "export" / "model.onnx").read_bytes() == (
        finished / "export" / "model.onnx"
    ).read_bytes()


def test_a_stop_in_evaluation_keeps_the_stages(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, StageDone) and event.stage == "export":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="stopped in evaluate"):
        compressor(tmp_path / "run", sinks=[interrupt]).compress()
    said: list[Event] = []
    compressor(tmp_path / "run", sinks=[said.append], resume=True).compress()
    reused = [event.stage for event in said if isinstance(event, StageDone) and event.reused]
    assert reused == ["pretrain", "prune", "finetune", "compact"]


KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.pipeline.conftest import compressor
torch.set_num_threads(1)
compressor(Path({folder!r}), resume={resume}).compress()
"""


def test_kill_9_at_random_moments_loses_nothing(finished: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    folder = tmp_path / "run"

    def start(resume: bool) -> "subprocess.Popen[bytes]":
        code = textwrap.dedent(KILLED.format(root=root, folder=str(folder), resume=resume))
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)

    marks = ["stages/pretrain", "checkpoints/prune", "stages/prune", "stages/finetune"]
    for attempt, mark in enumerate(marks):
        process = start(resume=attempt > 0)
        deadline = time.monotonic() + 120
        while not (folder / mark).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.communicate()
    process = start(resume=True)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    assert_same(load(folder / "artifact", model=Residual()), load(finished / "artifact", model=Residual()))


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    run = compressor(tmp_path / "run")
    with RunLock(tmp_path / "run"), pytest.raises(RunLockedError, match=r"another|process|in use"):
        run.compress()


def test_a_folder_that_holds_a_run_is_not_written_over(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already\. Resume it"):
        compressor(finished)


def test_a_run_is_resumed_with_its_own_recipe_only(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"changed: seed, sparsity \(seed was 0"):
        compressor(finished, resume=True, recipe=recipe(sparsity=0.6, seed=1))


def test_a_run_is_resumed_with_its_own_data_only(finished: Path) -> None:
    with pytest.raises(ConfigError, match="made from other training data"):
        compressor(finished, resume=True, train=bars(60, 9))


def test_the_recipe_that_ran_is_written(finished: Path) -> None:
    assert Recipe.read(finished / "recipe.yaml") == recipe()


def test_events_are_kept_as_json_lines(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    names = {row["event"] for row in rows}
    assert {"RunStarted", "StageStarted", "StepDone", "EpochDone", "StageDone", "RunDone"} <= names
    assert all(row["time"].endswith("+00:00") for row in rows)


def test_every_number_of_the_report_says_how_it_was_measured(finished: Path) -> None:
    report = Report.read(finished / "report" / "report.json")
    assert {m.subject for m in report.measurements} == {"network", "model.onnx"}
    attacked = [m for m in report.measurements if m.attack not in ("clean", "worst case", "8-bit pixels")]
    assert len(attacked) == 6
    for m in attacked:
        assert (m.norm, m.eps, m.count, m.seed) == ("linf", 0.05, 30, 0)
        assert {"steps", "restarts"} <= m.settings.keys() or m.access == "transfer"
    ways: dict[tuple[str, str], list[str]] = {(m.subject, m.attack): [] for m in attacked}
    for m in attacked:
        ways[m.subject, m.attack].append(m.access)
    assert all(
        found == (["white-box"] if subject == "network" else ["transfer", "white-box"])
        for (subject, _), found in ways.items()
    )
    worst = report.measured("network", "worst")
    clean = report.measured("network", "clean")
    assert worst is not None
    assert clean is not None
    assert all(worst.correct <= m.correct <= clean.correct for m in attacked if m.subject == "network")


def test_inspect_tells_what_will_be_pruned_and_what_stays(tmp_path: Path) -> None:
    inspection = compressor(tmp_path / "a", recipe=recipe(ignore=["classifier"])).inspect()
    assert [part.name for part in inspection.frozen] == ["classifier"]
    assert inspection.frozen[0].reason == "ignored by 'classifier'"
    stem = inspection.sites[0]
    assert (stem.name, stem.units, stem.removed, stem.weights, stem.macs) == ("stem", 72, 36, 72, 72 * 81)
    assert "classifier" in str(inspection)
    channels = compressor(tmp_path / "b", recipe=recipe(pattern="channel")).inspect()
    assert any(len(row.layers) > 1 for row in channels.sites)


def test_an_export_elsewhere_leaves_the_run_as_it_was(finished: Path, tmp_path: Path) -> None:
    run = compressor(finished, resume=True)
    written = run.export(robustcompress.formats.Onnx(style="dense"), tmp_path / "dense.onnx")
    assert written.path == tmp_path / "dense.onnx"
    assert written.style == "dense"
    assert written.size_bytes == written.dense_size_bytes
    with pytest.raises(ConfigError, match=r"unknown format 'onxx'. Did you mean 'onnx'"):
        run.export("onxx")


def test_an_export_into_the_run_is_what_the_next_evaluation_judges(tmp_path: Path) -> None:
    stages = ("pretrain", "prune", "finetune", "compact")
    compressor(tmp_path / "run", recipe=recipe(stages=stages)).compress()
    written = compressor(tmp_path / "run", resume=True).export(robustcompress.formats.Onnx(style="dense"))
    report = compressor(tmp_path / "run", resume=True).evaluate()
    (judged,) = report.files
    assert bare_sha256(written.path) == written.sha256  # what was found was added, nothing else
    assert hashlib.sha256(written.path.read_bytes()).hexdigest() == judged.sha256 != written.sha256
    written.path.write_bytes(written.path.read_bytes() + b"\0")
    with pytest.raises(StorageError, match="changed since it was proven equal"):
        compressor(tmp_path / "run", resume=True).evaluate()
    written.path.unlink()
    with pytest.raises(StorageError, match=r"model\.onnx: was exported but is gone"):
        compressor(tmp_path / "run", resume=True).evaluate()
    compressor(tmp_path / "run", resume=True).export()
    assert compressor(tmp_path / "run", resume=True).evaluate().files[0].style == "compact"
    weights = compressor(tmp_path / "run", resume=True).export(robustcompress.formats.Safetensors())
    report = compressor(tmp_path / "run", resume=True).evaluate()
    assert [file.name for file in report.files] == ["model.onnx", "model.safetensors"]
    assert {item.subject for item in report.measurements} == {"network", "model.onnx"}
    assert hashlib.sha256(weights.path.read_bytes()).hexdigest() == weights.sha256
    (tmp_path / "run" / "export" / "export.json").write_text("{")
    with pytest.raises(StorageError, match=r"export\.json is not valid JSON"):
        compressor(tmp_path / "run", resume=True)


class Wide(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise IndexError("no such layer")


class NotANumber(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3] * float("nan")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Wide(), DataError, r"must return logits \[batch, classes\]; got \[8, 1, 9, 9\]"),
        (Broken(), ModelError, "cannot be called with images .* IndexError: no such layer"),
        (NotANumber(), ModelError, "returns NaN or infinite logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(81, 2)), DataError, "label 2 is out of range"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_at_once(
    model: nn.Module, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        compressor(tmp_path / "run", model=model)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no network: pass model="):
        Compressor(None, recipe=recipe(), train=bars(30, 0), run_dir=tmp_path / "a")
    with pytest.raises(ConfigError, match="no data: pass train="):
        Compressor(Residual(), recipe=recipe(), run_dir=tmp_path / "b")


def test_a_factory_is_imported_only_if_allowed(tmp_path: Path) -> None:
    chosen = recipe(model="torch.nn:Identity")
    with pytest.raises(ConfigError, match="--allow-import"):
        Compressor(None, recipe=chosen, train=bars(30, 0), run_dir=tmp_path / "a")
    with pytest.raises(DataError, match="must return logits"):
        Compressor(None, recipe=chosen, train=bars(30, 0), run_dir=tmp_path / "a", allow_import=True)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Residual().state_dict(), path)
    with pytest.raises(StorageError, match=r"Pickles .* can run code"):
        compressor(tmp_path / "run", recipe=recipe(weights=str(path)))


def test_a_damaged_weights_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"no safetensors")
    with pytest.raises(StorageError, match=r"weights\.safetensors: cannot be read as safetensors"):
        compressor(tmp_path / "run", recipe=recipe(weights=str(path)))


def test_an_iterable_without_validation_is_refused(tmp_path: Path) -> None:
    batches = list(bars(60, 0).batches(16))
    with pytest.raises(DataError, match="no validation data was given and list cannot be split"):
        compressor(tmp_path / "run", train=batches)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StorageError, match="run"):
        compressor(tmp_path / "run")


def test_a_file_in_the_folders_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="run"):
        compressor(tmp_path / "run")


def test_labels_that_go_wrong_late_stop_the_run_in_good_order(tmp_path: Path) -> None:
    class Late:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from bars(32, 0).batches(16)
            yield torch.rand(2, 1, 9, 9), torch.tensor([0, 7])

    with pytest.raises(DataError, match=r"training step 3: label 7 is out of range"):
        compressor(tmp_path / "run", train=Late(), validation=bars(20, 2)).compress()
    assert not (tmp_path / "run" / "stages").exists()


def test_untrained_weights_are_warned_of(tmp_path: Path) -> None:
    chosen = recipe(model={"kind": "small_cnn"}, stages=["prune"])
    said: list[Event] = []
    Compressor(None, recipe=chosen, train=bars(30, 0), run_dir=tmp_path, sinks=[said.append], progress=False)
    assert any(isinstance(event, Notice) and "freshly drawn weights" in event.message for event in said)


def test_a_compressor_can_go_on_after_it_was_stopped(tmp_path: Path) -> None:
    steps = 0

    def interrupt(event: Event) -> None:
        nonlocal steps
        if isinstance(event, StepDone):
            steps += 1
            if steps == 3:
                os.kill(os.getpid(), signal.SIGINT)

    run = compressor(tmp_path / "run", sinks=[interrupt])
    with pytest.raises(InterruptedRunError):
        run.pretrain()
    assert run.pretrain().network is not None


def test_noise_inside_a_dataset_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    class Noisy(Dataset[tuple[Tensor, Tensor]]):
        images = bars(40, 0)

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            pixels = self.images.images[index].float() / 255
            return (pixels + 0.05 * torch.rand_like(pixels)).clamp(0, 1), self.images.labels[index]

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    settings: dict[str, Any] = {"train": Noisy(), "recipe": recipe(stages=["pretrain"])}
    whole = compressor(tmp_path / "whole", **settings).compress().network
    with pytest.raises(InterruptedRunError):
        compressor(tmp_path / "run", sinks=[interrupt], **settings).compress()
    said: list[Event] = []
    resumed = compressor(tmp_path / "run", resume=True, sinks=[said.append], **settings).compress().network
    assert_same(whole, resumed)
    assert not [event for event in said if isinstance(event, Notice)]
