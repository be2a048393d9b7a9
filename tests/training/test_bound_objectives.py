"""Training on bounds: losses in closed form on linear networks, schedules, gradients, what it achieves."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.robustness.bounds.counting import certified_counts
from robustcompress.robustness.bounds.crown import crown_ibp_margins
from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat
from robustcompress.training.bound_training import GrowingRadius
from robustcompress.training.objectives import Moment, Objective, StepView
from robustcompress.training.objectives.crown_ibp import CrownIbp
from robustcompress.training.objectives.ibp import Ibp
from robustcompress.training.objectives.mixtrain import MixTrain
from robustcompress.training.objectives.mtl_ibp import MtlIbp
from robustcompress.training.objectives.natural import Natural
from robustcompress.training.objectives.sabr import Sabr
from robustcompress.training.step import Stepper
from tests.training.test_step import Bench

Array = npt.NDArray[np.float64]
EPS = 0.1
KINDS = ("ibp", "crown_ibp", "mixtrain", "sabr", "mtl_ibp")


def _view(
    network: nn.Module,
    *,
    at: float = 1.0,
    eps: float = EPS,
    seed: int = 5,
    rows: slice | None = None,
    batch: int = 0,
    attacked: nn.Module | None = None,
) -> StepView:
    """Return a view of a step after the fraction ``at`` of its stage."""
    frozen = copy.deepcopy(attacked or network).eval().requires_grad_(False)
    return StepView(
        learning=network.train(),
        frozen=frozen,
        model=network,
        tensors=dict(network.named_parameters()),
        threat=Threat(eps=eps),
        generator=torch.Generator().manual_seed(seed),
        moment=Moment(epoch=int(100 * at), epochs=100, step=int(1000 * at), steps=1000),
        rows=rows,
        batch=batch,
    )


def _randomise(network: nn.Module, size: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return network.double()


def _linear(classes: int = 3) -> nn.Module:
    return _randomise(nn.Sequential(nn.Flatten(), nn.Linear(6, classes)))


def _rectified() -> nn.Module:
    layers = (
        nn.Conv2d(1, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.LeakyReLU(0.1),
        nn.Linear(5, 3),
    )
    return _randomise(nn.Sequential(*layers), 0.6)


def _batch(classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64), torch.arange(5) % classes


# --- Closed forms: on a linear network every bound is exact ---


def _cross_entropy(logits: Array, labels: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: Array = -np.log(powers[np.arange(len(logits)), labels] / powers.sum(1))
    return found


class ByHand:
    """A linear network's worst margins over boxes, in NumPy."""

    def __init__(self, classes: int = 3) -> None:
        self.weight, self.bias = (p.detach().numpy() for p in _linear(classes).parameters())
        images, labels = _batch(classes)
        self.images, self.labels = images.numpy().reshape(5, 6), labels.numpy()

    def clean(self, points: Array | None = None) -> Array:
        at = self.images if points is None else points
        return _cross_entropy(at @ self.weight.T + self.bias, self.labels)

    def worst(self, lower: Array, upper: Array) -> Array:
        centre, radius = (upper + lower) / 2, (upper - lower) / 2
        margins = np.zeros((5, len(self.bias)))
        for row, label in enumerate(self.labels):
            difference = self.weight[label] - self.weight
            margins[row] = difference @ centre[row] - np.abs(difference) @ radius[row]
            margins[row] += self.bias[label] - self.bias
        return _cross_entropy(-margins, self.labels)

    def box(self, eps: float) -> tuple[Array, Array]:
        return np.clip(self.images - eps, 0, 1), np.clip(self.images + eps, 0, 1)

    def corner(self, eps: float) -> Array:
        """Return the worst image of two classes."""
        other = self.weight[1 - self.labels] - self.weight[self.labels]
        found: Array = np.clip(self.images + eps * np.sign(other), 0, 1)
        return found


# warmup 0.2, ramp 0.5: (progress, fraction of the radius)
SCHEDULE = [(0.0, 0.0), (0.2, 0.0), (0.3, 0.2), (0.45, 0.5), (0.7, 1.0), (0.9, 1.0)]


