"""Averages of weights against the plain sums, over whole runs of the training loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcompress.errors import InterruptedRunError
from robustcompress.events import Event, Events, StepDone
from robustcompress.robustness.evaluation import robust_counts
from robustcompress.seeding import derive_seed
from robustcompress.training.averaging import Averaging
from robustcompress.training.settings import ValidationSettings
from robustcompress.training.sources import as_source
from tests.training.test_loop import THREAT, assert_same, data, masking_of, network, tensors, train

Course = list[dict[str, Tensor]]


def test_an_early_ema_forgets_faster_and_nothing_counts_before_the_start() -> None:
    ema = Averaging(decay=0.9, start=0.1)
    shares = [ema.share_of_new(step, 100) for step in range(100)]
    assert shares[:10] == [1.0] * 10
    assert shares[10:13] == pytest.approx([1 - 1 / 10, 1 - 2 / 11, 1 - 3 / 12])
    assert shares[99] == pytest.approx(0.1)
    mean = Averaging(kind="mean", start=0.1)
    assert [mean.share_of_new(step, 100) for step in (0, 10, 11, 12)] == [1.0, 1.0, 1 / 2, 1 / 3]


def test_a_start_between_two_steps_counts_from_the_next() -> None:
    mean = Averaging(kind="mean", start=0.25)
    assert [mean.share_of_new(step, 10) for step in (2, 3, 4)] == [1.0, 1.0, 1 / 2]


def course(averaging: Averaging | None) -> tuple[Course, list[float], dict[str, Tensor]]:
    """Train; return the weights after every step, the losses, and what the stage ends with."""
    model = network()
    steps: Course = []
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(tensors(model))
            losses.append(event.loss)

    settings = {"epochs": 3, "select": "last", "averaging": averaging}
    train(model, events=Events([listen]), settings=settings)
    return steps, losses, tensors(model)


def test_the_mean_is_the_mean_of_weights_and_statistics_and_training_does_not_notice() -> None:
    plain_steps, plain_losses, last = course(None)
    steps, losses, averaged = course(Averaging(kind="mean", start=0.5))
    assert losses == plain_losses
    for found, wanted in zip(steps, plain_steps, strict=True):
        assert_same(found, wanted)
    half = steps[-(-len(steps) // 2) :]
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            expected = torch.stack([step[name] for step in half]).mean(0)
            torch.testing.assert_close(tensor, expected, msg=name)
        else:
            assert torch.equal(tensor, last[name])
    assert not torch.equal(averaged["0.weight"], last["0.weight"])


def test_the_moving_average_is_the_weighted_sum_written_out() -> None:
    steps, _, averaged = course(Averaging(decay=0.6))
    weight = steps[0]["5.weight"].double()
    for count, step in enumerate(steps[1:], start=1):
        decay = min(0.6, (1 + count) / (10 + count))
        weight = decay * weight + (1 - decay) * step["5.weight"]
    torch.testing.assert_close(averaged["5.weight"].double(), weight, rtol=1e-5, atol=1e-7)


def test_epochs_are_judged_by_the_average() -> None:
    model = network()
    trained = train(model, settings={"epochs": 4, "averaging": Averaging(decay=0.95)})
    assert trained.selected is not None
    _, held_out = as_source(data(), batch_size=16, seed=5).split(0.2, seed=0)
    judging = ValidationSettings.model_validate({"attack": {"kind": "pgd", "steps": 3}})
    right, withstood, count = robust_counts(
        model,
        list(held_out.in_order()),
        threat=THREAT,
        attack=judging.attack,
        seed=derive_seed(7, "validation"),
        device=torch.device("cpu"),
    )
    assert trained.selected.validation_clean == right / count
    assert trained.selected.validation_robust == withstood / count


@pytest.mark.parametrize("learns", [False, True], ids=["finetune", "prune"])
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_run_broken_off_ends_with_the_same_average(learns: bool, stop_at: int, tmp_path: Path) -> None:
    settings = {"epochs": 3, "averaging": Averaging(decay=0.9)}

    def run(**changes: Any) -> dict[str, Tensor]:
        model = network()
        masking = masking_of(model)
        if learns:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith("1."))
        else:
            masking.freeze()
            masking.bake(model)
        train(model, overrides=masking, settings=settings, **changes)
        return tensors(model, masking)

    whole = run()
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_at

    with pytest.raises(InterruptedRunError):
        run(checkpoint=tmp_path, stop=stop)
    assert_same(run(checkpoint=tmp_path), whole)


def test_removed_weights_stay_removed_in_the_average() -> None:
    model = network()
    masking = masking_of(model)
    masking.freeze()
    masking.bake(model)
    train(model, overrides=masking, settings={"averaging": Averaging(decay=0.9)})
    for site, mask in zip(masking.sites, masking.masks, strict=True):
        weight = model.get_parameter(site.parameters[0])
        assert bool((weight[~mask] == 0).all())
        assert bool((weight[mask] != 0).all())


def test_masks_of_averaged_scores_have_exactly_the_sparsity_asked_for() -> None:
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("1."))
    before = tensors(model)
    masking = masking_of(model)
    settings = {"lr": 1.0, "averaging": Averaging(decay=0.9), "select": "last"}
    train(model, overrides=masking, settings=settings)
    assert torch.equal(model.get_parameter("0.weight"), before["0.weight"])
    for scores, mask in zip(masking.scores, masking.masks, strict=True):
        removed = int((~mask).sum())
        assert removed == round(0.5 * mask.numel())
        smallest = scores.detach().abs().flatten().sort().values
        assert bool((scores.detach().abs()[~mask] <= smallest[removed - 1]).all())


def test_scores_and_masks_come_back_after_each_epoch_is_judged() -> None:
    losses: list[list[float]] = []
    masks: list[dict[str, Tensor]] = []
    for averaging in (None, Averaging(decay=0.9)):
        model = network()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("1."))
        masking = masking_of(model)
        said: list[Event] = []
        settings = {"lr": 1.0, "averaging": averaging, "select": "last"}
        train(model, overrides=masking, settings=settings, events=Events([said.append]))
        losses.append([event.loss for event in said if isinstance(event, StepDone)])
        masks.append(masking.state())
    assert losses[0] == losses[1]
    assert any(not torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
