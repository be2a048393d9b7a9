import copy
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.groups import couplings
from robustcompress.pruning.rehearsal import rehearse


class Case(Protocol):
    name: str
    network: nn.Module
    images: Tensor


def rehearsed(network: nn.Module, images: Tensor) -> tuple[set[str], dict[str, str]]:
    """Return the groups left and the reasons of what the rehearsal froze beyond the outputs."""
    # Groups of a network that is alike and ordinary: what is wrong is for the rehearsal alone to find.
    found = couplings(Body(), images)
    before = {item.name for item in found.frozen}
    result = rehearse(network, images, found)
    new = {item.name: item.reason for item in result.frozen if item.name not in before}
    return {group.name for group in result.groups}, new


def test_every_group_of_ordinary_networks_passes(case: Case) -> None:
    weights = copy.deepcopy(case.network.state_dict())
    state = torch.get_rng_state()
    found = couplings(case.network, case.images)
    assert rehearse(case.network, case.images, found) == found
    assert torch.equal(torch.get_rng_state(), state)
    assert case.network.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in case.network.state_dict().items())


class Body(nn.Module):
    """Three convolutions and a classifier; subclasses do something unusual after the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 2)

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features

    def forward(self, images: Tensor) -> Tensor:
        features = self.between(self.first(images), images)
        logits: Tensor = self.last(self.second(features).relu().mean((2, 3)))
        return logits


class Constant(Body):
    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features + 0.5


class OfTheImage(Body):
    """Adds something that autograd does not see."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features + images.mean(1, keepdim=True)


class HiddenReader(Body):
    """Reads the channels where autograd does not look."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features * (1 + features.detach().mean((1, 2, 3), keepdim=True))


class Averaged(Body):
    """A mean over channels that looks like one over pixels."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features - features.mean(1, keepdim=True)


class Counted(Body):
    """Knows the number of channels by heart."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features.view(-1, 4, 36).view(-1, 4, 6, 6)


class Weighted(Body):
    """Scales each channel by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1))

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features * self.get_buffer("scale")


class Divided(Body):
    """Divides by the number of channels, which changes."""

    def between(self, features: Tensor, images: Tensor) -> Tensor:
        return features / features.shape[1]


LEAKS = "channels set to zero reach the next layers as something else, or reach other layers too"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Constant, LEAKS),
        (OfTheImage, LEAKS),
        (HiddenReader, LEAKS),
        (Averaged, LEAKS),
        (Counted, "the network does not run with fewer channels: "),
        (Weighted, "the network does not run with fewer channels: The size of tensor a (2)"),
        (Divided, "the network computes something else once the channels are gone"),
    ],
)
def test_what_would_not_be_exact_is_frozen_and_the_rest_is_not(kind: type[Body], reason: str) -> None:
    network = kind()
    with torch.no_grad():  # zeros of a fresh or a pruned network must not make anything look exact
        for parameter in network.parameters():
            parameter.zero_()
    groups, frozen = rehearsed(network, torch.rand(2, 3, 6, 6))
    assert groups == {"second"}
    assert list(frozen) == ["first"]
    assert frozen["first"].startswith(reason)


class Scarce(Body):
    """Runs with fewer channels in one layer or the other, but not in both."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        others = self.second(features).relu()
        if features.shape[1] + others.shape[1] < 6:
            raise ValueError("too few")
        logits: Tensor = self.last(others.mean((2, 3)))
        return logits


def test_groups_that_are_exact_one_by_one_but_not_together_are_frozen() -> None:
    groups, frozen = rehearsed(Scarce(), torch.rand(2, 3, 6, 6))
    assert groups == set()
    assert frozen == dict.fromkeys(
        ("first", "second"), "the network does not run with fewer channels: too few"
    )


class Single(Body):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images.float())


def test_a_network_that_cannot_run_in_float64_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Single must run on torch\.float64 images"):
        rehearsed(Single(), torch.rand(2, 3, 6, 6))
