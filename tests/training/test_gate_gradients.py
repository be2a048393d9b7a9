"""Gradients of gates against finite differences of the objective itself, in float64."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.data import ImageSet
from robustcompress.errors import DataError, TrainingError
from robustcompress.pruning.patterns import Pattern, Site
from robustcompress.pruning.scores import GradientScore, Score
from robustcompress.robustness.threat import Threat
from robustcompress.training.batches import Batch, MemorySource, Source
from robustcompress.training.distributed import Workers
from robustcompress.training.gate_gradients import GateGradients, GateMeasurement
from robustcompress.training.objectives import Objective, StepView
from robustcompress.training.settings import StepSettings

KINDS = ["unstructured", "n_m", "block", "channel"]
THREAT = Threat(eps=0.1)


class Net(nn.Module):
    """Computes in float64: a central difference is then good to nine digits."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU(),
            nn.Dropout(dropout), nn.Flatten(), nn.Linear(16, 3),
        ).double()  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images.double())
        return logits


def network(**settings: Any) -> Net:
    torch.manual_seed(0)
    return Net(**settings)


def source(count: int = 20, batch_size: int = 8) -> MemorySource:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return MemorySource(ImageSet(pixels, labels, ("a", "b", "c"), "noise"), batch_size=batch_size, seed=0)


def measurement(objective: str | Objective = "natural", **changes: Any) -> GateMeasurement:
    warned: list[str] = []
    settings: dict[str, Any] = {
        "source": source(),
        "objective": objective if isinstance(objective, Objective) else Objective.find(objective),
        "threat": THREAT,
        "seed": 4,
        "device": torch.device("cpu"),
        "precision": "fp32",
        "warn": warned.append,
        **changes,
    }
    return GateMeasurement(**settings)


def sites_of(kind: str, model: nn.Module) -> tuple[Site, ...]:
    images = torch.rand(2, 1, 6, 6)
    return Pattern.find(kind).plan(model, images, ()).sites


def batches(count: int) -> list[Batch]:
    """Return the first batches of the source, epoch after epoch."""
    found = [batch for epoch in range(3) for batch in source().epoch(epoch)]
    return found[:count]


