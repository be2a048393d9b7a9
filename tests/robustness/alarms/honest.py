"""Networks that hide nothing: each trained for seconds, without a trick against attacks."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcompress.robustness.ascent import ascend
from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini

THREAT = Threat(eps=0.1)
SPARSITY = 0.99
_BATCH = 100

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""Network, images, labels and the progress of training, 0 to 1, to a loss."""


def natural(network: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    return F.cross_entropy(network(images), labels)


def pgd(network: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    moved = _climb(network, images, lambda points: F.cross_entropy(network(points), labels, reduction="sum"))
    return F.cross_entropy(network(moved), labels)


def trades(network: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    clean = network(images)
    target = clean.detach().softmax(1)
    moved = _climb(network, images, lambda points: F.cross_entropy(network(points), target, reduction="sum"))
    attacked = network(moved).log_softmax(1)
    divergence = F.kl_div(attacked, clean.log_softmax(1), reduction="batchmean", log_target=True)
    return F.cross_entropy(clean, labels) + 3 * divergence


def ibp(network: nn.Module, images: Tensor, labels: Tensor, progress: float) -> Tensor:
    grown = min(1.0, progress / 0.6)
    lower, upper = THREAT.model_copy(update={"eps": THREAT.eps * grown}).box(images)
    margins = interval_margins(propagate(trace_network(network), {}, lower, upper), labels)
    kappa = 1 - 0.5 * grown
    return kappa * natural(network, images, labels, 1) + (1 - kappa) * F.cross_entropy(-margins, labels)


def _climb(network: nn.Module, images: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    network.eval()
    start = images + 1e-2 * torch.randn_like(images)
    moved = ascend(loss_of, images, threat=THREAT, steps=3, step_size=0.05, start=start)
    network.train()
    return moved


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        moved: Tensor = self.branch(images)
        return F.relu(images + moved)


def linear(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))


def convolutional(
    classes: int = 10, *, norm: bool = False, width: int = 8, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 5, stride=2, padding=2),
        *([nn.BatchNorm2d(width)] if norm else []),
        activation(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        *([nn.BatchNorm2d(2 * width)] if norm else []),
        activation(),
        nn.Flatten(),
        nn.Linear(2 * width * 49, classes),
    )


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=4, padding=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8),
        nn.Flatten(),
        nn.Linear(392, 10),
    )


def perceptron(width: int = 100) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def images_of(split: str, count: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` images of the first ``classes`` classes."""
    data = FashionMnistMini().load("train" if split == "train" else "test")
    rows = (data.labels < classes).nonzero().flatten()[:count]
    return data.images[rows].float() / 255, data.labels[rows]


def train(
    network: nn.Module,
    loss_of: Loss,
    *,
    classes: int = 10,
    epochs: int = 4,
    images: int = 3000,
    masks: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Train with Adam; weights stay zero where a mask is."""
    pixels, labels = images_of("train", images, classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    steps = epochs * (len(labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(labels), (_BATCH,))
        optimizer.zero_grad()
        loss_of(network, pixels[rows], labels[rows], step / steps).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, mask in (masks or {}).items():
                network.get_parameter(name).mul_(mask)
    optimizer.zero_grad(set_to_none=True)
    return network.eval()


def sparse(network: nn.Module, loss_of: Loss, *, each_layer: bool = False) -> nn.Module:
    """Train the largest hundredth of a trained network's weights on, or of each layer's; others are zero."""
    sizes = {name: p.detach().abs() for name, p in network.named_parameters() if p.ndim > 1}
    groups = [[name] for name in sizes] if each_layer else [list(sizes)]
    masks: dict[str, Tensor] = {}
    for names in groups:
        together = torch.cat([sizes[name].flatten() for name in names])
        threshold = together.kthvalue(round(SPARSITY * len(together))).values
        masks |= {name: (sizes[name] > threshold).float() for name in names}
    return train(network, loss_of, epochs=6, masks=masks)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: train(linear(), natural),
    "natural": lambda: train(convolutional(), natural, epochs=8),
    "natural with batch norm": lambda: train(convolutional(norm=True), natural),
    "pgd": lambda: train(convolutional(), pgd),
    "trades with batch norm": lambda: train(convolutional(norm=True), trades),
    "ibp": lambda: train(convolutional(), ibp, epochs=8),
    "ibp, 99% sparse": lambda: sparse(train(perceptron(256), ibp), ibp),
    "pgd, 99% sparse": lambda: sparse(train(perceptron(256), pgd), pgd),
    # So few weights are left in the last layer that a third of the images lie where the network is flat.
    "ibp, 99% of each layer sparse": lambda: sparse(train(perceptron(256), ibp), ibp, each_layer=True),
    "residual": lambda: train(residual(), pgd, epochs=8),
    "leaky relu": lambda: train(convolutional(activation=partial(nn.LeakyReLU, 0.1)), pgd),
    "perceptron": lambda: train(perceptron(), pgd),
    "two classes": lambda: train(convolutional(2), pgd, classes=2, images=1000, epochs=8),
}


def made(name: str) -> nn.Module:
    """Return the network called ``name``, trained from a fixed seed, without gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().requires_grad_(False)
