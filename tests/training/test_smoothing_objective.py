"""Both forms of smoothing against a computation by hand."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Moment, Objective, StepView
from robustcompress.training.objectives.smoothing import Smoothing


def _view(network: nn.Module, *, seed: int = 5, rows: slice | None = None, batch: int = 0) -> StepView:
    def attacked(images: Tensor) -> Tensor:
        raise AssertionError("smoothing needs no attack")

    return StepView(
        learning=network.train(),
        frozen=attacked,
        model=network,
        tensors=dict(network.named_parameters()),
        threat=Threat(eps=0.1),
        generator=torch.Generator().manual_seed(seed),
        moment=Moment(epoch=0, epochs=1, step=0, steps=1),
        rows=rows,
        batch=batch,
    )


def _case() -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, dtype=torch.float64))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network, torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64), torch.arange(5) % 3


def _by_hand(form: str, sigma: float, beta: float) -> float:
    network, images, labels = _case()
    w, b = (parameter.detach().numpy() for parameter in network.parameters())
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x, noise, y = images.numpy().reshape(5, 6), drawn.numpy().reshape(5, 6), labels.numpy()
    p, q = (np.exp(z @ w.T + b) for z in (x, x + sigma * noise))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    if form == "gaussian":
        return float(-np.log(q[np.arange(5), y]).mean())
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert divergence > 1e-3
    return float(-np.log(p[np.arange(5), y]).mean() + beta * divergence)


@pytest.mark.parametrize("form", ["stability", "gaussian"])
@pytest.mark.parametrize(("sigma", "beta"), [(0.25, 6.0), (1.5, 0.5)])
def test_the_loss_equals_the_computation_by_hand(form: str, sigma: float, beta: float) -> None:
    network, images, labels = _case()
    objective = Smoothing.model_validate({"form": form, "sigma": sigma, "beta": beta})
    loss = objective.loss(_view(network), images, labels)
    assert loss.item() == pytest.approx(_by_hand(form, sigma, beta), rel=1e-12)


@pytest.mark.parametrize("form", ["stability", "gaussian"])
def test_the_gradient_is_that_of_finite_differences(form: str) -> None:
    # Of `stability` it goes through both branches: with the clean one detached it would be another.
    network, images, labels = _case()
    objective = Smoothing.model_validate({"form": form})
    objective.loss(_view(network), images, labels).backward()
    weight = network.get_parameter("1.weight")
    assert weight.grad is not None
    for index in [(0, 0), (2, 4)]:
        around = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[index] += step
            around.append(objective.loss(_view(network), images, labels).item())
            with torch.no_grad():
                weight[index] -= step
        assert weight.grad[index].item() == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("form", ["stability", "gaussian"])
def test_parts_of_a_batch_get_the_noise_of_the_whole(form: str) -> None:
    network, images, labels = _case()
    objective = Smoothing.model_validate({"form": form})
    whole = objective.loss(_view(network), images, labels).item()
    parts = [
        objective.loss(_view(network, rows=rows, batch=5), images[rows], labels[rows]).item()
        * len(labels[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert sum(parts) / 5 == pytest.approx(whole, rel=1e-12)


def test_noisy_images_leave_the_pixel_range() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images.flatten(1)[:, :3]

    _, images, labels = _case()
    Smoothing(form="gaussian", sigma=1.0).loss(_view(Watching()), images, labels)
    assert len(seen) == 1
    assert float(seen[0].min()) < 0
    assert float(seen[0].max()) > 1


@pytest.mark.parametrize(("form", "updates"), [("stability", 2), ("gaussian", 1)])
def test_batch_statistics_move_once_for_each_batch_learnt_from(form: str, updates: int) -> None:
    _, images, labels = _case()
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6, dtype=torch.float64))
    Smoothing.model_validate({"form": form}).loss(_view(network), images, labels)
    assert int(network.get_buffer("1.num_batches_tracked")) == updates


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0}, {"sigma": "0/255"}, {"sigma": "inf"}, {"beta": -1}, {"form": "adversarial"}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Objective.find({"kind": "smoothing", **wrong})
