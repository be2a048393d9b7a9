"""Free adversarial training against Algorithm 1 of the paper, written out."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcompress.errors import InterruptedRunError
from robustcompress.events import EpochDone, Event, Events, StepDone
from robustcompress.training.batches import Batch
from robustcompress.training.carried import Carried
from robustcompress.training.objectives.free import Free
from robustcompress.training.settings import StageSettings, StepSettings
from robustcompress.training.sources import as_source
from tests.training.test_loop import THREAT, assert_same, data, network, tensors, train


class Exact(nn.Module):
    """Computes in float64, so that no sign hangs on the order of a sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.layers = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images.double())
        return logits


def batches() -> list[Batch]:
    """Two whole batches and one that is smaller."""
    found = list(as_source(data(), batch_size=24, seed=0).in_order())
    images, labels = torch.cat([batch[0] for batch in found]), torch.cat([batch[1] for batch in found])
    return [(images[a:b], labels[a:b]) for a, b in ((0, 24), (24, 48), (48, 60))]


def algorithm_1(model: nn.Module, *, passes: int, replays: int, lr: float) -> None:
    """Shafahi et al. 2019, with plain SGD."""
    delta = torch.zeros(24, 1, 8, 8)
    for _ in range(passes):
        for images, labels in batches():
            for _ in range(replays):
                rows = delta[: len(images)].clone().requires_grad_()
                loss = F.cross_entropy(model((images + rows).clamp(0, 1)), labels)
                gradients = torch.autograd.grad(loss, [rows, *model.parameters()])
                delta[: len(images)] = (
                    (rows + THREAT.eps * gradients[0].sign()).detach().clamp(-THREAT.eps, THREAT.eps)
                )
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients[1:], strict=True):
                        parameter.sub_(lr * gradient)


PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "select": "last", "lr": 0.05}


@pytest.mark.parametrize(("epochs", "passes"), [(4, 2), (3, 2), (2, 1)])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_training_is_the_algorithm_of_the_paper(epochs: int, passes: int, micro_batches: int) -> None:
    model, plain = Exact(), Exact()
    said: list[Event] = []
    train(
        model,
        objective=Free(replays=2),
        source=as_source(batches(), batch_size=1, seed=0),
        events=Events([said.append]),
        settings={**PLAIN, "epochs": epochs},
        step=StepSettings(micro_batches=micro_batches),
    )
    algorithm_1(plain, passes=passes, replays=2, lr=0.05)
    for found, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert sum(isinstance(event, StepDone) for event in said) == passes * 3 * 2
    assert sum(isinstance(event, EpochDone) for event in said) == passes


@pytest.mark.parametrize("stop_at", [1, 4, 5, 7, 9])
def test_a_run_broken_off_between_replays_ends_with_the_same_weights(stop_at: int, tmp_path: Path) -> None:
    settings = {"epochs": 6}  # two passes of three batches, the last of them smaller
    whole = network()
    train(whole, objective=Free(replays=3), settings=settings)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_at

    with pytest.raises(InterruptedRunError, match=f"step {stop_at}"):
        train(network(), objective=Free(replays=3), settings=settings, checkpoint=tmp_path, stop=stop)
    model = network()
    said: list[Event] = []
    train(
        model, objective=Free(replays=3), settings=settings, checkpoint=tmp_path, events=Events([said.append])
    )
    assert [e.step for e in said if isinstance(e, StepDone)] == list(range(stop_at + 1, 19))
    assert_same(tensors(model), tensors(whole))


def test_free_training_learns_to_withstand_an_attack() -> None:
    trained = train(network(), objective=Free(replays=4), settings={"epochs": 32, "lr": 0.1})
    assert trained.selected is not None
    assert (trained.selected.validation_robust or 0.0) >= 0.8
    assert len(trained.history) == 8


def test_epochs_and_warmup_are_divided_and_rounded_up() -> None:
    settings = StageSettings(epochs=10, lr=0.1, warmup_epochs=2.0)
    assert settings.divided(1) is settings
    divided = settings.divided(4)
    assert divided.epochs == 3
    assert divided.warmup_epochs == pytest.approx(0.6)
    assert StageSettings(epochs=0, lr=0.1).divided(4).epochs == 0


def test_carried_rows_grow_with_the_batch_and_begin_anew_with_other_images() -> None:
    carried = Carried()
    assert carried.state() == {}
    carried.fit(torch.zeros(2, 3), 2)
    carried.rows(slice(0, 2)).fill_(1.0)
    carried.fit(torch.zeros(1, 3), 1)  # a smaller batch forgets nothing
    carried.fit(torch.zeros(4, 3), 4)
    assert carried.rows(slice(0, 4)).sum(1).tolist() == [3.0, 3.0, 0.0, 0.0]
    other = Carried()
    other.restore(copy.deepcopy(carried.state()))
    assert torch.equal(other.rows(slice(0, 4)), carried.rows(slice(0, 4)))
    carried.fit(torch.zeros(1, 5), 1)
    assert carried.rows(slice(0, 1)).tolist() == [[0.0] * 5]
    other.restore({})
    assert other.state() == {}
