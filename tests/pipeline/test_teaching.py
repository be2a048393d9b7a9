"""Whom a run learns from: its own dense network, or the one that the recipe names."""

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from robustcompress import Compressor, Recipe, load
from robustcompress.errors import ConfigError, InterruptedRunError, StorageError
from robustcompress.events import Event, StepDone
from robustcompress.pipeline.rebuilding import build
from robustcompress.pipeline.teaching import identity_of
from robustcompress.storage.artifact import load_artifact, save_artifact
from tests.pipeline.conftest import Residual, bars, compressor, recipe
from tests.training.test_distributed import torchrun

ARD = {"kind": "ard", "steps": 2}
FINETUNE = {"epochs": 2, "lr": 0.05, "batch_size": 16, "objective": ARD}
AFTER = ["prune", "finetune", "compact"]
TRAINING = ["pretrain", "prune", "finetune"]


def taught(**changes: Any) -> Recipe:
    return recipe(**{"finetune": FINETUNE, "stages": ["pretrain", *AFTER], **changes})


def metrics(folder: Path, stage: str) -> Any:
    return load_artifact(folder / "stages" / stage).metrics


def assert_same(first: nn.Module, second: nn.Module) -> None:
    theirs = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that finetuned under ARD."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    compressor(folder, recipe=taught()).compress()
    return folder


def test_finetuning_learns_from_what_pretrain_made(run: Path) -> None:
    dense = load_artifact(run / "stages" / "pretrain")
    assert metrics(run, "finetune")["teacher"] == identity_of(dense.tensors)
    assert metrics(run, "prune")["teacher"] == ""
    assert not (run / "stages" / "start").exists()
    network = load(run / "artifact", model=Residual())
    kept = int(torch.count_nonzero(network.get_parameter("first.weight")))
    assert kept == round(0.5 * Residual().first.weight.numel())
    pixels, labels = next(iter(bars(30, 1).batches(30)))
    assert float((network(pixels).argmax(1) == labels).float().mean()) > 0.8


