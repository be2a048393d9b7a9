"""SmoothAdv against computations by hand on linear networks."""

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Moment, StepView
from robustcompress.training.objectives.smoothing import Smoothing
from robustcompress.training.step import Stepper

Array = npt.NDArray[np.float64]
L2 = Threat(norm="l2", eps=0.2)
SIGMA = 0.25


def _view(
    network: nn.Module,
    *,
    threat: Threat = L2,
    rows: slice | None = None,
    batch: int = 0,
    step: int = 0,
) -> StepView:
    return StepView(
        learning=network.train(),
        frozen=copy.deepcopy(network).eval().requires_grad_(False),
        model=network,
        tensors=dict(network.named_parameters()),
        threat=threat,
        generator=torch.Generator().manual_seed(5),
        moment=Moment(epoch=0, epochs=1, step=step, steps=10),
        rows=rows,
        batch=batch,
    )


def _case(classes: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, classes, dtype=torch.float64))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    # Far from black and white: nothing is clipped.
    images = 0.3 + 0.4 * torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64)
    return network, images, torch.arange(5) % classes


def _noise(samples: int) -> Array:
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(5, 1, 2, 3, generator=generator, dtype=torch.float64) for _ in range(samples)]
    return SIGMA * torch.stack(drawn).numpy().reshape(samples, 5, 6)


def _probabilities(points: Array, w: Array, b: Array) -> Array:
    powers = np.exp(points @ w.T + b)
    found: Array = powers / powers.sum(-1, keepdims=True)
    return found


@pytest.mark.parametrize("samples", [1, 4])
def test_two_classes_are_attacked_along_the_line_between_them(samples: int) -> None:
    network, images, labels = _case(2)
    w, b = (parameter.detach().numpy() for parameter in network.parameters())
    x, y = images.numpy().reshape(5, 6), labels.numpy()
    away = w[1 - y] - w[y]
    worst = x + 0.2 * away / np.linalg.norm(away, axis=1, keepdims=True)
    p = _probabilities(worst + _noise(samples), w, b)
    loss = Smoothing(form="smoothadv", samples=samples).loss(_view(network), images, labels)
    assert loss.item() == pytest.approx(-np.log(p[:, np.arange(5), y]).mean(), rel=1e-10)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_attack_climbs_the_loss_of_the_mean_probability(samples: int) -> None:
    network, images, labels = _case(3)
    w, b = (parameter.detach().numpy() for parameter in network.parameters())
    x, y, rows = images.numpy().reshape(5, 6), labels.numpy(), np.arange(5)
    noise, points = _noise(samples), images.numpy().reshape(5, 6)
    for _ in range(3):
        p = _probabilities(points + noise, w, b)
        own = p[:, rows, y]
        # d/dx -log mean_i p_iy = -sum_i p_iy (w_y - sum_k p_ik w_k) / sum_i p_iy
        gradient = -(own[..., None] * (w[y] - p @ w)).sum(0) / own.sum(0)[:, None]
        points = points + 0.09 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        length = np.linalg.norm(points - x, axis=1, keepdims=True)
        points = x + (points - x) * np.minimum(1, 0.2 / length)
    expected = -np.log(_probabilities(points + noise, w, b)[:, rows, y]).mean()
    objective = Smoothing(form="smoothadv", samples=samples, steps=3, step_size=0.09)
    assert objective.loss(_view(network), images, labels).item() == pytest.approx(expected, rel=1e-10)


def test_without_a_radius_it_learns_from_the_noisy_images() -> None:
    network, images, labels = _case(3)
    still = Threat(norm="l2", eps=0)
    losses = [
        Smoothing.model_validate({"form": form, "samples": 1}).loss(
            _view(network, threat=still), images, labels
        )
        for form in ("smoothadv", "gaussian")
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_the_radius_grows_over_the_ramp() -> None:
    network, images, labels = _case(3)
    objective = Smoothing(form="smoothadv", ramp=0.5)
    at = [objective.loss(_view(network, step=step), images, labels).item() for step in (0, 2, 5, 9)]
    half = Smoothing(form="smoothadv").loss(
        _view(network, threat=Threat(norm="l2", eps=0.2 * 2 / 5)), images, labels
    )
    assert at[0] < at[1] < at[2] == at[3]
    assert at[1] == pytest.approx(half.item(), rel=1e-10)


def test_parts_of_a_batch_get_the_noise_of_the_whole() -> None:
    network, images, labels = _case(3)
    objective = Smoothing(form="smoothadv", samples=3)
    whole = objective.loss(_view(network), images, labels).item()
    parts = [
        objective.loss(_view(network, rows=rows, batch=5), images[rows], labels[rows]).item()
        * len(labels[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert sum(parts) / 5 == pytest.approx(whole, rel=1e-10)


def test_all_draws_pass_at_once_and_move_the_statistics_once() -> None:
    _, images, labels = _case(3)
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6, dtype=torch.float64))
    Smoothing(form="smoothadv", samples=3).loss(_view(network), images, labels)
    assert int(network.get_buffer("1.num_batches_tracked")) == 1


def test_a_step_learns_from_it() -> None:
    network, images, labels = _case(3)
    before = copy.deepcopy(network.state_dict())
    stepper = Stepper(
        network,
        None,
        objective=Smoothing(form="smoothadv", samples=3),
        threat=L2,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        device=torch.device("cpu"),
        precision="fp32",
        clip_gradient=None,
        seed=0,
    )
    losses = [stepper.step(images, labels, Moment(epoch=0, epochs=1, step=i, steps=20)) for i in range(20)]
    assert losses[-1] < losses[0]
    assert not torch.equal(before["1.weight"], network.get_parameter("1.weight"))


def test_an_linf_threat_is_refused() -> None:
    network, images, labels = _case(3)
    with pytest.raises(ConfigError, match="smoothadv attacks within an L2 ball; the threat is Linf"):
        Smoothing(form="smoothadv").loss(_view(network, threat=Threat(eps=0.1)), images, labels)
