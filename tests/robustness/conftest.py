"""Networks whose robustness is known, and one that has learnt something."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

Logits = Callable[[Tensor], Tensor]


class Linear(nn.Module):
    """Logits ``x w_c + b_c`` of flattened images: its worst case has a closed form."""

    def __init__(self, weight_CD: Tensor, bias_C: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_CD)
        self.bias = nn.Parameter(bias_C)

    def forward(self, images: Tensor) -> Tensor:
        return functional.linear(images.flatten(1), self.weight, self.bias)


@pytest.fixture
def two_class() -> tuple[Linear, Tensor, Tensor]:
    """Return a linear model of two classes, 200 images [1, 3, 4] away from black and white, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(200, 1, 3, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (200,), generator=generator)
    return Linear(weight, -weight.sum(1) * 0.5), images, labels


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a small network trained for a second, 300 images [1, 4, 4] of four classes, and labels."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(4, 1, 4, 4, generator=generator)
    labels = torch.arange(300) % 4
    images = centres[labels] + 0.22 * torch.randn(300, 1, 4, 4, generator=generator)
    images = images.clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU())
        network.append(nn.Linear(32, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    network.eval().requires_grad_(False)
    return network, images, labels