@pytest.mark.parametrize(("at", "grown"), SCHEDULE)
@pytest.mark.parametrize("kind", ["ibp", "crown_ibp"])
def test_the_loss_on_a_linear_network_mixes_the_clean_and_the_exact_worst_case(
    kind: str, at: float, grown: float
) -> None:
    shares = {"kappa_start": 0.9, "kappa_end": 0.3}
    objective = Objective.find({"kind": kind, "warmup": 0.2, "ramp": 0.5, **shares})
    loss = objective.loss(_view(_linear(), at=at), *_batch())
    by_hand, kappa = ByHand(), 0.9 - 0.6 * grown
    worst = by_hand.worst(*by_hand.box(grown * EPS))
    expected = (kappa * by_hand.clean() + (1 - kappa) * worst).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_radius_is_zero_then_grows_linearly_then_stays(kind: str) -> None:
    objective = Objective.find({"kind": kind, "warmup": 0.2, "ramp": 0.5})
    assert isinstance(objective, GrowingRadius)
    for at, grown in SCHEDULE:
        moment = Moment(epoch=0, epochs=1, step=int(1000 * at), steps=1000)
        assert objective.grown(moment) == pytest.approx(grown, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_ramp_the_radius_is_the_threats_from_the_start(kind: str) -> None:
    objective = Objective.find({"kind": kind, "ramp": 0})
    assert isinstance(objective, GrowingRadius)
    assert objective.grown(Moment(epoch=0, epochs=1, step=0, steps=9)) == 1.0


@pytest.mark.parametrize("at", [0.0, 0.3, 0.6])
def test_crown_ibp_mixes_its_bound_with_the_interval_bound(at: float) -> None:
    network, (images, labels) = _rectified(), _batch()
    loss = CrownIbp(ramp=0.6, beta_start=0.8, beta_end=0.2).loss(_view(network, at=at), images, labels)
    boxed = propagate(trace_network(network), {}, *Threat(eps=EPS * at / 0.6).box(images))
    beta = 0.8 - 0.6 * at / 0.6
    margins = beta * crown_ibp_margins(boxed, labels) + (1 - beta) * interval_margins(boxed, labels)
    torch.testing.assert_close(loss, F.cross_entropy(-margins, labels))


def test_crown_ibp_ends_as_interval_bound_propagation_without_a_clean_loss() -> None:
    ibp = Ibp(kappa_start=0, kappa_end=0)
    losses = [objective.loss(_view(_rectified()), *_batch()) for objective in (CrownIbp(), ibp)]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("ratio", [0.2, 0.7, 1.0])
def test_sabr_takes_the_exact_worst_case_of_a_small_box_around_the_worst_image(ratio: float) -> None:
    loss = Sabr(ratio=ratio).loss(_view(_linear(2)), *_batch(2))
    by_hand, size = ByHand(2), ratio * EPS
    inner = np.clip(by_hand.corner(EPS), *by_hand.box(EPS - size))
    expected = by_hand.worst(np.clip(inner - size, 0, 1), np.clip(inner + size, 0, 1)).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    # On a linear network the worst image lies in the small box too: nothing is lost.
    assert loss.item() == pytest.approx(by_hand.clean(by_hand.corner(EPS)).mean(), rel=1e-12)


def test_sabrs_box_lies_within_the_threat() -> None:
    objective, (images, labels) = Sabr(ratio=0.3), _batch()
    lower, upper = objective.box(_view(_rectified()), images, labels)
    least, most = Threat(eps=EPS).box(images)
    assert bool((lower >= least - 1e-12).all() and (upper <= most + 1e-12).all())
    assert float((upper - lower).max()) == pytest.approx(2 * 0.3 * EPS)


@pytest.mark.parametrize(("alpha", "factor"), [(0.0, 1.0), (0.3, 1.0), (0.3, 2.0), (1.0, 1.0)])
def test_mtl_ibp_mixes_the_exact_worst_case_with_the_worst_image(alpha: float, factor: float) -> None:
    loss = MtlIbp(alpha=alpha, attack_factor=factor).loss(_view(_linear(2)), *_batch(2))
    by_hand = ByHand(2)
    attacked = by_hand.clean(by_hand.corner(factor * EPS))
    expected = (alpha * by_hand.worst(*by_hand.box(EPS)) + (1 - alpha) * attacked).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_mixtrain_adds_the_weighted_worst_case_of_the_images_it_draws() -> None:
    objective = MixTrain(samples=2, probability=1, weight=0.5, growth=1)
    by_hand = ByHand()
    clean, worst = by_hand.clean(), by_hand.worst(*by_hand.box(EPS))
    possible = {(i, j): clean.mean() + 0.5 * (worst[i] + worst[j]) / 2 for i in range(5) for j in range(i)}
    drawn = set()
    for seed in range(40):
        loss = objective.loss(_view(_linear(), seed=seed), *_batch()).item()
        drawn |= {pair for pair, value in possible.items() if loss == pytest.approx(value, rel=1e-10)}
        assert any(loss == pytest.approx(value, rel=1e-10) for value in possible.values())
    assert len(drawn) >= 8  # of 10 pairs


def test_mixtrain_of_all_images_is_the_clean_loss_and_the_worst_case() -> None:
    by_hand = ByHand()
    expected = by_hand.clean().mean() + 0.5 * by_hand.worst(*by_hand.box(EPS)).mean()
    objective = MixTrain(samples=99, probability=1, weight=0.5, growth=1)
    assert objective.loss(_view(_linear()), *_batch()).item() == pytest.approx(expected, rel=1e-12)


def test_mixtrain_leaves_the_bounds_out_as_often_as_asked() -> None:
    clean = ByHand().clean().mean()
    objective = MixTrain(probability=0.3)
    losses = [objective.loss(_view(_linear(), seed=seed), *_batch()).item() for seed in range(200)]
    share = sum(loss != pytest.approx(clean, rel=1e-12) for loss in losses) / 200
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 200))


