"""What certifiers by bounds claim, against exact radii, brute force and attacks."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.bound_certifier import BoundCertifier
from robustcompress.robustness.certification import certified_accuracy, certify
from robustcompress.robustness.certifiers import Certificate, Certifier
from robustcompress.robustness.evaluation import evaluate
from robustcompress.robustness.threat import Threat
from tests.robustness.bounds import soundness

KINDS = ("interval", "crown_ibp", "crown", "best")
Trained = tuple[nn.Module, Tensor, Tensor]


def _certifier(kind: str, radii: Sequence[float], **settings: object) -> BoundCertifier:
    found = Certifier.find({"kind": kind, "radii": list(radii), "slack": 0, **settings})
    assert isinstance(found, BoundCertifier)
    return found


def _certify(
    kind: str, radii: Sequence[float], model: nn.Module, images: Tensor, labels: Tensor, **settings: object
) -> tuple[Certificate, ...]:
    return certify(model, [(images, labels)], certifier=_certifier(kind, radii, **settings))


def _linear(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a linear network, 60 images of which some pixels are black or white, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images = (1.3 * torch.rand(60, 1, 2, 4, generator=generator, dtype=torch.float64) - 0.15).clamp(0, 1)
    return model, images, model(images).argmax(1)


def _least_margins(model: nn.Sequential, images: Tensor, classes: Tensor, radius: float) -> Tensor:
    """Return the least margin of a linear network over each box, by choosing the worse end of each pixel."""
    weight, bias = model.get_parameter("1.weight"), model.get_parameter("1.bias")
    lower, upper = (images - radius).clamp_min(0).flatten(1), (images + radius).clamp_max(1).flatten(1)
    rows = weight[classes][:, None] - weight[None]
    worst = torch.where(rows > 0, lower[:, None], upper[:, None])
    margins = (rows * worst).sum(2) + bias[classes][:, None] - bias[None]
    return margins.scatter(1, classes[:, None], torch.inf).amin(1).detach()


def _exact_radius(model: nn.Sequential, image: Tensor, label: Tensor) -> float:
    """Return how far a linear network's class holds, by halving."""
    below, above = 0.0, 2.0
    for _ in range(60):
        middle = (below + above) / 2
        if float(_least_margins(model, image[None], label[None], middle)) > 0:
            below = middle
        else:
            above = middle
    return below