def differences(model: Net, site: Site, count: int) -> Tensor:
    """Return dL/dgate of every unit in every batch by central differences, ``[batches, *shape]``."""
    step = 1e-5
    twin = copy.deepcopy(model).train()  # its statistics move; batches are normalised by their own
    parameters = dict(model.named_parameters())

    def loss(gate: Tensor, batch: Batch) -> float:
        tensors: dict[str, Tensor] = dict(parameters)
        site.apply(tensors, gate)
        return float(F.cross_entropy(torch.func.functional_call(twin, tensors, (batch[0],)), batch[1]))

    found = torch.zeros(count, site.units, dtype=torch.float64)
    with torch.no_grad():
        for row, batch in enumerate(batches(count)):
            for unit in range(site.units):
                nudge = torch.zeros(site.units, dtype=torch.float64)
                nudge[unit] = step
                up, down = ((1 + sign * nudge).reshape(site.shape) for sign in (1, -1))
                found[row, unit] = (loss(up, batch) - loss(down, batch)) / (2 * step)
    return found.reshape(count, *site.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_finite_differences(kind: str) -> None:
    model = network()
    sites = sites_of(kind, model)
    for site, found in zip(sites, measurement().run(model, sites, 4), strict=True):
        expected = differences(model, site, 4)
        torch.testing.assert_close(found.mean, expected.mean(0), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.mean_square, expected.square().mean(0), rtol=1e-6, atol=1e-9)
        for score, closed_form in (
            ("snip", expected.mean(0).abs()),
            ("taylor", expected.square().mean(0)),
        ):
            made = Score.find(score)
            assert isinstance(made, GradientScore)
            scores = made.from_gradients(found.mean, found.mean_square)
            torch.testing.assert_close(scores, closed_form, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_a_weights_gate_is_gradient_times_weight_under_the_attack() -> None:
    """Closed form: dL/dgate = dL/dw * w, of the very loss that a training step has."""
    model = network()
    sites = sites_of("unstructured", model)
    seen: list[Tensor] = []

    class Watched(Objective):
        def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
            inner = Objective.find({"kind": "pgd", "steps": 2})
            start = view.random_point(images)
            seen.append((start - images).abs().max())
            return inner.loss(view, images, labels)

    (found,) = (measurement(Watched()).run(model, sites[-1:], 1),)
    assert float(seen[0]) > 0.05  # attacked
    plain = measurement().run(model, sites[-1:], 1)
    assert not torch.allclose(found[0].mean, plain[0].mean, rtol=1e-2)
    weight = model.get_parameter("layers.7.weight").detach()
    ratio = found[0].mean / weight  # dL/dw: summed over classes it is 0, as softmax cannot be shifted
    torch.testing.assert_close(ratio.sum(0), torch.zeros(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_network_stays_as_it_is_bit_for_bit() -> None:
    model = network(dropout=0.3)
    model.get_parameter("layers.0.bias").requires_grad_(False)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    sites = sites_of("channel", model)
    state = torch.get_rng_state()
    found = measurement("trades").run(model, sites, 3)
    assert any(bool(gradients.mean.any()) for gradients in found)
    assert torch.equal(torch.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def same(first: list[GateGradients], second: list[GateGradients]) -> bool:
    return all(
        torch.equal(a.mean, b.mean) and torch.equal(a.mean_square, b.mean_square)
        for a, b in zip(first, second, strict=True)
    )


def test_the_same_seed_gives_the_same_gradients_and_another_does_not() -> None:
    model = network(dropout=0.3)
    sites = sites_of("unstructured", model)
    first = measurement("trades").run(model, sites, 3)
    torch.rand(100)
    assert same(first, measurement("trades").run(model, sites, 3))
    assert not same(first, measurement("trades", seed=5).run(model, sites, 3))


def test_a_radius_that_grows_has_grown() -> None:
    model = network()
    sites = sites_of("unstructured", model)
    moments: list[tuple[int, int, int]] = []

    class Watched(Objective):
        def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
            moments.append((view.moment.epoch, view.moment.step, view.moment.steps))
            return F.cross_entropy(view.learning(images), labels)

    measurement(Watched(), epochs=5).run(model, sites, 2)
    assert moments == [(4, 13, 15), (4, 14, 15)]  # three steps an epoch


def test_batches_go_on_in_the_next_epoch_and_parts_add_up() -> None:
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.layers[1] = nn.Identity()  # batch normalisation would see each part by itself
    sites = sites_of("unstructured", model)
    whole = measurement().run(model, sites, 5)
    parts = measurement(step=StepSettings(micro_batches=3, compile=True)).run(model, sites, 5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-9, atol=1e-12)
    assert not same(whole, measurement().run(model, sites, 3))


class Infinite(Objective):
    """A finite loss whose gradient is not."""

    def loss(self, view: StepView, images: Tensor, labels: Tensor) -> Tensor:
        return (view.learning(images) * 0).sum().sqrt()


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = network()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(TrainingError, match=r"gradients at 'layers\.0' are not finite\. Use precision fp32"):
        measurement(Infinite()).run(model, sites_of("unstructured", model), 2)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


class Empty(Source):
    """A loader that was read already."""

    exact = False

    def steps(self) -> int:
        return 1

    def epoch(self, number: int, *, skip: int = 0, workers: Workers | None = None) -> Iterator[Batch]:
        return iter(())

    def in_order(self) -> Iterable[Batch]:
        return ()

    def split(self, fraction: float, *, seed: int) -> tuple[Source, Source]:
        return self, self

    def rebatched(self, batch_size: int) -> Source:
        return self

    def fingerprint(self) -> str:
        return ""

    @property
    def count(self) -> int | None:
        return None


def test_data_without_batches_are_refused() -> None:
    model = network()
    with pytest.raises(DataError, match=r"the data gave none\. Pass data that can be iterated again"):
        measurement(source=Empty()).run(model, sites_of("unstructured", model), 2)
