import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from robustcompress.robustness.threat import Norm, Threat

NORMS: tuple[Norm, ...] = ("linf", "l2")
norms = st.sampled_from(NORMS)
radii = st.floats(min_value=0, max_value=3)
seeds = st.integers(min_value=0, max_value=2**31)


def _images_and_points(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(5, 2, 3, 3, generator=generator)
    return images, images + 2 * torch.randn(images.shape, generator=generator)


@given(norms, radii, seeds)
@settings(max_examples=60, deadline=None)
def test_projection_lies_in_the_threat_and_is_its_own_projection(norm: Norm, eps: float, seed: int) -> None:
    images, points = _images_and_points(seed)
    threat = Threat(norm=norm, eps=eps)
    projected = threat.project(points, images)
    assert bool(threat.contains(projected, images).all())
    torch.testing.assert_close(threat.project(projected, images), projected, atol=2e-6, rtol=0)


@given(norms, radii, seeds)
@settings(max_examples=60, deadline=None)
def test_projection_leaves_a_point_of_the_threat_where_it_is(norm: Norm, eps: float, seed: int) -> None:
    images, _ = _images_and_points(seed)
    threat = Threat(norm=norm, eps=eps)
    inside = threat.random_point(images, torch.Generator().manual_seed(seed))
    assert bool(threat.contains(inside, images).all())
    torch.testing.assert_close(threat.project(inside, images), inside, atol=2e-6, rtol=0)


@given(radii, seeds)
@settings(max_examples=30, deadline=None)
def test_linf_projection_is_the_nearest_allowed_image(eps: float, seed: int) -> None:
    images, points = _images_and_points(seed)
    projected = Threat(norm="linf", eps=eps).project(points, images)
    for new, old, image in zip(projected.flatten(), points.flatten(), images.flatten(), strict=True):
        low, high = max(float(image) - eps, 0.0), min(float(image) + eps, 1.0)
        assert float(new) == pytest.approx(min(max(float(old), low), high), abs=1e-6)


def test_l2_projection_inside_the_pixel_range_moves_along_the_line_to_the_image() -> None:
    images = torch.full((1, 1, 1, 2), 0.5)
    points = torch.tensor([[[[0.8, 0.9]]]])
    projected = Threat(norm="l2", eps=0.1).project(points, images)
    torch.testing.assert_close(projected, torch.tensor([[[[0.5 + 0.06, 0.5 + 0.08]]]]))


@given(norms, seeds, st.sampled_from([1.0, 1e-30, 1e-38, 1e30]))
@settings(max_examples=40, deadline=None)
def test_steepest_direction_has_unit_length_and_climbs_by_the_dual_norm(
    norm: Norm, seed: int, scale: float
) -> None:
    gradient = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    threat = Threat(norm=norm, eps=1)
    direction = threat.steepest(gradient * scale)
    torch.testing.assert_close(threat.lengths(direction).flatten(), torch.ones(4))
    dual = gradient.flatten(1).abs().sum(1) if norm == "linf" else gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), dual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_direction_of_no_gradient_is_nowhere(norm: Norm) -> None:
    assert torch.equal(Threat(norm=norm, eps=1).steepest(torch.zeros(2, 1, 2, 2)), torch.zeros(2, 1, 2, 2))


def test_random_point_is_uniform_in_the_linf_ball() -> None:
    images = torch.full((5000, 1, 1, 3), 0.5)
    noise = Threat(norm="linf", eps=0.2).random_point(images, torch.Generator().manual_seed(0)) - 0.5
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        below = float((noise <= -0.2 + 0.4 * share).double().mean())
        assert below == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / noise.numel()))


def test_random_point_is_uniform_in_the_l2_ball() -> None:
    images = torch.full((20000, 1, 1, 3), 0.5)
    noise = Threat(norm="l2", eps=0.2).random_point(images, torch.Generator().manual_seed(0)) - 0.5
    radius = noise.flatten(1).norm(dim=1)
    for share in (0.3, 0.5, 0.8, 0.95):  # the volume within a share of the radius is its cube
        expected = share**3
        within = float((radius <= 0.2 * share).double().mean())
        assert within == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 20000))
    octants = (noise.flatten(1) > 0).long() @ torch.tensor([1, 2, 4])
    assert torch.bincount(octants, minlength=8) / 20000 == pytest.approx(torch.full((8,), 1 / 8), abs=0.01)


def test_contains_tells_who_left_the_ball_the_pixel_range_or_the_numbers() -> None:
    images = torch.tensor([0.5, 0.5, 0.95, 0.5]).reshape(4, 1, 1, 1)
    moved = torch.tensor([0.6, 0.61, 1.01, float("nan")]).reshape(4, 1, 1, 1)
    assert Threat(eps=0.1).contains(moved, images).tolist() == [True, False, False, False]


def test_distances_are_measured_in_the_norm() -> None:
    images = torch.zeros(1, 1, 1, 2)
    moved = torch.tensor([[[[0.3, 0.4]]]])
    assert float(Threat(norm="linf", eps=1).distances(moved, images)) == pytest.approx(0.4)
    assert float(Threat(norm="l2", eps=1).distances(moved, images)) == pytest.approx(0.5)


def test_eps_may_be_written_as_a_fraction() -> None:
    threat = Threat.model_validate({"norm": "linf", "eps": "8/255"})
    assert threat.eps == 8 / 255
    assert str(threat) == "Linf eps 0.0313725"
    assert str(Threat(norm="l2", eps=0.5)) == "L2 eps 0.5"


def test_an_empty_pixel_range_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"lower must be below upper; got lower 1.0 and upper 1.0"):
        Threat(eps=0.1, lower=1.0)


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_a_radius_that_is_no_length_is_refused(eps: float) -> None:
    with pytest.raises(ValidationError, match="eps"):
        Threat(eps=eps)
