"""Whole runs whose masks come from gradients, move while weights train, or follow N:M and block patterns."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import InterruptedRunError
from robustcompress.events import Event, StepDone
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.first_masks import first_scores, training_robust
from robustcompress.storage.artifact import load_artifact
from tests.pipeline.conftest import Residual, compressor, recipe

TO_COMPACT = ["pretrain", "prune", "finetune", "compact"]
BIRD = {"kind": "flying_bird", "update_steps": 2}
PLUS = {**BIRD, "plus": True, "plus_after": 0.0, "plus_images": 40}


def context_of(folder: Path, **changes: Any) -> Context:
    return compressor(folder, recipe=recipe(**changes))._context


def layers(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.weight.detach()
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("score", ["snip", "taylor", BIRD, PLUS], ids=str)
def test_a_run_keeps_what_the_sparsity_says(tmp_path: Path, score: Any) -> None:
    made = compressor(tmp_path / "run", recipe=recipe(score=score, stages=TO_COMPACT))
    network = made.compress().network
    plus = isinstance(score, dict) and "plus" in score
    finetuned = load_artifact(tmp_path / "run" / "stages" / "finetune").tensors
    weights = [finetuned[f"{name}.weight"] for name in layers(network)]
    removed = sum(int((weight == 0).sum()) for weight in weights)
    units = sum(weight.numel() for weight in weights)
    assert removed >= round(0.5 * units) if plus else removed == round(0.5 * units)
    kept = sum(int(torch.count_nonzero(weight)) for weight in layers(network).values())
    assert kept <= units - removed  # what only dead channels read is gone too
    pruned = load_artifact(tmp_path / "run" / "stages" / "prune")
    trained = bool(pruned.metrics["history"])
    assert trained is isinstance(score, dict)
    assert not [name for name in pruned.extra_tensors if name.startswith("moves.")]
    # What masks remove is zero in the artifact of masks that moved, before it is finetuned.
    if trained:
        for name, mask in pruned.extra_tensors.items():
            if name.startswith("mask."):
                assert not bool(pruned.tensors[f"{name.removeprefix('mask.')}.weight"][~mask].any())


def test_two_of_four_weights_are_left_in_every_group(tmp_path: Path) -> None:
    network = compressor(tmp_path / "run", recipe=recipe(pattern="n_m", stages=TO_COMPACT)).compress().network
    found = layers(network)
    for name, weight in found.items():
        rows = weight.movedim(1, -1)
        if rows.shape[-1] % 4:
            assert name == "stem"
            assert bool(weight.all())
        else:
            assert bool(((rows.reshape(-1, 4) != 0).sum(1) == 2).all()), name


def test_blocks_go_as_a_whole(tmp_path: Path) -> None:
    pattern = {"kind": "block", "height": 4, "width": 2}
    network = (
        compressor(tmp_path / "run", recipe=recipe(pattern=pattern, stages=TO_COMPACT)).compress().network
    )
    weight = layers(network)["second"]
    tiles = weight.reshape(2, 4, 4, 2, 3, 3).movedim((1, 3), (-2, -1)).flatten(-2) != 0
    assert torch.equal(tiles.all(-1), tiles.any(-1))
    assert 0 < int(tiles.any(-1).sum()) < tiles[..., 0].numel()


@pytest.mark.parametrize("pattern", ["unstructured", "channel", "block", "n_m"])
@pytest.mark.parametrize("score", ["learned", "magnitude", "snip", "taylor"])
def test_every_score_serves_every_pattern(tmp_path: Path, pattern: str, score: str) -> None:
    stage = {"epochs": 1, "lr": 0.1, "batch_size": 30}
    changes = {"pattern": pattern, "score": score, "stages": ["prune", "compact"], "prune": stage}
    made = compressor(tmp_path / "run", model=Residual(width=16), recipe=recipe(**changes))
    network = made.compress().network
    pruned = load_artifact(tmp_path / "run" / "stages" / "prune")
    assert pruned.sparsity
    for name, counts in pruned.sparsity.items():
        mask = pruned.extra_tensors[f"mask.{name}"]
        assert int(mask.sum()) == counts["kept"] == round(0.5 * counts["size"])
    assert bool(network(torch.rand(2, 1, 9, 9)).isfinite().all())


@pytest.mark.parametrize("score", [BIRD, PLUS], ids=["plain", "plus"])
def test_a_run_that_was_stopped_while_masks_move_goes_on_to_the_same_result(
    score: dict[str, Any], tmp_path: Path
) -> None:
    stage = {"epochs": 4, "lr": 0.1, "batch_size": 16}
    chosen = recipe(score=score, prune=stage, stages=["prune"], checkpoint_steps=1)

    def interrupt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    whole = compressor(tmp_path / "whole", recipe=chosen).compress().network.state_dict()
    with pytest.raises(InterruptedRunError):
        compressor(tmp_path / "run", recipe=chosen, sinks=[interrupt]).compress()
    resumed = compressor(tmp_path / "run", recipe=chosen, resume=True).compress().network.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    masks = [load_artifact(tmp_path / run / "stages" / "prune").extra_tensors for run in ("whole", "run")]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_first_scores_are_measured_drawn_or_left_to_the_score(tmp_path: Path) -> None:
    context = context_of(tmp_path / "a", score="learned")
    assert first_scores(context) is None
    drawn = first_scores(context_of(tmp_path / "b", score=BIRD))
    again = first_scores(context_of(tmp_path / "c", score=BIRD))
    other = first_scores(context_of(tmp_path / "d", score=BIRD, seed=1))
    assert drawn is not None
    assert again is not None
    assert other is not None
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn, other, strict=True))
    one, many = (
        first_scores(context_of(tmp_path / f"e{count}", score={"kind": "taylor", "batches": count}))
        for count in (1, 5)
    )
    assert one is not None
    assert many is not None
    assert all(bool((scores >= 0).all()) for scores in many)
    assert not torch.equal(one[0], many[0])


def test_robust_accuracy_on_training_images_is_of_as_many_as_asked_for(tmp_path: Path) -> None:
    context = context_of(tmp_path / "run")
    context.model.eval()
    with torch.no_grad():
        for parameter in context.model.parameters():
            parameter.zero_()
        context.model.get_submodule("classifier").get_parameter("bias").copy_(torch.tensor([1.0, 0.0, 0.0]))
    labels = torch.cat([labels for _, labels in context.train.in_order()])[:20]
    # A network that always answers 0, whatever the attack does.
    assert training_robust(context, 20) == int((labels == 0).sum()) / 20
    assert all(parameter.grad is None for parameter in context.model.parameters())


def test_gradients_are_those_of_the_stages_own_objective_and_teacher(tmp_path: Path) -> None:
    compressor(tmp_path / "teacher", recipe=recipe(stages=["pretrain"])).compress()
    folder = str(tmp_path / "teacher" / "stages" / "pretrain")
    stage = {"epochs": 1, "lr": 0.1, "batch_size": 16, "objective": {"kind": "ard", "steps": 1}}
    taught = first_scores(context_of(tmp_path / "a", score="snip", prune=stage, teacher=folder))
    plain = first_scores(context_of(tmp_path / "b", score="snip"))
    assert taught is not None
    assert plain is not None
    assert not torch.equal(taught[0], plain[0])
