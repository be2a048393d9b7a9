"""What every objective promises, and the values and gradients of each against outside oracles."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress import families
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Moment, Objective, StepView
from robustcompress.training.objectives.natural import Natural
from robustcompress.training.objectives.pgd import Pgd
from robustcompress.training.objectives.trades import Trades

KINDS = families.kinds(Objective.family)
WITHOUT_THREAT = {"smoothing"}  # Gaussian noise has no bound, and its certificate wants it unclipped
THREATS = (Threat(norm="linf", eps=0.1), Threat(norm="l2", eps=0.5))
Array = npt.NDArray[np.float64]


def _network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return network.double()


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(6) % 4


def teacher_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a network of the same kind with other weights, in eval mode."""
    other = copy.deepcopy(network).eval().requires_grad_(False)
    for parameter in other.parameters():
        parameter.mul_(-0.7)
    return other


class Watched:
    """A network as an objective sees it, with a record of what it was asked."""

    def __init__(
        self,
        network: nn.Module,
        *,
        threat: Threat = THREATS[0],
        seed: int = 0,
        frozen: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network = network.train()
        self.learning_inputs: list[Tensor] = []
        self.frozen_inputs: list[Tensor] = []
        self.constant = frozen or {
            name: tensor.detach().clone() for name, tensor in network.state_dict().items()
        }
        self.view = StepView(
            learning=self._learn,
            frozen=self._freeze,
            model=network,
            tensors=dict(network.named_parameters()),
            threat=threat,
            generator=torch.Generator().manual_seed(seed),
            moment=Moment(epoch=0, epochs=1, step=0, steps=1),
            teacher=teacher_of(network),
        )

    def _learn(self, images: Tensor) -> Tensor:
        self.learning_inputs.append(images.detach().clone())
        logits: Tensor = self.network.train()(images)
        return logits

    def _freeze(self, images: Tensor) -> Tensor:
        self.frozen_inputs.append(images.detach().clone())
        self.network.eval()
        logits = functional_call(self.network, dict(self.constant), (images,))
        self.network.train()
        assert isinstance(logits, Tensor)
        return logits


@pytest.mark.parametrize("kind", KINDS)
def test_settings_survive_yaml(kind: str) -> None:
    objective = Objective.find(kind)
    assert Objective.find(yaml.safe_load(yaml.safe_dump(objective.model_dump()))) == objective


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Objective.find({"kind": kind, "bata": 3})


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_a_finite_scalar_whose_gradient_reaches_every_parameter(
    kind: str, threat: Threat
) -> None:
    network = _network()
    watched = Watched(network, threat=threat)
    loss = Objective.find(kind).loss(watched.view, *_batch())
    assert loss.shape == ()
    assert bool(loss.isfinite())
    assert all(parameter.grad is None for parameter in network.parameters())
    loss.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
    last = network.get_parameter("4.weight").grad
    assert last is not None
    assert float(last.abs().sum()) > 0


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WITHOUT_THREAT])
def test_the_network_learns_from_images_of_the_threat_only(kind: str, threat: Threat) -> None:
    images, labels = _batch()
    watched = Watched(_network(), threat=threat)
    Objective.find(kind).loss(watched.view, images, labels)
    assert watched.learning_inputs
    for learnt in watched.learning_inputs:
        assert bool(threat.contains(learnt, images).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_decides_and_nothing_global_does(kind: str) -> None:
    objective, watched = Objective.find(kind), [Watched(_network(), seed=3) for _ in range(2)]
    state = torch.get_rng_state()
    losses = [objective.loss(one.view, *_batch()).item() for one in watched]
    assert losses[0] == losses[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_labels_stay_as_they_are(kind: str) -> None:
    images, labels = _batch()
    Objective.find(kind).loss(Watched(_network()).view, images, labels)
    assert torch.equal(images, _batch()[0])
    assert torch.equal(labels, _batch()[1])
    assert not images.requires_grad


@pytest.mark.parametrize(("objective", "updates"), [(Natural(), 1), (Pgd(), 1), (Trades(), 2)], ids=str)
def test_batch_statistics_move_once_for_each_batch_learnt_from(objective: Objective, updates: int) -> None:
    network = _network()
    objective.loss(Watched(network).view, *_batch())
    assert int(network.get_buffer("1.num_batches_tracked")) == updates


def test_natural_is_the_mean_cross_entropy() -> None:
    network, (images, labels) = _network(), _batch()
    loss = Natural().loss(Watched(network).view, images, labels)
    expected = -network(images).softmax(1)[torch.arange(6), labels].log().mean()
    torch.testing.assert_close(loss, expected)


# --- Linear models: attack and loss can be written down ---


class Linear(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.weight = nn.Parameter(torch.randn(classes, 6, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def _linear_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    weights: Array = powers / powers.sum(1, keepdims=True)
    return weights


def test_pgd_on_a_linear_model_learns_from_the_exact_worst_case() -> None:
    network, (images, labels) = Linear(2), _linear_batch()
    loss = Pgd(steps=4).loss(Watched(network).view, images, labels)
    x, w, y = images.numpy().reshape(5, 6), network.weight.detach().numpy(), labels.numpy()
    worst = np.clip(x - 0.1 * np.sign(w[y] - w[1 - y]), 0, 1)
    expected = -np.log(_softmax(worst @ w.T)[np.arange(5), y]).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_pgd_may_start_from_the_image_itself() -> None:
    images, labels = _linear_batch()
    first = []
    for random_start in (False, True):
        watched = Watched(Linear(2))
        Pgd(steps=1, random_start=random_start).loss(watched.view, images, labels)
        first.append(torch.equal(watched.frozen_inputs[0], images))
    assert first == [True, False]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_trades_equals_the_computation_by_hand(norm: str, steps: int) -> None:
    network, (images, labels) = Linear(), _linear_batch()
    threat = Threat.model_validate({"norm": norm, "eps": 0.2})
    watched = Watched(network, threat=threat, seed=7)
    loss = Trades(beta=6, steps=steps, step_size=0.11, start_noise=0.01).loss(watched.view, images, labels)

    x, w, y = images.numpy().reshape(5, 6), network.weight.detach().numpy(), labels.numpy()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    p = _softmax(x @ w.T)
    a = np.clip(x + 0.01 * noise.numpy().reshape(5, 6), 0, 1)
    for _ in range(steps):
        gradient = (_softmax(a @ w.T) - p) @ w  # of KL(p || softmax(w a)) by a
        if norm == "linf":
            a = np.clip(a + 0.11 * np.sign(gradient), x - 0.2, x + 0.2)
        else:
            d = a + 0.11 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True) - x
            a = x + d * np.minimum(1, 0.2 / np.linalg.norm(d, axis=1, keepdims=True))
        a = np.clip(a, 0, 1)
    q = _softmax(a @ w.T)
    cross_entropy = -np.log(p[np.arange(5), y]).mean()
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert divergence > 1e-3
    assert loss.item() == pytest.approx(cross_entropy + 6 * divergence, rel=1e-10)


def test_the_gradient_of_trades_goes_through_both_branches() -> None:
    network, (images, labels) = _network(), _batch()
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    objective = Trades(beta=3, steps=2)

    def loss() -> Tensor:
        # The attack keeps seeing the weights it began with, so that only the two branches move.
        return objective.loss(Watched(network, frozen=start).view, images, labels)

    loss().backward()
    parameters = dict(network.named_parameters())
    for name, index in [("4.weight", (1, 7)), ("0.weight", (2, 0, 1, 1)), ("1.bias", (0,)), ("4.bias", (3,))]:
        parameter = parameters[name]
        assert parameter.grad is not None
        around = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter[index] += step
            around.append(loss().item())
            with torch.no_grad():
                parameter[index] -= step
        assert parameter.grad[index].item() == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5)


def test_trades_without_weight_or_radius_is_natural_training() -> None:
    natural = Natural().loss(Watched(_network()).view, *_batch()).item()
    assert Trades(beta=0).loss(Watched(_network()).view, *_batch()).item() == pytest.approx(natural)
    still = Threat(eps=0)
    assert Trades().loss(Watched(_network(), threat=still).view, *_batch()).item() == pytest.approx(natural)


def test_trades_asks_for_the_clean_logits_once_and_attacks_before_it_learns() -> None:
    watched = Watched(_network())
    Trades(steps=10).loss(watched.view, *_batch())
    assert len(watched.frozen_inputs) == 11
    assert len(watched.learning_inputs) == 2
    assert torch.equal(watched.learning_inputs[0], _batch()[0])
    assert sum(torch.equal(seen, _batch()[0]) for seen in watched.frozen_inputs) == 1


@pytest.mark.parametrize("kind", ["pgd", "trades"])
def test_longer_attacks_raise_the_loss(kind: str) -> None:
    losses = [
        Objective.find({"kind": kind, "steps": steps, "step_size": 0.02})
        .loss(Watched(_network()).view, *_batch())
        .item()
        for steps in (1, 3, 10)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[2]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("pgd", {"steps": 0}),
        ("pgd", {"step_size": 0}),
        ("trades", {"beta": -1}),
        ("trades", {"steps": 0}),
        ("trades", {"step_size": "0/255"}),
        ("trades", {"start_noise": 0}),
    ],
)
def test_settings_out_of_range_are_refused(kind: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Objective.find({"kind": kind, **wrong})
