"""Networks of every shape that channels can be removed from, small, with statistics as after training."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import Pattern, Plan
from robustcompress.pruning.scores.magnitude import Magnitude
from robustcompress.zoo.networks.resnet18 import Resnet18
from robustcompress.zoo.networks.small_cnn import SmallCnn
from robustcompress.zoo.networks.vgg16_bn import Vgg16Bn
from robustcompress.zoo.networks.wide_resnet_28_4 import WideResnet284


class RawShortcut(nn.Module):
    """A pre-activation block whose 1x1 shortcut takes the raw sum, past the normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.shortcut = nn.Conv2d(6, 8, 1, stride=2)
        self.last = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        stream = stream + self.first(F.relu(stream))
        stream = self.second(F.relu(self.bn(stream))) + self.shortcut(stream)
        logits: Tensor = self.last(F.relu(stream).mean((2, 3)))
        return logits


class Dense(nn.Module):
    """Two concatenations, each normalised as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 5, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(9)
        self.c = nn.Conv2d(9, 3, 3, padding=1)
        self.last = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.a(images)
        features = torch.cat([features, self.b(F.relu(self.bn1(features)))], 1)
        features = torch.cat([features, self.c(F.relu(self.bn2(features)))], 1)
        logits: Tensor = self.last(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits


def flatten_cnn() -> nn.Module:
    """Convolutions with biases and no normalisation, flattened into a hidden layer."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 5),
    )  # fmt: skip


def separable() -> nn.Module:
    """Depthwise convolutions between pointwise ones."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.PReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(24, 5)
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 2), nn.SiLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(27, 12), nn.ReLU(), nn.Linear(12, 9, bias=False), nn.BatchNorm1d(9),
        nn.ReLU(), nn.Linear(9, 5),
    )  # fmt: skip


CASES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "flatten_cnn": (flatten_cnn, (3, 8, 8)),
    "small_cnn": (SmallCnn(widths=(6, 8), hidden=9, image_size=12, num_classes=5).build, (1, 12, 12)),
    "small_cnn_without_bn": (
        SmallCnn(widths=(6, 8), hidden=9, image_size=12, num_classes=5, batch_norm=False).build,
        (1, 12, 12),
    ),
    "vgg16_bn": (Vgg16Bn(width=3, num_classes=5).build, (3, 16, 16)),
    "resnet18": (Resnet18(width=3, num_classes=5).build, (3, 12, 12)),
    "wide_resnet_28_4": (WideResnet284(width=2, num_classes=5).build, (3, 8, 8)),
    "raw_shortcut": (RawShortcut, (3, 8, 8)),
    "dense": (Dense, (3, 6, 6)),
    "separable": (separable, (3, 8, 8)),
    "conv1d": (conv1d, (3, 8)),
    "conv3d": (conv3d, (2, 6, 5, 7)),
    "mlp": (mlp, (3, 3, 3)),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A network, in float32 and training mode unless said otherwise, and images for it."""

    name: str
    network: nn.Module
    images: Tensor


def build(name: str) -> Case:
    make, shape = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    nn.init.normal_(module.weight, 1.0, 0.3)
                    nn.init.normal_(module.bias, 0.0, 0.5)
                    nn.init.normal_(module.running_mean, 0.0, 0.5)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
                elif isinstance(getattr(module, "bias", None), Tensor):
                    nn.init.normal_(module.bias, 0.0, 0.3)  # type: ignore[arg-type]  # checked above
        images = torch.rand(4, *shape)
    return Case(name, network, images)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Return each network in turn."""
    return build(request.param)


@pytest.fixture
def double_case(case: Case) -> Case:
    """Return each network in turn, in float64 and eval mode."""
    return Case(case.name, case.network.double().eval(), case.images.double())


@pytest.fixture
def named_case() -> Callable[[str], Case]:
    """Return a function that builds one network by name."""
    return build


@cache
def _plan(kind: str, name: str) -> Plan:
    made = build(name)
    return Pattern.find({"kind": kind, "round_to": 1} if kind == "channel" else kind).plan(
        made.network, made.images, ()
    )


@pytest.fixture
def plan_of() -> Callable[[str, Case], Plan]:
    """Return a function that plans a pattern, by kind, for a case; a plan holds names and indices only."""
    return lambda kind, case: _plan(kind, case.name)


@pytest.fixture
def masked() -> Callable[[Case, float], nn.Module]:
    """Return a function that bakes a channel mask of some sparsity into a copy of a case's network."""

    def bake(case: Case, sparsity: float) -> nn.Module:
        network = copy.deepcopy(case.network)
        masking = Masking(
            _plan("channel", case.name).sites,
            score=Magnitude(),
            budget=Uniform(),
            sparsity=sparsity,
            parameters=dict(network.named_parameters()),
        )
        masking.bake(network)
        return network

    return bake
