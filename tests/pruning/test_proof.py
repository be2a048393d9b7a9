import copy

import pytest
import torch
from torch import nn

from robustcompress.errors import CompactionError
from robustcompress.pruning.proof import Probe, probes, prove


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def test_images_are_real_and_random_ones_of_three_sizes() -> None:
    example, check = torch.rand(4, 3, 8, 9), torch.rand(5, 3, 8, 9)
    found = probes(example, check, seed=3)
    assert [list(probe.images.shape) for probe in found] == [
        [4, 3, 8, 9], [5, 3, 8, 9], [2, 3, 8, 9], [2, 3, 4, 4], [2, 3, 11, 13],
    ]  # fmt: skip
    assert [probe.optional for probe in found] == [False, False, False, True, True]
    assert found[0].images is example
    assert torch.equal(found[2].images, probes(example, None, seed=3)[1].images)
    assert not torch.equal(found[2].images, probes(example, check, seed=4)[2].images)
    assert [list(probe.images.shape) for probe in probes(torch.rand(3, 7), None, 0)] == [[3, 7], [2, 7]]


def test_what_was_compared_is_reported() -> None:
    large = network()
    small = copy.deepcopy(large)
    images = [Probe(torch.rand(70, 3, 6, 6), optional=False), Probe(torch.rand(2, 3, 2, 2), optional=True)]
    proof = prove(large, small, images, tolerance=0.0, kept={})
    assert proof.difference == 0.0
    assert proof.checked == ((64, 3, 6, 6), (6, 3, 6, 6))
    small.get_parameter("4.bias").data += 1e-5
    largest = [float(large(part).detach().abs().max()) for part in images[0].images.split(64)]
    found = prove(large, small, images, tolerance=1e-3, kept={}).difference
    assert found == pytest.approx(1e-5 / min(largest), rel=0.1)
    with pytest.raises(CompactionError, match=r"must agree to 1e-10 .* layer '4' puts out something else"):
        prove(large, small, images, tolerance=1e-10, kept={})
    with pytest.raises(CompactionError, match=r"differ by .*: no single layer"):
        prove(large, small, images, tolerance=1e-10, kept={}, shifted=("4", ""))


def test_one_image_that_differs_is_enough() -> None:
    large = network()
    small = copy.deepcopy(large)
    assert isinstance(small, nn.Sequential)
    small[4] = Odd(large.get_submodule("4"))
    images = torch.rand(9, 3, 6, 6)
    with pytest.raises(CompactionError, match=r"of shape \[9, 3, 6, 6\]"):
        prove(large, small, [Probe(images, optional=False)], tolerance=1e-10, kept={})


class Odd(nn.Module):
    """A layer that is right for all images but the last."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(features).clone()
        logits[-1, 0] += 1e-8
        return logits
