import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustcompress.robustness.pixels import eight_bit, holds_pixels
from robustcompress.robustness.threat import Threat


@given(eps=st.sampled_from([1 / 255, 8 / 255, 0.03, 0.1]), seed=st.integers(0, 1000))
def test_linf_images_become_the_nearest_allowed_levels(eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 1, 3, 3), generator=generator) / 255
    threat = Threat(eps=eps)
    adversarial = threat.random_point(images, generator)
    rounded, allowed = eight_bit(adversarial, images, threat)
    assert bool(allowed.all())
    levels = torch.arange(256) / 255
    for value, origin, found in zip(adversarial.flatten(), images.flatten(), rounded.flatten(), strict=True):
        near = levels[(levels - origin).abs() <= eps + 1e-6]
        assert float((found - value).abs()) == pytest.approx(float((near - value).abs().min()), abs=1e-6)
        assert float((levels - found).abs().min()) < 1e-7


def test_an_l2_image_that_rounding_takes_out_of_the_ball_is_not_allowed() -> None:
    images = torch.full((2, 1, 1, 1), 0.5)
    threat = Threat(norm="l2", eps=0.0019)
    # 0.5 lies halfway between two levels, each 0.00196 away.
    rounded, allowed = eight_bit(images + torch.tensor([0.0018, -0.0018]).reshape(2, 1, 1, 1), images, threat)
    assert allowed.tolist() == [False, False]
    assert rounded.flatten().tolist() == pytest.approx([128 / 255, 127 / 255])
    assert eight_bit(images, images, Threat(norm="l2", eps=0.002))[1].tolist() == [True, True]


def test_only_pixels_from_0_to_1_are_counted_in_8_bits() -> None:
    assert holds_pixels(Threat(eps=0.1))
    assert not holds_pixels(Threat(eps=0.1, lower=-1))