def test_the_teacher_makes_a_difference_and_is_named_by_its_folder(run: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(run / "stages" / "prune", masks)
    results: list[nn.Module] = []
    for name, teacher in (("own", run / "stages" / "pretrain"), ("other", run / "artifact")):
        asked = taught(weights=str(masks), teacher=str(teacher), stages=["finetune"])
        results.append(compressor(tmp_path / name, recipe=asked).compress().network)
    assert_same(results[0], load(run / "stages" / "finetune", model=Residual()))
    assert not torch.equal(results[0].get_parameter("first.weight"), results[1].get_parameter("first.weight"))


def test_scores_and_their_first_gradients_may_learn_from_the_teacher_too(run: Path, tmp_path: Path) -> None:
    asked = recipe(
        objective=ARD,
        teacher=str(run / "stages" / "pretrain"),
        score={"kind": "snip", "batches": 2},
        stages=["pretrain", *AFTER],
    )
    compressor(tmp_path / "run", recipe=asked).compress()
    expected = identity_of(load_artifact(run / "stages" / "pretrain").tensors)
    assert metrics(tmp_path / "run", "pretrain")["teacher"] == expected  # as in the paper: from scratch
    assert metrics(tmp_path / "run", "finetune")["teacher"] == expected


@pytest.mark.parametrize("teacher", [None, "named"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(
    teacher: str | None, run: Path, tmp_path: Path
) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage == "finetune" and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    copied = tmp_path / "teacher"
    shutil.copytree(run / "stages" / "pretrain", copied)
    asked = taught(teacher=str(copied)) if teacher else taught()
    folder = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match="stopped in finetune"):
        compressor(folder, recipe=asked, sinks=[interrupt]).compress()
    if teacher:
        original = copied.rename(tmp_path / "original")
        shutil.copytree(run / "artifact", copied)
        with pytest.raises(ConfigError, match="finetune was begun with the teacher"):
            compressor(folder, recipe=asked, resume=True).compress()
        shutil.rmtree(copied)
        original.rename(copied)
    compressor(folder, recipe=asked, resume=True).compress()
    assert_same(load(folder / "artifact", model=Residual()), load(run / "artifact", model=Residual()))


def test_between_stages_the_teacher_may_not_change_either(run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(run / "stages" / "pretrain", teacher)
    prune = {"epochs": 1, "lr": 0.1, "batch_size": 16, "objective": ARD}
    asked = taught(prune=prune, teacher=str(teacher))
    begun = compressor(tmp_path / "run", recipe=asked)
    begun.pretrain()
    begun.prune()
    shutil.rmtree(teacher)
    shutil.copytree(run / "artifact", teacher)
    with pytest.raises(ConfigError, match=r"prune learnt from the teacher .*; this one is"):
        compressor(tmp_path / "run", recipe=asked, resume=True).finetune()


def test_without_pretrain_the_teacher_is_the_network_that_the_run_began_with(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = Residual()
    path = tmp_path / "given.safetensors"
    save_file(given.state_dict(), path, metadata={"format": "pt"})
    asked = taught(weights=str(path), stages=AFTER)
    folder = tmp_path / "run"
    begun = compressor(folder, recipe=asked)
    begun.prune()
    expected = identity_of(given.state_dict())
    assert identity_of(load_artifact(folder / "stages" / "start").tensors) == expected
    compressor(folder, recipe=asked, resume=True).compress()
    assert metrics(folder, "finetune")["teacher"] == expected


def test_a_module_that_was_passed_is_its_own_teacher_whatever_is_passed_later(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = Residual()
    folder = tmp_path / "run"
    compressor(folder, model=given, recipe=taught(stages=AFTER)).prune()
    # Only the architecture of what is passed counts now.
    compressor(folder, model=Residual(), recipe=taught(stages=AFTER), resume=True).compress()
    assert metrics(folder, "finetune")["teacher"] == identity_of(given.state_dict())


def zoo(**changes: Any) -> dict[str, Any]:
    stage = {"epochs": 1, "lr": 0.1, "batch_size": 50}
    return {
        "model": "small_cnn",
        "data": {"kind": "fashion_mnist_mini", "train_size": 100, "test_size": 10},
        "threat": {"eps": 0.1},
        "objective": {"kind": "rslad", "steps": 1},
        "pretrain": stage,
        "prune": stage,
        "finetune": stage,
        "validation": {"attack": {"kind": "pgd", "steps": 1}},
        **changes,
    }


def begin(folder: Path, **changes: Any) -> Compressor:
    return Compressor(recipe=Recipe.from_values(zoo(**changes)), run_dir=folder, progress=False)


def test_pretraining_without_a_teacher_is_refused_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'rslad' learns from a robust network.*Set pretrain\.objective"):
        begin(tmp_path / "run").compress()
    assert not (tmp_path / "run" / "stages").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_fresh_weights_are_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no teacher: the run has no pretrain stage, and it begins with fre"
    ):
        begin(tmp_path / "run", stages=AFTER).compress()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_network_of_another_architecture_teaches_if_the_zoo_knows_it(tmp_path: Path) -> None:
    wide = begin(
        tmp_path / "wide", model={"kind": "small_cnn", "hidden": 20}, objective="natural", stages=["pretrain"]
    )
    teacher = wide.compress().artifact
    begin(tmp_path / "run", teacher=str(teacher), stages=["pretrain"]).compress()
    assert metrics(tmp_path / "run", "pretrain")["teacher"] == identity_of(load_artifact(teacher).tensors)


def test_a_pruned_network_at_the_start_is_no_teacher(run: Path, tmp_path: Path) -> None:
    asked = taught(weights=str(run / "stages" / "prune"), stages=["finetune"])
    with pytest.raises(ConfigError, match="no teacher: the run begins with the pruned network"):
        compressor(tmp_path / "a", recipe=asked).compress()
    asked = taught(teacher=str(run / "stages" / "prune"))
    with pytest.raises(
        ConfigError, match="is what a prune stage handed on: its masks are not in its weights"
    ):
        compressor(tmp_path / "b", recipe=asked).compress()


class Other(Residual):
    """Answers with five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 5)


def test_a_teacher_that_does_not_fit_is_refused_before_anything_trains(run: Path, tmp_path: Path) -> None:
    five = bars(60, 0)
    five = type(five)(five.images, five.labels, tuple("abcde"), "five")
    asked = taught(stages=["pretrain"])
    compressor(tmp_path / "five", model=Other(), train=five, test=None, recipe=asked).compress()
    asked = taught(teacher=str(tmp_path / "five" / "stages" / "pretrain"))
    with pytest.raises(ConfigError, match=r"teacher .* cannot be used: classifier"):
        compressor(tmp_path / "a", recipe=asked).compress()
    with pytest.raises(StorageError, match="holds no artifact"):
        compressor(tmp_path / "b", recipe=taught(teacher=str(tmp_path / "nowhere"))).compress()
    for name in "ab":
        assert not (tmp_path / name / "checkpoints").exists()


@pytest.mark.parametrize(
    ("classes", "scale", "message"),
    [(5, 1.0, r"finite logits \[8, 10\].*got \[8, 5\]"), (10, torch.inf, r"must return finite logits")],
)
def test_a_teacher_of_other_classes_or_without_finite_answers_is_refused(
    classes: int, scale: float, message: str, tmp_path: Path
) -> None:
    folder = begin(tmp_path / "t", stages=["pretrain"], objective="natural").pretrain().artifact
    artifact = load_artifact(folder)
    tensors = {
        name: scale * tensor[:classes] if name.startswith("classifier") else tensor
        for name, tensor in artifact.tensors.items()
    }
    save_artifact(dataclasses.replace(artifact, tensors=tensors), folder)
    with pytest.raises(ConfigError, match=message):
        begin(tmp_path / "run", teacher=str(folder)).compress()


def test_what_a_finished_run_learnt_from_is_not_asked_for_again(run: Path, tmp_path: Path) -> None:
    teacher, folder = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(run / "stages" / "pretrain", teacher)
    compressor(folder, recipe=taught(teacher=str(teacher))).compress()
    shutil.rmtree(teacher)
    compressor(folder, recipe=taught(teacher=str(teacher)), resume=True).compress()


def test_an_architecture_that_nobody_names_or_allows_is_not_built() -> None:
    with pytest.raises(ConfigError, match=r"run/a holds a network that is not of the zoo; pass model="):
        build({}, where=Path("run/a"), allow_import=True)
    with pytest.raises(
        ConfigError, match=r"was made with 'torch\.nn:Flatten', which loading will not import"
    ):
        build({"factory": "torch.nn:Flatten", "arguments": {}}, where=Path("run/a"), allow_import=False)
    made = build({"factory": "torch.nn:Flatten", "arguments": {}}, where=Path("run/a"), allow_import=True)
    assert isinstance(made, nn.Flatten)
    known = build({"kind": "small_cnn", "hidden": 20}, where="", allow_import=False)
    assert known.get_parameter("classifier.weight").shape == (10, 20)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo here")
def test_two_processes_learn_from_the_same_teacher(tmp_path: Path) -> None:  # 20 s
    stage = {"epochs": 1, "lr": 0.1, "batch_size": 50}
    values = zoo(
        objective="natural", finetune={**stage, "objective": {"kind": "rslad", "steps": 1}}, stages=TRAINING
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "run"
    done = torchrun("-m", "robustcompress", "run", str(tmp_path / "recipe.yaml"), "--out", str(out))
    assert done.returncode == 0, done.stderr
    dense = load_artifact(out / "stages" / "pretrain")
    assert metrics(out, "finetune")["teacher"] == identity_of(dense.tensors)


def test_an_identity_tells_names_shapes_dtypes_and_values_apart() -> None:
    base = torch.arange(6.0)
    others = [
        {"a": base},
        {"b": base},
        {"a": base.reshape(2, 3)},
        {"a": base.double()},
        {"a": base + 1},
        {"a": base, "b": base},
    ]
    assert len({identity_of(tensors) for tensors in others}) == len(others)
    assert identity_of({"a": base, "b": base + 1}) == identity_of({"b": base + 1, "a": base.clone()})
