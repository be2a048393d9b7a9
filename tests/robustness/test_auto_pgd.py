import pytest
import torch

from robustcompress.robustness.auto_pgd import Findings, border_point, checkpoint_widths
from robustcompress.robustness.threat import Norm, Threat


def test_checkpoints_are_those_of_the_paper() -> None:
    # p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99
    assert list(checkpoint_widths(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoint_widths(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.mark.parametrize("steps", range(1, 60))
def test_checkpoints_lie_between_the_steps_and_their_widths_add_up(steps: int) -> None:
    widths = checkpoint_widths(steps)
    assert all(0 < step < steps and width > 0 for step, width in widths.items())
    assert sum(widths.values()) == max(widths, default=0)


def _findings() -> Findings:
    return Findings.begin(torch.zeros(3, 2), torch.tensor([True, True, False]))


def test_of_several_points_that_break_an_image_the_first_is_kept() -> None:
    findings = _findings()
    findings.note_broken(torch.tensor([1, 0, 1]), torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    assert findings.images.tolist() == [[2, 2], [1, 1], [0, 0]]
    assert findings.standing.tolist() == [False, False, False]


def test_of_several_points_the_one_of_the_highest_loss_is_kept_and_only_if_it_is_higher_than_before() -> None:
    findings = _findings()
    points = torch.arange(4.0)[:, None].expand(4, 2) + 1
    findings.note_highest(torch.tensor([0, 1, 0, 1]), points, torch.tensor([-3.0, -1.0, -2.0, -1.0]))
    assert findings.images[:, 0].tolist() == [3, 2, 0]
    assert findings.highest.tolist() == [-2, -1, float("-inf")]
    findings.note_highest(torch.tensor([0, 1]), points[:2] * 10, torch.tensor([-2.5, 0.0]))
    assert findings.images[:, 0].tolist() == [3, 20, 0]
    assert findings.standing.tolist() == [True, True, False]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_lie_at_distance_eps(norm: Norm, dtype: torch.dtype) -> None:
    images = torch.full((20, 6), 0.5, dtype=dtype)
    threat = Threat(norm=norm, eps=0.2)
    start = border_point(images, threat, torch.Generator().manual_seed(0))
    assert start.dtype == dtype
    torch.testing.assert_close(threat.distances(start, images), torch.full((20,), 0.2, dtype=dtype))
