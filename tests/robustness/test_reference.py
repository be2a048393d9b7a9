import builtins
import random
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from robustcompress.errors import ConfigError, MissingExtraError, ModelError
from robustcompress.robustness.attacks import Logits
from robustcompress.robustness.reference import (
    Reference,
    Version,
    _without_parameter_gradients,
    reference_release,
)
from robustcompress.robustness.threat import Threat

WIDE = Threat(eps=0.3)


@pytest.fixture
def ten_class() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a random network of ten classes, 20 images [1, 8, 8], and the classes that it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        images = torch.rand(20, 1, 8, 8)
    return network, images, network(images).argmax(1)


def _run(
    logits_of: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    threat: Threat = WIDE,
    version: Version = "standard",
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return Reference(version=version).run(logits_of, images, labels, threat=threat, generator=generator)


@pytest.mark.parametrize("threat", [WIDE, Threat(norm="l2", eps=1.5)], ids=str)
def test_the_authors_code_breaks_images_within_the_threat(
    ten_class: tuple[nn.Module, Tensor, Tensor], threat: Threat
) -> None:
    network, images, labels = ten_class
    found = _run(*ten_class, threat=threat)
    assert bool(threat.contains(found, images).all())
    assert bool((network(found).argmax(1) != labels).all())


def test_it_leaves_no_traces(ten_class: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, images, labels = ten_class
    network.train()
    kept = images.clone()

    def trace(*given: Any) -> None:
        """Do nothing, as a coverage tool of its own would not."""

    before = sys.gettrace()
    states = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    sys.settrace(trace)
    try:
        first = _run(network, images, labels)
        kept_trace = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept_trace is trace
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[1]["state"]["key"])
    assert random.getstate() == states[2]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert network.training
    assert torch.equal(images, kept)
    torch.manual_seed(99)
    assert torch.equal(_run(network, images, labels), first)
    assert not torch.equal(_run(network, images, labels, seed=1), first)


def test_going_back_to_the_images_alone_gives_fab_what_the_plain_network_does(
    ten_class: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, images, labels = ten_class
    found: list[Tensor] = []
    for predict in (_without_parameter_gradients(network), network):
        assert all(p.grad is None for p in network.parameters())
        with torch.random.fork_rng():
            fab = FABAttack_PT(predict, n_iter=10, eps=0.05, seed=0, device="cpu")
            found.append(fab.perturb(images, labels))
    assert torch.equal(*found)
    assert any(p.grad is not None for p in network.parameters()), "the plain network was to show the fault"


def test_images_that_are_wrong_already_come_back_as_they_are(
    ten_class: tuple[nn.Module, Tensor, Tensor],
) -> None:
    network, images, labels = ten_class
    assert torch.equal(_run(network, images, (labels + 1) % 10), images)


def _flat(classes: int) -> Callable[[Tensor], Tensor]:
    return lambda images: images.flatten(1)[:, :classes] * 1.0


IMAGES = torch.rand(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("version", "images", "classes", "threat", "message"),
    [
        ("standard", IMAGES, 9, WIDE, "standard version needs 10 classes or more; this network has 9"),
        ("plus", IMAGES, 4, WIDE, "plus version needs 10 classes or more; this network has 4"),
        ("rand", IMAGES, 2, WIDE, "rand version needs 3 classes or more; this network has 2"),
        ("standard", IMAGES, 10, Threat(eps=0.1, upper=2), "clips pixels to 0 and 1; .* range is 0 to 2"),
        ("standard", IMAGES[:, 0], 10, WIDE, r"attacks images \[batch, channels, .* got \[2, 4, 4\]"),
        ("standard", IMAGES.double(), 10, WIDE, "in float32; the images are torch.float64"),
    ],
)
def test_what_the_authors_code_cannot_do_is_refused(
    version: Version, images: Tensor, classes: int, threat: Threat, message: str
) -> None:
    with pytest.raises(ConfigError, match=message + r".*Use engine: ours"):
        _run(_flat(classes), images, torch.zeros(2).long(), threat=threat, version=version)


def test_a_runtime_without_gradients_is_refused() -> None:
    logits_of = _flat(10)
    labels = logits_of(IMAGES).argmax(1)
    with pytest.raises(ModelError, match="pyautoattack needs logits that depend on the images"):
        _run(lambda images: logits_of(images).detach(), IMAGES, labels)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name == "pyautoattack":
            raise ImportError(name)
        return real(name, *rest)

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(MissingExtraError, match=r"pip install 'robustcompress\[autoattack\]'"):
        _run(_flat(10), IMAGES, torch.zeros(2).long())
    monkeypatch.setattr("robustcompress.robustness.reference.version", absent)
    with pytest.raises(MissingExtraError, match="pyautoattack, which is not installed"):
        reference_release()


def test_its_record_names_version_and_package() -> None:
    told = Reference(version="plus").settings(WIDE)
    assert told["version"] == "plus"
    assert str(told["package"]).startswith("pyautoattack 0.")
    assert str(Reference()) == "pyautoattack-standard"
