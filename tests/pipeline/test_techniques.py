"""Whole runs with free adversarial training, perturbed and averaged weights; hidden robust sub-networks."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from robustcompress.compressor import Compressor
from robustcompress.events import Event, StepDone
from robustcompress.recipe import Recipe, with_changes
from robustcompress.storage.artifact import load_artifact
from tests.pipeline.conftest import compressor, recipe

TO_COMPACT = ["pretrain", "prune", "finetune", "compact"]


@pytest.mark.parametrize("score", ["learned", {"kind": "flying_bird", "update_steps": 2}], ids=str)
def test_a_run_with_every_technique_keeps_the_sparsity_asked_for(tmp_path: Path, score: Any) -> None:
    said: list[Event] = []
    stage = {"epochs": 3, "lr": 0.1, "batch_size": 16}
    changes: dict[str, Any] = {
        "objective": {"kind": "free", "replays": 2},
        "awp": {"gamma": 0.01},
        "averaging": {"decay": 0.9},
        "score": score,
        "stages": TO_COMPACT,
        **dict.fromkeys(("pretrain", "prune", "finetune"), stage),
    }
    compressor(tmp_path / "run", recipe=recipe(**changes), sinks=[said.append]).compress()
    pruned = load_artifact(tmp_path / "run" / "stages" / "prune")
    finetuned = load_artifact(tmp_path / "run" / "stages" / "finetune")
    masks = {k.removeprefix("mask."): v for k, v in pruned.extra_tensors.items() if k.startswith("mask.")}
    assert masks
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed == round(0.5 * sum(mask.numel() for mask in masks.values()))
    for name, mask in masks.items():
        assert not bool(finetuned.tensors[f"{name}.weight"][~mask].any())
    # 54 training images are four batches; three epochs are two passes of two steps on each.
    steps = [event.step for event in said if isinstance(event, StepDone)]
    assert steps == [*range(1, 17)] * 3


def test_a_recipes_technique_holds_where_a_stage_says_nothing() -> None:
    made = recipe(
        awp={"gamma": 0.01},
        averaging={"decay": 0.9},
        prune={"awp": {"gamma": 0}},
        finetune={"averaging": {"kind": "mean"}},
    )
    assert made.settings_of("pretrain").awp == made.awp
    assert made.settings_of("pretrain").averaging == made.averaging
    pruning = made.settings_of("prune").awp
    assert pruning is not None
    assert pruning.gamma == 0
    finetuning = made.settings_of("finetune").averaging
    assert finetuning is not None
    assert finetuning.kind == "mean"
    assert made.settings_of("finetune").epochs == made.finetune.epochs
    assert Recipe.from_yaml(made.to_yaml()) == made


def hidden(**changes: Any) -> Recipe:
    values = Recipe.preset("hidden-robust").model_dump(mode="json")
    return Recipe.from_values(with_changes(values, changes))


def test_a_hidden_sub_network_withstands_what_the_network_around_it_does_not(tmp_path: Path) -> None:
    changes = {
        "stages": ["pretrain", "prune", "finetune"],
        "data.train_size": 500,
        "data.test_size": 50,
        "pretrain.epochs": 6,
        "prune.epochs": 6,
        "objective.steps": 3,
        "validation": {"fraction": 0.3, "attack": {"kind": "pgd", "steps": 5}},
    }
    Compressor(recipe=hidden(**changes), run_dir=tmp_path / "run", progress=False).compress()
    stages = tmp_path / "run" / "stages"
    dense, pruned, last = (load_artifact(stages / name) for name in ("pretrain", "prune", "finetune"))
    for name, tensor in dense.tensors.items():
        assert torch.equal(pruned.tensors[name], tensor), name
        mask = last.extra_tensors.get(f"mask.{name.removesuffix('.weight')}")
        assert torch.equal(last.tensors[name], tensor if mask is None else tensor * mask), name
    before, after = (cast("Any", a.metrics["selected"])["validation_robust"] for a in (dense, pruned))
    assert after > before + 0.1
