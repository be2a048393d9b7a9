"""FGSM-RS: its one step in closed form, and the watch for catastrophic overfitting."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from robustcompress.events import EpochDone, Event, Events, Notice
from robustcompress.robustness.threat import Threat
from robustcompress.training.collapse import CollapseWatch
from robustcompress.training.objectives import StepView
from robustcompress.training.objectives.fgsm_rs import FgsmRs
from tests.training.test_loop import assert_same, network, tensors, train
from tests.training.test_objectives import Linear, Watched

Action = Literal["stop", "warn", "ignore"]


def test_one_step_from_a_random_point_as_written_in_the_paper() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    network, threat = Linear(2), Threat(eps=0.1)
    watched = Watched(network, threat=threat, seed=6)
    loss = FgsmRs().loss(watched.view, images, labels)
    x, w, y = images.numpy().reshape(5, 6), network.weight.detach().numpy(), labels.numpy()
    draw = torch.rand(images.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    start = np.clip(x + 0.1 * (2 * draw.numpy().reshape(5, 6) - 1), 0, 1)
    moved = start - 0.125 * np.sign(w[y] - w[1 - y])  # the loss's gradient, up to positive factors
    moved = np.clip(np.clip(moved, x - 0.1, x + 0.1), 0, 1)
    margin = ((w[y] - w[1 - y]) * moved).sum(1)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-margin)).mean(), rel=1e-12)
    assert len(watched.frozen_inputs) == 1


def test_a_collapse_is_a_fall_below_the_best_by_more_than_the_drop() -> None:
    watch = CollapseWatch(drop=0.2, stop=True)
    assert watch.first([]) is None
    assert watch.first([None, 0.5, 0.31, None, 0.6]) is None
    assert watch.first([0.5, None, 0.4, 0.29, 0.0]) == 3
    assert watch.first([0.1, 0.0]) is None


def test_a_collapse_is_told_once() -> None:
    watch = CollapseWatch(drop=0.2, stop=True)
    assert watch.message([0.5]) == ""
    assert "fell from 50.0% to 10.0%. The stage ends" in watch.message([0.5, 0.1])
    assert watch.message([0.5, 0.1, 0.1]) == ""
    assert "Training goes on" in CollapseWatch(drop=0.2, stop=False).message([0.5, 0.1])


class Failing(FgsmRs):
    """Learns well, and from the fourth epoch on the wrong labels."""

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        return super().loss(view, images, labels if view.moment.epoch < 3 else (labels + 1) % 3)


@pytest.mark.parametrize("select", ["robust", "clean", "last"])
def test_collapse_ends_the_stage_with_an_epoch_from_before(select: str, tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    said: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, EpochDone):
            seen.append(tensors(model))
        if isinstance(event, Notice):
            said.append(event.message)

    model = network()
    settings = {"epochs": 8, "lr": 0.1, "select": select, "clip_gradient": 5.0, "schedule": "constant"}
    trained = train(
        model, objective=Failing(), events=Events([listen]), settings=settings, checkpoint=tmp_path
    )
    robust = [record.validation_robust or 0.0 for record in trained.history]
    assert 4 <= len(robust) < 8
    assert robust[-1] < max(robust[:-1]) - 0.2
    assert trained.selected is not None
    assert trained.selected.epoch < len(robust)
    assert_same(tensors(model), seen[trained.selected.epoch - 1])
    assert len(said) == 1
    assert "pretrain, epoch" in said[0]
    assert "catastrophic overfitting" in said[0]

    again = network()
    resumed = train(again, objective=Failing(), settings=settings, checkpoint=tmp_path)
    assert resumed.history == trained.history
    assert_same(tensors(again), tensors(model))


@pytest.mark.parametrize(("action", "notices"), [("warn", 1), ("ignore", 0)])
def test_collapse_may_be_told_only_or_not_at_all(action: Action, notices: int) -> None:
    said: list[Event] = []
    settings = {"epochs": 6, "lr": 0.1, "clip_gradient": 5.0, "schedule": "constant"}
    trained = train(
        network(), objective=Failing(collapse=action), events=Events([said.append]), settings=settings
    )
    assert len(trained.history) == 6
    assert sum(isinstance(event, Notice) for event in said) == notices


def test_a_course_without_collapse_is_left_alone() -> None:
    said: list[Event] = []
    trained = train(
        network(), objective=FgsmRs(), events=Events([said.append]), settings={"epochs": 8, "lr": 0.1}
    )
    assert len(trained.history) == 8
    assert trained.selected is not None
    assert (trained.selected.validation_robust or 0.0) >= 0.8
    assert not any(isinstance(event, Notice) for event in said)