def test_mixtrains_weight_is_that_of_hydra() -> None:
    objective = MixTrain()
    for epoch in range(100):
        moment = Moment(epoch=epoch, epochs=100, step=7 * epoch, steps=700)
        expected = min(0.1 * 2.5 ** math.floor(max(0, epoch - 15) / 5), 50)
        assert objective.weight_at(moment) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weight": 0.0}, 0.0),
        ({"growth": 1.0}, 0.1),
        ({"largest": 0.05}, 0.05),
        ({"every": 1e-6, "growth": 1e200}, 50.0),  # no overflow
    ],
)
def test_mixtrains_weight_stays_within_its_settings(settings: dict[str, float], expected: float) -> None:
    last = Moment(epoch=0, epochs=1, step=999, steps=1000)
    assert MixTrain.model_validate(settings).weight_at(last) == pytest.approx(expected)


def test_mixtrain_trains_on_no_looser_bounds_than_intervals() -> None:
    network, (images, labels) = _rectified(), _batch()
    clean = F.cross_entropy(network(images), labels)
    everything = MixTrain(samples=5, probability=1, weight=1, growth=1)
    worst = everything.loss(_view(network), images, labels) - clean
    intervals = Ibp(kappa_start=0, kappa_end=0).loss(_view(network), images, labels)
    assert clean.item() < worst.item() < intervals.item()


# --- What all have in common ---