@pytest.mark.parametrize("kind", KINDS)
def test_radii_of_a_linear_network_are_exact(kind: str) -> None:
    model, images, classes = _linear()
    radii = torch.linspace(0.002, 0.5, 41).tolist()
    found = _certify(kind, radii, model, images, classes)
    for certificate, image, label in zip(found, images, classes, strict=True):
        exact = _exact_radius(model, image, label)
        assert certificate.radius == max((radius for radius in radii if radius < exact), default=0.0)
        assert certificate.predicted == (int(label) if certificate.radius else None)
    assert len({certificate.radius for certificate in found}) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_each_radius_is_tested_as_it_was_given(kind: str) -> None:
    model, images, classes = _linear()
    for image, label in zip(images[:10], classes[:10], strict=True):
        exact = _exact_radius(model, image, label)
        radii = [exact * (1 - 1e-9), exact * (1 + 1e-9)]
        (found,) = _certify(kind, radii, model, image[None], label[None])
        assert found.radius == radii[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_class_is_proven_and_does_not_count(kind: str) -> None:
    model, images, classes = _linear()
    right = _certify(kind, [0.01], model, images, classes)
    wrong = _certify(kind, [0.01], model, images, (classes + 1) % 4)
    assert [item.predicted for item in wrong] == [item.predicted for item in right]
    assert sum(item.predicted is not None for item in wrong) > 20
    assert certified_accuracy(wrong, [0, 0.01])[0].correct == 0
    assert all(item.counts["class"] == label for item, label in zip(wrong, classes.tolist(), strict=True))


def _tiny(seed: int) -> nn.Sequential:
    """Return a random network of two pixels and three classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1))
    model.append(nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_no_radius_is_above_the_nearest_image_of_another_class(kind: str) -> None:
    ticks = torch.linspace(0, 1, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 0.3, 0.55, 0.9], dtype=torch.float64)] * 2)
    certified = 0
    for seed in range(6):
        model = _tiny(seed)
        with torch.no_grad():
            classes, of_grid = model(images).argmax(1), model(grid).argmax(1)
        distances = (images[:, None] - grid[None]).abs().amax(2)
        nearest = distances.masked_fill(of_grid[None] == classes[:, None], torch.inf).amin(1)
        found = _certify(kind, torch.linspace(0.01, 1, 50).tolist(), model, images[:, None, None], classes)
        assert all(item.radius < float(limit) for item, limit in zip(found, nearest, strict=True))
        certified += sum(item.radius > 0 for item in found)
    assert certified > 20


@pytest.mark.parametrize(("kind", "name"), list(itertools.product(KINDS, soundness.NAMES)))
def test_no_image_is_certified_that_an_attack_on_every_margin_beats(kind: str, name: str) -> None:
    model, (images, _) = soundness.network(name), soundness.batch()
    with torch.no_grad():
        classes = model(images).argmax(1)
    radii = [0.001, 0.01, 0.05, 0.2]
    found = _certify(kind, radii, model, images, classes)
    assert any(item.radius > 0 for item in found)
    for radius in radii:
        left = soundness.smallest_found(model, {}, images, classes, Threat(eps=radius))
        standing = left.scatter(1, classes[:, None], 1).gt(0).all(1)
        assert all(bool(standing[item.index]) for item in found if item.holds(radius))


def test_the_best_proves_what_any_other_proves(trained: Trained) -> None:
    network, images, labels = trained
    radii = torch.linspace(0.002, 0.12, 12).tolist()
    by_kind = {kind: _certify(kind, radii, network, images[:60], labels[:60]) for kind in KINDS}
    for kind in KINDS[:3]:
        for best, other in zip(by_kind["best"], by_kind[kind], strict=True):
            assert best.radius >= other.radius
    for crown, interval in zip(by_kind["crown"], by_kind["interval"], strict=True):
        assert crown.radius >= interval.radius
    reach = {kind: sum(item.radius for item in found) for kind, found in by_kind.items()}
    assert reach["best"] >= reach["crown"] > reach["crown_ibp"] > reach["interval"] > 0


def test_the_best_takes_the_largest_bound_of_each_margin() -> None:
    # Of x in [0, 1]. Margin 1 is relu(4x - 1.95) + 0.5: the line below the rectifier is the identity, and
    # CROWN-IBP finds -1.45 where intervals find 0.5. Margin 2 is relu(x + 5) - relu(x + 4) - 0.5, which is
    # 0.5: intervals do not see that x is the same in both, and find -0.5.
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 3)).double().eval()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([[4.0], [1], [1]]))
        model.get_parameter("1.bias").copy_(torch.tensor([-1.95, 5, 4]))
        model.get_parameter("3.weight").copy_(torch.tensor([[0.0, 0, 0], [-1, 0, 0], [0, -1, 1]]))
        model.get_parameter("3.bias").copy_(torch.tensor([0, -0.5, 0.5]))
    image, label = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64), torch.tensor([0])
    found = {kind: _certify(kind, [0.5], model, image, label)[0] for kind in KINDS}
    assert found["interval"].radius == found["crown_ibp"].radius == 0
    assert found["best"].radius == 0.5
    assert found["best"].counts == {"class": 0, "interval": 1, "crown_ibp": 1, "crown": 0}


def test_the_best_asks_a_dearer_bound_only_about_what_is_left_open(trained: Trained) -> None:
    network, images, labels = trained
    found = _certify("best", [0.06], network, images[:60], labels[:60])
    cheap = _certify("interval", [0.06], network, images[:60], labels[:60])
    dearer = _certify("crown_ibp", [0.06], network, images[:60], labels[:60])
    for item, interval, crown_ibp in zip(found, cheap, dearer, strict=True):
        assert item.counts["interval"] == 1
        assert item.counts["crown_ibp"] == (interval.radius == 0)
        assert item.counts["crown"] <= (crown_ibp.radius == 0)
    assert 0 < sum(item.counts["crown"] for item in found) < sum(item.counts["crown_ibp"] for item in found)


def test_crown_is_left_out_of_a_network_with_too_many_entries(trained: Trained) -> None:
    network, images, labels = trained
    entries = 6 * 16 + 16  # before the two rectifiers
    for limit, asked in ((entries, True), (entries - 1, False)):
        found = _certify("best", [0.05], network, images[:20], labels[:20], crown_entries=limit)
        assert any(item.counts["crown"] for item in found) == asked


@pytest.mark.parametrize("kind", KINDS)
def test_certified_is_at_most_attacked_and_attacked_at_most_clean(kind: str, trained: Trained) -> None:
    network, images, labels = trained
    images, labels = images[:100], labels[:100]
    radii = [0.01, 0.03, 0.06]
    found = _certify(kind, radii, network, images, labels)
    for radius in radii:
        (certified,) = certified_accuracy(found, [radius])
        measured = evaluate(
            network,
            [(images, labels)],
            threat=Threat(eps=radius),
            attacks=[Pgd(steps=20, restarts=2)],
            seed=0,
            device="cpu",
        ).measurements
        correct = {measurement.attack: measurement.correct for measurement in measured}
        assert certified.correct <= correct["worst case"] <= correct["clean"]
        assert correct["clean"] == sum(item.counts["class"] == item.label for item in found)
