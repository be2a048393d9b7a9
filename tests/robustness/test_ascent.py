import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.ascent import Region, ascend, step_length
from robustcompress.robustness.threat import Norm, Threat

NORMS: tuple[Norm, ...] = ("linf", "l2")


def _images(seed: int = 0) -> Tensor:
    return torch.rand(6, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.sampled_from(NORMS), st.floats(0, 1), st.floats(1e-3, 2), st.integers(0, 4), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_ascent_ends_inside_the_threat(
    norm: Norm, eps: float, step_size: float, steps: int, seed: int
) -> None:
    images = _images(seed)
    threat = Threat(norm=norm, eps=eps)
    reached = ascend(
        lambda x: (x.sin() * 5).flatten(1).cumsum(1).cos().sum(1),
        images,
        threat=threat,
        steps=steps,
        step_size=step_size,
        start=images + 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)),
    )
    assert bool(threat.contains(reached, images).all())
    assert not reached.requires_grad


def test_linf_ascent_of_a_linear_loss_reaches_the_best_corner_of_ball_and_pixel_box() -> None:
    images = _images()
    weight = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reached = ascend(
        lambda x: (x * weight).flatten(1).sum(1),
        images,
        threat=Threat(eps=0.3),
        steps=3,
        step_size=0.11,
        start=images,
    )
    torch.testing.assert_close(reached, (images + 0.3 * weight.sign()).clamp(0, 1))


def test_l2_ascent_of_a_linear_loss_moves_eps_along_the_weights() -> None:
    images = 0.4 + 0.2 * _images()
    weight = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reached = ascend(
        lambda x: (x * weight).sum(),
        images,
        threat=Threat(norm="l2", eps=0.3),
        steps=3,
        step_size=0.11,
        start=images,
    )
    torch.testing.assert_close(reached, images + 0.3 * weight / weight.norm())


def test_l2_ascent_towards_a_far_target_ends_at_the_targets_projection() -> None:
    images = 0.4 + 0.2 * _images()
    target = torch.full_like(images, 0.5) + 0.4 * torch.eye(2, 3, dtype=torch.float64)
    threat = Threat(norm="l2", eps=0.1)
    reached = ascend(
        lambda x: -(x - target).square().flatten(1).sum(1),
        images,
        threat=threat,
        steps=300,
        step_size=0.02,
        start=threat.random_point(images, torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(reached, threat.project(target, images), atol=2e-3, rtol=0)


def test_no_steps_give_the_projected_start() -> None:
    images = _images()
    reached = ascend(
        lambda x: x.sum(), images, threat=Threat(eps=0.1), steps=0, step_size=1, start=images + 1
    )
    assert torch.equal(reached, (images + 0.1).clamp_max(1))


def test_ascent_leaves_inputs_and_parameters_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    images = _images()
    before = images.clone()
    state = torch.get_rng_state()
    with torch.no_grad():  # the caller's mode must not matter
        ascend(
            lambda x: network(x).square().sum(1),
            images,
            threat=Threat(eps=0.1),
            steps=2,
            step_size=0.1,
            start=images,
        )
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class _SharesMemory(torch.autograd.Function):
    """A linear function whose gradient is the very tensor of its weights."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return (images * weight).sum()

    @staticmethod
    def backward(ctx: "torch.autograd.function.BackwardCFunction", *_: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_shares_memory_with_the_network_is_not_written_to(norm: Norm) -> None:
    images = _images()
    weight = torch.linspace(-1, 1, images.numel(), dtype=torch.float64).reshape(images.shape)
    before = weight.clone()
    ascend(
        lambda x: _SharesMemory.apply(x, weight),  # type: ignore[no-untyped-call]  # torch has no types for it
        images,
        threat=Threat(norm=norm, eps=0.1),
        steps=2,
        step_size=0.1,
        start=images,
    )
    assert torch.equal(weight, before)


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_is_one_number_seen_many_times_works(norm: Norm) -> None:
    images = 0.5 * _images()
    threat = Threat(norm=norm, eps=0.1)
    reached = ascend(lambda x: x.sum(), images, threat=threat, steps=1, step_size=0.1, start=images)
    move = 0.1 if norm == "linf" else 0.1 / 6**0.5
    torch.testing.assert_close(reached, images + move)


def test_logits_without_gradient_are_refused() -> None:
    images = _images()
    free = torch.ones(1, requires_grad=True)
    for loss_of in (lambda x: x.detach().sum(), lambda x: x.detach().sum() * free):
        with pytest.raises(ModelError, match="depend on the images through differentiable operations"):
            ascend(loss_of, images, threat=Threat(eps=0.1), steps=1, step_size=0.1, start=images)


@pytest.mark.parametrize("norm", NORMS)
def test_a_selected_region_projects_like_a_fresh_one(norm: Norm) -> None:
    images = _images()
    keep = torch.tensor([True, False, True, False, False, True])
    points = images[keep] + torch.randn(3, 1, 2, 3, dtype=torch.float64)
    threat = Threat(norm=norm, eps=0.2)
    chosen = Region(images, threat).select(keep)
    assert torch.equal(chosen.project(points.clone()), Region(images[keep], threat).project(points.clone()))


def test_the_default_step_is_two_and_a_half_times_the_way_over_the_steps() -> None:
    assert step_length(None, threat=Threat(eps=0.1), steps=20) == pytest.approx(0.0125)
    assert step_length(0.0078, threat=Threat(eps=0.031), steps=10) == 0.0078
