"""Networks with every operation that has bounds, and the check that no image of the box beats a bound."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.robustness.bounds.crown import crown_ibp_margins, tightened
from robustcompress.robustness.bounds.interval import interval_margins, propagate
from robustcompress.robustness.bounds.symbolic import symbolic_margins
from robustcompress.robustness.bounds.tracing import trace_network
from robustcompress.robustness.threat import Threat

THREAT = Threat(eps=0.08)


class Residual(nn.Module):
    """Post-activation, pre-activation and functional forms, and a mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.classifier = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.bn1(self.conv1(images)))
        second = self.bn2(self.conv2(first))
        second += first
        activated = torch.relu(second)
        third = self.conv3(activated).relu() + self.shortcut(activated)
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(third, 1), 1))
        return logits


class Joined(nn.Module):
    """Normalised pixels, concatenation, subtraction, constants, mean by method, a plain matrix product."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.4))
        self.left = nn.Conv2d(1, 2, 3)
        self.right = nn.Conv2d(1, 3, 3)
        self.mixed = nn.Conv2d(5, 5, 3, groups=5)
        self.matrix = nn.Parameter(torch.zeros(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images - self.mean) / 0.5
        joined = torch.cat([F.leaky_relu(self.left(pixels), 0.2), self.right(pixels)], dim=1)
        features = self.mixed(F.relu(joined)) - 0.1
        features = -F.relu(1 - features * 0.7) - features
        logits: Tensor = features.mean((2, 3)) @ self.matrix.T
        return logits


def _sequential() -> dict[str, nn.Module]:
    return {
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
        "mlp": nn.Sequential(
            nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4)
        ),
        "strided": nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(4, 4, 2, dilation=2, groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(4, 4),
        ),
        "average": nn.Sequential(
            nn.Conv2d(1, 3, 3, padding="same"),
            nn.ReLU(),
            nn.AvgPool2d(2, ceil_mode=True, padding=1, count_include_pad=False),
            nn.Identity(),
            nn.Conv2d(3, 4, 2, padding="valid"),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 4),
        ),
        "largest": nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(3, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(16, 4),
        ),
    }


NAMES = (*_sequential(), "residual", "joined")


def network(name: str, seed: int = 0) -> nn.Module:
    """Return a network of four classes for images [1, 6, 6] in eval mode, float64, random all over."""
    made = {**_sequential(), "residual": Residual(), "joined": Joined()}[name].double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            size = 1.4 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        for tensor_name, buffer in made.named_buffers():
            if tensor_name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif tensor_name.endswith("running_var"):
                buffer.copy_(0.2 + torch.rand(buffer.shape, generator=generator))
    return made


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images, some of whose pixels are black or white, and labels."""
    generator = torch.Generator().manual_seed(100 + seed)
    images = 1.4 * torch.rand(4, 1, 6, 6, generator=generator, dtype=torch.float64) - 0.2
    return images.clamp(0, 1), torch.arange(4)


Method = Callable[[nn.Module, Mapping[str, Tensor], Tensor, Tensor, Threat], Tensor]


def by_interval(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, threat: Threat
) -> Tensor:
    """Return interval bounds of the margins."""
    return interval_margins(propagate(trace_network(model), tensors, *threat.box(images)), labels)


def by_crown_ibp(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, threat: Threat
) -> Tensor:
    """Return CROWN-IBP bounds of the margins."""
    return crown_ibp_margins(propagate(trace_network(model), tensors, *threat.box(images)), labels)


def by_crown(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, threat: Threat
) -> Tensor:
    """Return CROWN bounds of the margins."""
    boxed = propagate(trace_network(model), tensors, *threat.box(images))
    return crown_ibp_margins(tightened(boxed, at_once=7), labels)


def by_symbolic(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, threat: Threat
) -> Tensor:
    """Return bounds of the margins by symbolic intervals."""
    return symbolic_margins(propagate(trace_network(model), tensors, *threat.box(images)), labels)


METHODS: dict[str, Method] = {
    "interval": by_interval,
    "crown_ibp": by_crown_ibp,
    "crown": by_crown,
    "symbolic": by_symbolic,
}


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``f_y - f_j``."""
    return logits.gather(1, labels[:, None]) - logits


def smallest_found(
    model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor, threat: Threat
) -> Tensor:
    """Return the smallest margin that corners, uniform points and PGD on each margin find in the box."""
    generator = torch.Generator().manual_seed(5)
    lower, upper = threat.box(images)

    def at(points: Tensor) -> Tensor:
        return margins(functional_call(model, dict(tensors), (points,)), labels)

    found = at(images).detach()
    for _ in range(30):
        share = torch.rand(images.shape, generator=generator, dtype=images.dtype)
        for points in (lower + share * (upper - lower), torch.where(share < 0.5, lower, upper)):
            found = found.minimum(at(points).detach())
    for target in range(found.shape[1]):
        points = images.clone()
        for step in range(20):
            points.requires_grad_()
            (gradient,) = torch.autograd.grad(at(points)[:, target].sum(), points)
            length = 2 * threat.eps * (1 - step / 20)
            points = (points.detach() - length * gradient.sign()).clamp(lower, upper)
            found = found.minimum(at(points).detach())
    return found


def excess(
    method: Method,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: Threat = THREAT,
    tensors: Mapping[str, Tensor] | None = None,
) -> float:
    """Return by how much the most beaten bound lies above a margin that an image of the box has."""
    values = tensors or {}
    bounds = method(model, values, images, labels, threat).detach()
    return float((bounds - smallest_found(model, values, images, labels, threat)).max())
