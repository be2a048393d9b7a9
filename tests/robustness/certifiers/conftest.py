"""A network whose operations every certifier knows."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


@pytest.fixture(scope="session")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a small convolutional network trained for a second, 300 images [1, 4, 4], and labels."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(4, 1, 4, 4, generator=generator)
    labels = torch.arange(300) % 4
    images = (centres[labels] + 0.22 * torch.randn(300, 1, 4, 4, generator=generator)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        network.extend([nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 4)])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    network.eval().requires_grad_(False)
    return network, images, labels