def _plain(kind: str) -> Objective:
    """Return the objective so set that without a radius it is the clean loss."""
    settings: dict[str, dict[str, Any]] = {"mixtrain": {"samples": 5, "probability": 1, "weight": 0.0}}
    return Objective.find({"kind": kind, **settings.get(kind, {})})


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_radius_the_loss_is_the_clean_one(kind: str) -> None:
    network, (images, labels) = _rectified(), _batch()
    loss = _plain(kind).loss(_view(network, eps=0.0), images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(network(images), labels))


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_radius_has_a_larger_loss(kind: str) -> None:
    objective = Objective.find({"kind": kind, **({"probability": 1} if kind == "mixtrain" else {})})
    losses = [objective.loss(_view(_rectified(), eps=eps), *_batch()).item() for eps in (0.0, 0.03, 0.1, 0.3)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.parametrize("at", [0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_finite_differences(kind: str, at: float) -> None:
    network, (images, labels) = _rectified(), _batch()
    settings = {"samples": 3, "probability": 1, "weight": 1.0} if kind == "mixtrain" else {}
    objective, attacked = Objective.find({"kind": kind, **settings}), copy.deepcopy(network)

    def loss() -> Tensor:
        return objective.loss(_view(network, at=at, attacked=attacked), images, labels)

    loss().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        flat, gradient = parameter.detach().view(-1), parameter.grad.view(-1)
        for index in range(0, len(flat), 3):
            around = []
            for change in (1e-6, -1e-6):
                flat[index] += change
                around.append(loss().item())
                flat[index] -= change
            numeric = (around[0] - around[1]) / 2e-6
            assert gradient[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up_to_the_whole(kind: str) -> None:
    network, (images, labels) = _rectified(), _batch()
    # One image is drawn: at least one part has none of them.
    objective = Objective.find({"kind": kind, **({"probability": 1} if kind == "mixtrain" else {})})
    for seed in range(4):
        whole = objective.loss(_view(network, seed=seed), images, labels).item()
        parts = [
            objective.loss(_view(network, seed=seed, rows=rows, batch=5), images[rows], labels[rows]).item()
            * len(labels[rows])
            for rows in (slice(0, 1), slice(1, 3), slice(3, 5))
        ]
        assert sum(parts) / 5 == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_learn_from_it_in_the_prune_stage(kind: str) -> None:
    settings = {"probability": 1} if kind == "mixtrain" else {}
    objective = Objective.find({"kind": kind, "ramp": 0, **settings})
    whole, divided = (
        Bench(objective=objective, norm=False),
        Bench(objective=objective, norm=False, micro_batches=3),
    )
    losses = [whole.step(), divided.step()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    gradients = whole.gradients()
    scores = [gradient for name, gradient in gradients.items() if name.startswith("score")]
    assert len(scores) == 4
    for name, gradient in gradients.items():
        assert bool(gradient.isfinite().all())
        torch.testing.assert_close(gradient, divided.gradients()[name], atol=1e-10, rtol=1e-7)
    assert all(float(score.abs().sum()) > 0 for score in scores)


def test_bounds_are_those_of_the_masked_weights() -> None:
    network, (images, labels) = _rectified(), _batch()
    masked: Mapping[str, Tensor] = {
        name: parameter.detach() * (parameter.detach() > 0) for name, parameter in network.named_parameters()
    }
    other = copy.deepcopy(network)
    other.load_state_dict(dict(masked))
    view = _view(other)
    # The module's own weights are the raw ones, as in a stage with masks.
    mixed = replace(view, model=network, tensors=masked)
    for kind in KINDS:
        objective = Objective.find({"kind": kind, **({"probability": 1} if kind == "mixtrain" else {})})
        view.generator.manual_seed(5)
        expected = objective.loss(view, images, labels)
        view.generator.manual_seed(5)
        torch.testing.assert_close(objective.loss(mixed, images, labels), expected)


@pytest.mark.parametrize("kind", ["ibp", "sabr"])
def test_clean_images_move_the_statistics_once_and_bounds_read_them(kind: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    images, labels = _batch()
    loss = Objective.find({"kind": kind, "kappa_start": 0, "kappa_end": 0}).loss(
        _view(network, eps=0.0), images, labels
    )
    assert int(network.get_buffer("1.num_batches_tracked")) == 1
    torch.testing.assert_close(
        network.get_buffer("1.running_mean"), 0.1 * images.flatten(1).mean(0), check_dtype=False
    )
    torch.testing.assert_close(loss, F.cross_entropy(network.eval()(images), labels))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "ibp", "warmup": 0.5, "ramp": 0.6},
        {"kind": "mixtrain", "warmup": 0.9},
        {"kind": "sabr", "ratio": 0},
        {"kind": "sabr", "step_size": 0},
        {"kind": "mtl_ibp", "alpha": 1.5},
        {"kind": "mtl_ibp", "attack_factor": 0},
        {"kind": "mixtrain", "samples": 0},
        {"kind": "mixtrain", "probability": 2},
        {"kind": "mixtrain", "growth": 0.5},
        {"kind": "mixtrain", "every": 0},
        {"kind": "crown_ibp", "beta_start": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=list(wrong)[1]):
        Objective.find(wrong)


# --- What it is for ---


def _toy() -> tuple[Tensor, Tensor]:
    """Return images of 16 pixels: two tell the classes apart by far, the others by less than the threat."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (120,), generator=generator)
    corners = torch.tensor([[0.2, 0.2], [0.8, 0.3], [0.4, 0.85]])
    plain = corners[labels] + 0.05 * torch.randn(120, 2, generator=generator)
    signs = torch.randn(3, 14, generator=generator).sign()
    faint = 0.5 + 0.08 * signs[labels]
    return torch.cat([plain, faint], 1).clamp(0, 1).reshape(120, 1, 4, 4), labels


def _certified_share(objective: Objective, steps: int = 100) -> float:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
    )
    threat, (images, labels) = Threat(eps=0.15), _toy()
    stepper = Stepper(
        network,
        None,
        objective=objective,
        threat=threat,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.02),
        device=torch.device("cpu"),
        precision="fp32",
        clip_gradient=None,
        seed=0,
    )
    for step in range(steps):
        stepper.step(images, labels, Moment(epoch=0, epochs=1, step=step, steps=steps))
    _, certified, count = certified_counts(network, {}, [(images, labels)], threat=threat, device="cpu")
    return certified / count


def test_training_on_bounds_certifies_what_natural_training_does_not() -> None:
    natural = _certified_share(Natural())
    found = {kind: _certified_share(Objective.find(kind)) for kind in ("ibp", "crown_ibp", "sabr", "mtl_ibp")}
    found["mixtrain"] = _certified_share(MixTrain(samples=20, weight=1.0))
    assert natural < 0.5, natural
    assert all(share > natural + 0.3 for share in found.values()), found
