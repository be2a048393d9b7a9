from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcompress.data import ImageSet
from robustcompress.errors import DataError, InterruptedRunError, TrainingError
from robustcompress.events import EpochDone, Event, Events, Notice, StageStarted, StepDone
from robustcompress.pruning.budgets import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Unstructured
from robustcompress.pruning.scores import Learned
from robustcompress.robustness.bounds.counting import certified_counts
from robustcompress.robustness.threat import Threat
from robustcompress.training.batches import Batch, Source
from robustcompress.training.loop import Training, make_optimizer
from robustcompress.training.objectives import CrownIbp, Ibp, Natural, Objective, StepView, Trades
from robustcompress.training.records import Trained
from robustcompress.training.settings import StageSettings, ValidationSettings
from robustcompress.training.sources import as_source
from robustcompress.training.working import shared_copy

THREAT = Threat(eps=0.1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(4 * 16, 3),
    )


def data(count: int = 60) -> ImageSet:
    """Three classes that differ in which third of the image is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    images = torch.randint(80, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, :, :, 3 * label : 3 * label + 2] += 150
    return ImageSet(images, labels, ("left", "middle", "right"), "bars")


def masking_of(model: nn.Module, sparsity: float = 0.5) -> Masking:
    device = next(model.parameters()).device
    plan = Unstructured().plan(model, torch.zeros(1, 1, 8, 8, device=device), [])
    return Masking(
        plan.sites,
        score=Learned(),
        budget=Uniform(),
        sparsity=sparsity,
        parameters=dict(model.named_parameters()),
    )


def train(
    model: nn.Module,
    *,
    overrides: Masking | None = None,
    source: Source | None = None,
    objective: Objective | None = None,
    events: Events | None = None,
    **changes: Any,
) -> Trained:
    settings: dict[str, Any] = {"epochs": 3, "lr": 0.05, "batch_size": 16}
    settings.update(changes.pop("settings", {}))
    changes = {"precision": "fp32", "device": torch.device("cpu"), **changes}
    training, held_out = as_source(data(), batch_size=16, seed=5).split(0.2, seed=0)
    return Training(
        stage="pretrain",
        model=model,
        overrides=overrides,
        source=source or training,
        validation=list(held_out.in_order()),
        objective=objective or Trades(steps=2),
        threat=THREAT,
        validation_threat=THREAT,
        settings=StageSettings(**settings),
        judging=ValidationSettings.model_validate({"attack": {"kind": "pgd", "steps": 3}}),
        seed=7,
        events=events or Events(),
        **changes,
    ).run()


def tensors(model: nn.Module, masking: Masking | None = None) -> dict[str, Tensor]:
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return found | ({f"mask {k}": v.clone() for k, v in masking.state().items()} if masking else {})


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_training_learns_an_easy_task() -> None:
    model = network()
    trained = train(model, settings={"epochs": 12, "lr": 0.1})
    assert trained.selected is not None
    assert trained.selected.validation_clean == 1.0
    assert trained.selected.validation_robust is not None
    assert trained.selected.validation_robust >= 0.9
    assert trained.history[-1].loss < trained.history[0].loss


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    first, second = network(), network()
    train(first)
    torch.rand(100)
    train(second)
    assert_same(tensors(first), tensors(second))


def test_training_leaves_the_global_generator_alone() -> None:
    model = network()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(model, settings={"epochs": 1})
    assert torch.equal(torch.rand(1), expected)


def test_only_what_requires_gradients_learns_in_the_prune_stage() -> None:
    model = network()
    before = tensors(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("1."))
    masking = masking_of(model)
    first_scores = [scores.detach().clone() for scores in masking.scores]
    train(model, overrides=masking)
    after = tensors(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for scores, old, mask in zip(masking.scores, first_scores, masking.masks, strict=True):
        assert not torch.equal(scores, old)
        assert int((~mask).sum()) == round(0.5 * mask.numel())
        # Scores of removed weights move too: a removed weight can come back.
        assert bool(((scores != old) & ~mask).any())


def test_a_run_broken_off_at_any_step_ends_with_the_same_weights(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, Masking]:
        model = network()
        return model, masking_of(model)

    whole_model, whole_masking = make()
    for optimizer in ("sgd", "adam"):
        whole_model, whole_masking = make()
        settings = {"optimizer": optimizer, "epochs": 3}
        whole = train(whole_model, overrides=whole_masking, settings=settings)
        for stop_at in (1, 3, 5, 8):
            folder = tmp_path / f"{optimizer}-{stop_at}"
            steps = 0

            def stop(limit: int = stop_at) -> bool:
                nonlocal steps
                steps += 1
                return steps >= limit

            model, masking = make()
            with pytest.raises(InterruptedRunError, match="stopped in pretrain, epoch"):
                train(model, overrides=masking, settings=settings, checkpoint=folder, stop=stop)
            model, masking = make()
            trained = train(model, overrides=masking, settings=settings, checkpoint=folder)
            assert_same(tensors(model, masking), tensors(whole_model, whole_masking))
            assert [r.loss for r in trained.history] == [r.loss for r in whole.history]
            assert [r.best for r in trained.history] == [r.best for r in whole.history]


def test_an_iterable_restarts_its_epoch_and_says_so(tmp_path: Path) -> None:
    batches: list[Batch] = list(as_source(data(), batch_size=16, seed=0).in_order()) * 4
    said: list[Event] = []
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 6

    source = as_source(batches, batch_size=1, seed=0)
    with pytest.raises(InterruptedRunError):
        train(network(), source=source, checkpoint=tmp_path, stop=stop, settings={"epochs": 2})
    source = as_source(batches, batch_size=1, seed=0)
    train(network(), source=source, checkpoint=tmp_path, events=Events([said.append]), settings={"epochs": 2})
    warnings = [event.message for event in said if isinstance(event, Notice)]
    assert len(warnings) == 1
    assert "cannot be taken up in its middle" in warnings[0]
    assert next(event for event in said if isinstance(event, StageStarted)).resumed_at == 4


class Exploding(Objective):
    at: int = 4

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        scale = float("nan") if view.moment.step == self.at else 1.0
        return view.learning(images).square().mean() * scale


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5 \(epoch 2\)\. Lower the learning"):
        train(model, objective=Exploding(), checkpoint=tmp_path)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
    resumed = network()
    train(resumed, objective=Natural(), checkpoint=tmp_path)  # takes up the end of epoch 1


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Infinite(Objective):
        def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
            return view.learning(images).sum() * 1e30

    with pytest.raises(TrainingError, match=r"no longer finite|the loss is"):
        train(network(), objective=Infinite(), checkpoint=tmp_path, settings={"lr": 1e30, "epochs": 1})
    assert not any(tmp_path.iterdir())


def test_the_best_epoch_by_robust_accuracy_goes_on() -> None:
    seen: list[dict[str, Tensor]] = []
    model = network()

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            seen.append(tensors(model))

    trained = train(model, events=Events([watch]), settings={"epochs": 5, "lr": 0.3})
    keys = [(record.validation_robust, record.validation_clean) for record in trained.history]
    best = keys.index(max(keys))
    assert trained.selected == trained.history[[r.best for r in trained.history].index(True, best)]
    assert_same(tensors(model), seen[best])


def test_the_epoch_with_the_most_certified_images_goes_on() -> None:
    model = network()
    settings = {"epochs": 5, "lr": 0.1, "select": "certified"}
    trained = train(model, objective=Ibp(ramp=0.5), settings=settings)
    assert trained.selected is not None
    keys = [(record.validation_certified, record.validation_clean) for record in trained.history]
    assert trained.selected == trained.history[keys.index(max(keys))]
    assert [record.validation_robust for record in trained.history] == [None] * 5
    _, held_out = as_source(data(), batch_size=16, seed=5).split(0.2, seed=0)
    clean, certified, count = certified_counts(
        model, {}, list(held_out.in_order()), threat=THREAT, device=torch.device("cpu")
    )
    assert trained.selected.validation_certified == certified / count > 0.5
    assert trained.selected.validation_clean == clean / count


def test_masked_weights_are_certified_while_scores_learn() -> None:
    model = network()
    masking = masking_of(model)
    trained = train(model, overrides=masking, objective=CrownIbp(ramp=0), settings={"select": "certified"})
    assert trained.selected is not None
    masking.bake(model)
    _, held_out = as_source(data(), batch_size=16, seed=5).split(0.2, seed=0)
    _, certified, count = certified_counts(
        model, {}, list(held_out.in_order()), threat=THREAT, device=torch.device("cpu")
    )
    assert trained.selected.validation_certified == certified / count


def test_last_takes_the_last_epoch_and_judges_only_that() -> None:
    trained = train(network(), settings={"select": "last"})
    assert [record.validation_clean is None for record in trained.history] == [True, True, False]
    assert trained.selected == trained.history[-1]


def test_events_tell_every_step_and_epoch() -> None:
    said: list[Event] = []
    train(network(), events=Events([said.append]), settings={"epochs": 2})
    assert [event.step for event in said if isinstance(event, StepDone)] == list(range(1, 7))
    assert [event.epoch for event in said if isinstance(event, EpochDone)] == [1, 2]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))], r"label 3 is out of range: .* 3 classes"),
        ([(torch.rand(4, 1, 8, 8) + 0.5, torch.tensor([0, 1, 2, 0]))], r"pixels must be in \[0, 1\]"),
    ],
)
def test_a_bad_batch_stops_the_training(batches: Sequence[Batch], message: str) -> None:
    good = (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    source = as_source([good, *batches], batch_size=1, seed=0)
    with pytest.raises(DataError, match=f"training step 2: .*{message}"):
        train(network(), source=source)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(TrainingError, match="nothing learns in this stage"):
        make_optimizer([], StageSettings(epochs=1, lr=0.1))


def test_a_shared_copy_follows_the_original() -> None:
    model = network()
    copy = shared_copy(model)
    assert not copy.training
    assert model.training
    with torch.no_grad():
        model[0].weight.add_(1.0)  # type: ignore[index]  # Sequential, by construction
    model(torch.rand(8, 1, 8, 8))  # moves the statistics
    model.eval()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(model(images), copy(images))


def test_clipping_bounds_the_update() -> None:
    free, clipped = network(), network()
    start = torch.cat([p.detach().flatten() for p in network().parameters()])
    plain = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "select": "last"}
    train(free, settings=plain)
    train(clipped, settings={**plain, "clip_gradient": 1e-3})
    moved = torch.cat([p.detach().flatten() for p in clipped.parameters()]) - start
    assert float(moved.norm()) <= 3 * 0.05 * 1e-3 * 1.01
    assert float((torch.cat([p.detach().flatten() for p in free.parameters()]) - start).norm()) > 1e-2


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_learn_the_same_task(precision: str) -> None:
    exact, model = network(), network()
    train(exact, settings={"epochs": 6, "lr": 0.1})
    trained = train(model, precision=precision, settings={"epochs": 6, "lr": 0.1})
    assert trained.selected is not None
    assert trained.selected.validation_clean is not None
    assert trained.selected.validation_clean >= 0.9
    assert all(tensor.dtype != torch.bfloat16 for tensor in model.state_dict().values())
    same = all(torch.equal(a, b) for a, b in zip(exact.parameters(), model.parameters(), strict=True))
    assert same == (precision == "tf32")  # TF32 changes nothing on a CPU, bf16 must change something


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_training_runs_on_a_gpu(precision: str) -> None:
    device = torch.device("cuda")
    model = network().to(device)
    masking = masking_of(model).to(device)
    source = as_source(data(), batch_size=16, seed=5, device=device)
    train(model, overrides=masking, source=source, device=device, precision=precision)
    assert all(mask.device.type == "cuda" for mask in masking.masks)
