"""Symbolic intervals against closed forms and against the same lines followed backwards."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError
from robustcompress.robustness.bounds.activations import Rectifier
from robustcompress.robustness.bounds.crown import least
from robustcompress.robustness.bounds.interval import (
    Propagation,
    interval_margins,
    margin_coefficients,
    propagate,
)
from robustcompress.robustness.bounds.operations import Interval
from robustcompress.robustness.bounds.symbolic import (
    form_margins,
    symbolic_form,
    symbolic_margins,
    symbolic_margins_of,
)
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat
from robustcompress.training.memory import PeakMemory
from tests.robustness.bounds.soundness import NAMES, batch, network

ROUNDING = 1e-9  # float64


def _boxed(name: str, eps: float = 0.08) -> tuple[Propagation, Tensor]:
    images, labels = batch()
    return propagate(trace_network(network(name)), {}, *Threat(eps=eps).box(images)), labels


def _hidden(slope: float) -> nn.Sequential:
    activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
    made = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), activation, nn.Linear(9, 4)).double()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_one_hidden_layer_is_as_computed_by_hand(slope: float) -> None:
    model, (images, labels) = _hidden(slope), batch()
    lower, upper = Threat(eps=0.1).box(images)
    boxed = propagate(trace_network(model), {}, lower, upper)
    found = form_margins(symbolic_form(boxed)[0], labels).detach().numpy()
    w, b, v, a = (parameter.detach().numpy() for parameter in model.parameters())
    x, r = (each.detach().numpy().reshape(4, 36) for each in ((lower + upper) / 2, (upper - lower) / 2))
    middle, reach = x @ w.T + b, r @ np.abs(w).T
    low, high = middle - reach, middle + reach
    unstable = (low < 0) & (high > 0)
    assert 0 < unstable.sum() < unstable.size
    line = np.where(unstable, (high - slope * low) / (high - low), np.where(low >= 0, 1, slope))
    # Half of what the line has at 0: with slope 0 this is -t l / 2.
    half = np.where(unstable, (line - slope) * -low / 2, 0)
    for row, label in enumerate(labels.tolist()):
        for other in range(4):
            weights = v[label] - v[other]
            through = (weights * line[row]) @ w  # of the pixels
            value = weights @ (line[row] * middle[row] + half[row]) + a[label] - a[other]
            expected = value - np.abs(through) @ r[row] - np.abs(weights) @ half[row]
            assert found[row, other] == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "largest"])  # max-pooling sends on boxes
def test_forms_and_a_pass_back_along_the_same_lines_give_the_same_bounds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed, labels = _boxed(name)
    form, tightened = symbolic_form(boxed)
    lines = Rectifier._lines

    def parallel(self: Rectifier, inputs: Interval) -> tuple[Tensor, Tensor, Tensor]:
        _, above, shift = lines(self, inputs)
        return above, above, shift

    monkeypatch.setattr(Rectifier, "_lines", parallel)
    backwards = least(tightened, margin_coefficients(labels, boxed.logits), len(boxed.steps))
    torch.testing.assert_close(form_margins(form, labels), backwards, atol=ROUNDING, rtol=ROUNDING)


def test_on_an_affine_network_the_bounds_are_exact() -> None:
    boxed, labels = _boxed("linear")
    model, (images, _) = network("linear"), batch()
    lower, upper = Threat(eps=0.08).box(images)
    weight, bias = model.get_parameter("1.weight"), model.get_parameter("1.bias")
    for row, label in enumerate(labels.tolist()):
        difference = weight[label] - weight
        worst = torch.where(difference > 0, lower[row].flatten(), upper[row].flatten())
        expected = (difference * worst).sum(1) + bias[label] - bias
        torch.testing.assert_close(form_margins(symbolic_form(boxed)[0], labels)[row], expected)


@pytest.mark.parametrize("eps", [0.01, 0.08, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_the_bounds_are_never_looser_than_those_of_intervals(name: str, eps: float) -> None:
    boxed, labels = _boxed(name, eps)
    assert bool((symbolic_margins(boxed, labels) >= interval_margins(boxed, labels) - ROUNDING).all())


@pytest.mark.parametrize("name", NAMES)
def test_every_intermediate_result_stays_in_the_smaller_intervals(name: str) -> None:
    (boxed, _), (images, _) = _boxed(name), batch()
    _, tightened = symbolic_form(boxed)
    for before, after in zip(boxed.intervals, tightened.intervals, strict=True):
        assert bool((after.lower >= before.lower - ROUNDING).all())
        assert bool((after.upper <= before.upper + ROUNDING).all())
    traced = trace_network(network(name))
    for seed in range(20):
        inside = Threat(eps=0.08).random_point(images, torch.Generator().manual_seed(seed))
        for interval, point in zip(
            tightened.intervals, propagate(traced, {}, inside, inside).intervals, strict=True
        ):
            assert bool((point.centre >= interval.lower - ROUNDING).all())
            assert bool((point.centre <= interval.upper + ROUNDING).all())


def test_deep_networks_get_smaller_intervals() -> None:
    boxed, _ = _boxed("residual")
    _, tightened = symbolic_form(boxed)
    assert float(tightened.logits.radius.detach().mean()) < 0.8 * float(boxed.logits.radius.detach().mean())


def test_only_pixels_that_can_change_have_errors() -> None:
    images, _ = batch()
    lower = images.clone()
    upper = images.clone()
    upper[:, :, 2, 3:5] += 0.1
    form, _ = symbolic_form(propagate(trace_network(network("linear")), {}, lower, upper))
    assert form.errors.shape == (4, 2, 4)


@pytest.mark.parametrize("name", ["residual", "joined", "largest"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model, (images, labels) = network(name), batch()
    box, traced = Threat(eps=0.05).box(images), trace_network(model)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]

    def value() -> Tensor:
        return symbolic_margins_of(traced, {}, *box, labels).pow(2).sum()

    value().backward()
    slope = sum(
        float((parameter.grad * direction).sum())
        for parameter, direction in zip(model.parameters(), directions, strict=True)
        if parameter.grad is not None
    )
    around = []
    for change in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, direction in zip(model.parameters(), directions, strict=True):
                parameter.add_(direction, alpha=change)
        around.append(value().item())
    assert slope == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5)


def test_less_memory_gives_the_same_bounds_and_gradients() -> None:
    images, labels = batch()
    found, peaks = [], []
    for memory in (2**30, 1):
        model = network("strided")
        with PeakMemory() as watched:
            box = Threat(eps=0.08).box(images)
            margins = symbolic_margins_of(trace_network(model), {}, *box, labels, memory=memory)
            margins.sum().backward()
        peaks.append(watched.peak)
        found.append([margins.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for whole, grouped in zip(*found, strict=True):
        torch.testing.assert_close(grouped, whole, atol=1e-12, rtol=1e-10)
    assert peaks[1] < 0.6 * peaks[0], peaks


def test_no_memory_at_all_is_refused() -> None:
    images, labels = batch()
    with pytest.raises(ConfigError, match="memory must be at least 1 byte; got 0"):
        symbolic_margins_of(trace_network(network("mlp")), {}, images, images, labels, memory=0)
