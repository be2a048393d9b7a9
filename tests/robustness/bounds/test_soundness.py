"""No image of the box beats a bound; a bound with a fault is beaten."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness.bounds.activations import MaxPool, Rectifier
from robustcompress.robustness.bounds.interval import propagate
from robustcompress.robustness.bounds.operations import (
    Average,
    Concatenate,
    Convolution,
    Form,
    Interval,
    Linear,
    Pulled,
    Pushed,
    Reshape,
    Scale,
    Sum,
)
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat
from tests.robustness.bounds.soundness import METHODS, NAMES, batch, excess, margins, network

ROUNDING = 1e-9  # float64


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_no_image_of_the_box_beats_a_bound(name: str, method: str, seed: int) -> None:
    assert excess(METHODS[method], network(name, seed), *batch(seed)) <= ROUNDING


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["strided", "residual"])
def test_no_image_beats_a_bound_of_masked_weights(name: str, method: str) -> None:
    model, generator = network(name), torch.Generator().manual_seed(9)
    masked = {
        key: parameter * (torch.rand(parameter.shape, generator=generator) < 0.3)
        for key, parameter in model.named_parameters()
        if parameter.ndim > 1
    }
    assert excess(METHODS[method], model, *batch(), tensors=masked) <= ROUNDING
    whole = METHODS[method](model, {}, *batch(), Threat(eps=0.05))
    assert not torch.allclose(METHODS[method](model, masked, *batch(), Threat(eps=0.05)), whole)


@pytest.mark.parametrize("method", METHODS)
def test_every_corner_and_kink_of_a_tiny_box_keeps_the_bounds(method: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images, labels = torch.full((1, 1, 2, 2), 0.45, dtype=torch.float64), torch.tensor([1])
    ticks = torch.linspace(0.15, 0.75, 9, dtype=torch.float64).tolist()  # corners included
    points = torch.tensor(list(product(ticks, repeat=4)), dtype=torch.float64).reshape(-1, 1, 2, 2)
    least = margins(model(points), labels.expand(len(points))).amin(0)
    bounds = METHODS[method](model, {}, images, labels, Threat(eps=0.3))[0]
    assert bool((bounds <= least + ROUNDING).all())
    assert bool((least - bounds < 3).all())  # and they are no idle bounds


@pytest.mark.parametrize("name", NAMES)
def test_every_intermediate_result_stays_in_its_interval(name: str) -> None:
    images, _ = batch()
    threat, traced = Threat(eps=0.05), trace_network(network(name))
    boxed = propagate(traced, {}, *threat.box(images))
    for seed in range(20):
        inside = threat.random_point(images, torch.Generator().manual_seed(seed))
        exact = propagate(traced, {}, inside, inside)
        for interval, point in zip(boxed.intervals, exact.intervals, strict=True):
            assert bool((point.centre >= interval.lower - ROUNDING).all())
            assert bool((point.centre <= interval.upper + ROUNDING).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_a_box_without_size_gives_the_networks_own_margins(name: str, method: str) -> None:
    model, (images, labels) = network(name), batch()
    bounds = METHODS[method](model, {}, images, labels, Threat(eps=0))
    torch.testing.assert_close(bounds, margins(model(images), labels), atol=1e-10, rtol=1e-10)


# --- Seeded faults ---


def _no_absolute_weights(self: Linear, *inputs: Interval) -> Interval:
    radius = nn.functional.linear(inputs[0].radius, self.weight)
    return Interval(nn.functional.linear(inputs[0].centre, self.weight, self.bias), radius)


def _kernel_not_absolute(self: Convolution, *inputs: Interval) -> Interval:
    rest = (self.stride, self.padding, self.dilation, self.groups)
    radius = nn.functional.conv2d(inputs[0].radius, self.weight, None, *rest)
    return Interval(nn.functional.conv2d(inputs[0].centre, self.weight, self.bias, *rest), radius)


def _scale_not_absolute(self: Scale, *inputs: Interval) -> Interval:
    return Interval(inputs[0].centre * self.scale + self.shift, inputs[0].radius * self.scale)


def _radius_subtracted(self: Sum, *inputs: Interval) -> Interval:
    centre = sum(sign * each.centre for sign, each in zip(self.signs, inputs, strict=True))
    radius = (inputs[0].radius - inputs[1].radius).abs()
    assert isinstance(centre, Tensor)
    return Interval(centre, radius)


def _most(self: Interval, coefficients_BS: Tensor) -> Tensor:
    flat = coefficients_BS.flatten(2)
    return (
        flat @ self.centre.flatten(1)[..., None] + flat.abs() @ self.radius.flatten(1)[..., None]
    ).squeeze(2)


def _half_the_radius(self: Rectifier, *inputs: Interval) -> Interval:
    right = rectifier(self, *inputs)
    return Interval(right.centre, right.radius / 2)


rectifier, rectifier_back = Rectifier.interval, Rectifier.pull_back
pool_back, average_back = MaxPool.pull_back, Average.pull_back


def _no_shift(self: Rectifier, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
    pulled = rectifier_back(self, coefficients_BS, inputs)
    return Pulled(pulled.coefficients, torch.zeros_like(pulled.constant))


def _signs_swapped(self: Rectifier, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
    pulled = rectifier_back(self, -coefficients_BS, inputs)
    return Pulled(tuple(-part for part in pulled.coefficients), -pulled.constant)


def _largest_of_the_lower_ends(self: MaxPool, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
    ends = Interval(inputs[0].lower, torch.zeros_like(inputs[0].radius))
    return pool_back(self, coefficients_BS, [ends])


def _pool_without_stride(self: MaxPool, *inputs: Interval) -> Interval:
    pooled = nn.functional.max_pool2d(
        inputs[0].centre, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
    )
    return Interval(pooled, torch.zeros_like(pooled))


def _averages_twice(self: Average, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
    pulled = average_back(self, coefficients_BS, inputs)
    return Pulled(tuple(2 * part for part in pulled.coefficients), pulled.constant)


def _reordered(self: Reshape, coefficients_BS: Tensor, inputs: Sequence[Interval]) -> Pulled:
    shape = (*coefficients_BS.shape[:2], *inputs[0].centre.shape[1:])
    return Pulled((coefficients_BS.flip(2).reshape(shape),), coefficients_BS.new_zeros(shape[:2]))


rectifier_on, pool_on, average_on = Rectifier.push, MaxPool.push, Average.directions


def _steeper_line(self: Rectifier, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
    right = rectifier_on(self, forms, inputs)
    return Pushed(Form(right.form.centre, right.form.errors / 2), right.fresh)


def _no_error_of_its_own(self: Rectifier, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
    return Pushed(rectifier_on(self, forms, inputs).form)


def _the_line_above_alone(self: Rectifier, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
    right = rectifier_on(self, forms, inputs)
    assert right.fresh is not None
    return Pushed(Form(right.form.centre + right.fresh, right.form.errors))


def _half_of_the_shift_forgotten(
    self: Rectifier, forms: Sequence[Form], inputs: Sequence[Interval]
) -> Pushed:
    right = rectifier_on(self, forms, inputs)
    assert right.fresh is not None
    return Pushed(Form(right.form.centre - right.fresh, right.form.errors), right.fresh)


def _centre_of_the_pool_alone(self: MaxPool, forms: Sequence[Form], inputs: Sequence[Interval]) -> Pushed:
    return Pushed(pool_on(self, forms, inputs).form)


def _one_sign_turned(self: Sum, *parts_BE: Tensor) -> Tensor:
    return self.signs[0] * parts_BE[0] - self.signs[1] * parts_BE[1]


def _halves(self: Average, *parts_BE: Tensor) -> Tensor:
    return average_on(self, *parts_BE) / 2


def _joined_the_other_way(self: Concatenate, *parts_BE: Tensor) -> Tensor:
    return torch.cat(parts_BE, self.dim + 1).flip(self.dim + 1)


FORM_FAULTS: list[tuple[type[Any], str, Callable[..., Any]]] = [
    (Rectifier, "push", _steeper_line),
    (Rectifier, "push", _no_error_of_its_own),
    (Rectifier, "push", _the_line_above_alone),
    (Rectifier, "push", _half_of_the_shift_forgotten),
    (MaxPool, "push", _centre_of_the_pool_alone),
    (Sum, "directions", _one_sign_turned),
    (Average, "directions", _halves),
    (Concatenate, "directions", _joined_the_other_way),
]


FAULTS: list[tuple[type[Any], str, Callable[..., Any]]] = [
    (Linear, "interval", _no_absolute_weights),
    (Convolution, "interval", _kernel_not_absolute),
    (Scale, "interval", _scale_not_absolute),
    (Sum, "interval", _radius_subtracted),
    (Interval, "least", _most),
    (Rectifier, "interval", _half_the_radius),
    (Rectifier, "pull_back", _no_shift),
    (Rectifier, "pull_back", _signs_swapped),
    (MaxPool, "pull_back", _largest_of_the_lower_ends),
    (MaxPool, "interval", _pool_without_stride),
    (Average, "pull_back", _averages_twice),
    (Reshape, "pull_back", _reordered),
]


@pytest.mark.parametrize(
    ("owner", "method", "fault"), FAULTS, ids=lambda item: getattr(item, "__name__", item)
)
def test_a_fault_in_a_bound_is_found_out(
    owner: type[Any], method: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, fault)
    cases = (
        (name, seed, bound) for seed in range(3) for name in NAMES for bound in ("interval", "crown_ibp")
    )
    assert any(
        excess(METHODS[bound], network(name, seed), *batch(seed)) > 1e-3 for name, seed, bound in cases
    )


@pytest.mark.parametrize(
    ("owner", "method", "fault"), FORM_FAULTS, ids=lambda item: getattr(item, "__name__", item)
)
def test_a_fault_in_a_form_is_found_out(
    owner: type[Any], method: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, fault)
    cases = ((name, seed) for seed in range(3) for name in NAMES)
    assert any(excess(METHODS["symbolic"], network(name, seed), *batch(seed)) > 1e-3 for name, seed in cases)
