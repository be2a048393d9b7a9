import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l2, projection_linf
from torch import Tensor

from robustcompress.robustness.nearest import shortest_step
from robustcompress.robustness.threat import Norm

norms = pytest.mark.parametrize("norm", ["linf", "l2"])
REFERENCE = {"linf": projection_linf, "l2": projection_l2}


def _problem(rows: int, features: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return points of which many lie on the sides of [0, 1], normals of all sizes, and values."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(rows, features, generator=generator) * 1.6 - 0.3).clamp(0, 1)
    normals = torch.randn(rows, features, generator=generator) ** 3
    inside = torch.rand(rows, features, generator=generator)
    return points, normals, ((points - inside) * normals).sum(1)


def _length(step: Tensor, norm: Norm) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(step, ord=float("inf") if norm == "linf" else 2, dim=-1)
    return lengths


def _by_bisection(points: Tensor, normals: Tensor, values: Tensor, norm: Norm) -> Tensor:
    """Return the step by bisection on how far features go before the box stops them; float64."""
    points, normals, values = points.double(), normals.double(), values.double()
    speeds = normals if norm == "l2" else normals.sign()
    direction = -values.sign()[:, None] * speeds

    def step(time: Tensor) -> Tensor:
        return (points + time[:, None] * direction).clamp(0, 1) - points

    low, high = torch.zeros_like(values), torch.full_like(values, 1e9)
    for _ in range(200):
        middle = (low + high) / 2
        short = (values + (step(middle) * normals).sum(1)) * values.sign() > 0
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return step(high)


@norms
@pytest.mark.parametrize("features", [1, 2, 7, 200])
def test_the_step_is_the_one_that_bisection_finds(norm: Norm, features: int) -> None:
    points, normals, values = (tensor.double() for tensor in _problem(200, features))
    found = shortest_step(points, normals, values, norm=norm, lower=0, upper=1)
    torch.testing.assert_close(found, _by_bisection(points, normals, values, norm), atol=1e-9, rtol=1e-7)
    assert float((values + (found * normals).sum(1)).abs().max()) < 1e-9


@norms
@pytest.mark.parametrize("features", [3, 50, 784])
def test_the_step_is_the_one_of_the_authors_code_and_no_longer(norm: Norm, features: int) -> None:
    points, normals, values = _problem(100, features, seed=1)
    found = shortest_step(points, normals, values, norm=norm, lower=0, upper=1)
    authors = REFERENCE[norm](points, normals, (points * normals).sum(1) - values)
    torch.testing.assert_close(found, authors, atol=1e-6, rtol=1e-5)
    assert bool((_length(found, norm) <= _length(authors, norm) + 1e-6).all())
    assert float(_length(found, norm).mean()) > 0.01


@norms
def test_no_other_point_of_the_hyperplane_is_nearer(norm: Norm) -> None:
    points, normals, values = (tensor.double() for tensor in _problem(1, 3, seed=5))
    shortest = float(_length(shortest_step(points, normals, values, norm=norm, lower=0, upper=1), norm))
    grid = torch.linspace(0, 1, 201, dtype=torch.float64)
    first, second = (part.flatten() for part in torch.meshgrid(grid, grid, indexing="ij"))
    zero = (points * normals).sum() - values[0]
    third = (zero - first * normals[0, 0] - second * normals[0, 1]) / normals[0, 2]
    others = torch.stack([first, second, third], 1)[(third >= 0) & (third <= 1)]
    lengths = _length(others - points, norm)
    assert len(lengths) > 100
    assert shortest <= float(lengths.min()) + 1e-12
    assert shortest == pytest.approx(float(lengths.min()), abs=0.02)


@norms
@given(
    features=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    lower=st.floats(-3, 0),
    width=st.floats(0.1, 4),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]),
    excess=st.floats(0, 2),
)
def test_the_step_ends_in_the_box_and_on_the_hyperplane_if_that_meets_it(
    norm: Norm, features: int, seed: int, lower: float, width: float, scale: float, excess: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    upper = lower + width
    points = lower + width * torch.rand(4, features, generator=generator)
    points = points.clamp(lower, upper)
    normals = scale * torch.randint(-2, 3, (4, features), generator=generator)
    normals *= torch.rand(4, features, generator=generator)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    corners = torch.where(normals * signs[:, None] > 0, points - lower, upper - points) * normals.abs()
    values = signs * corners.sum(1) * excess
    found = shortest_step(points, normals, values, norm=norm, lower=lower, upper=upper)
    ended = points + found
    assert bool(((ended >= lower - 1e-5) & (ended <= upper + 1e-5)).all())
    left = values + (found * normals).sum(1)
    expected = signs * (values.abs() - corners.sum(1)).clamp_min(0)
    torch.testing.assert_close(left / scale, expected / scale, atol=1e-4, rtol=1e-4)
    assert bool((found[normals == 0] == 0).all())


@norms
def test_one_row_does_not_ask_what_the_others_are(norm: Norm) -> None:
    points, normals, values = _problem(40, 30, seed=3)
    together = shortest_step(points, normals, values, norm=norm, lower=0, upper=1)
    for row in range(0, 40, 7):
        one = slice(row, row + 1)
        alone = shortest_step(points[one], normals[one], values[one], norm=norm, lower=0, upper=1)
        torch.testing.assert_close(together[one], alone, atol=1e-6, rtol=1e-5)


@norms
def test_normals_are_shared_by_broadcasting(norm: Norm) -> None:
    points, normals, values = _problem(10, 20, seed=4)
    others, more = points.flip(0), values * 0.5
    both = shortest_step(
        torch.stack([points, others]), normals, torch.stack([values, more]), norm=norm, lower=0, upper=1
    )
    assert torch.equal(both[0], shortest_step(points, normals, values, norm=norm, lower=0, upper=1))
    assert torch.equal(both[1], shortest_step(others, normals, more, norm=norm, lower=0, upper=1))


@norms
def test_a_point_on_the_hyperplane_and_a_function_that_never_changes_stay(norm: Norm) -> None:
    points = torch.rand(2, 5)
    normals = torch.stack([torch.ones(5), torch.zeros(5)])
    values = torch.tensor([0.0, 3.0])
    found = shortest_step(points, normals, values, norm=norm, lower=0, upper=1)
    assert bool((found == 0).all())


@norms
def test_what_is_given_stays_as_it_is(norm: Norm) -> None:
    given_ = _problem(5, 6)
    kept = [tensor.clone() for tensor in given_]
    shortest_step(*given_, norm=norm, lower=0, upper=1)
    assert all(torch.equal(now, before) for now, before in zip(given_, kept, strict=True))
