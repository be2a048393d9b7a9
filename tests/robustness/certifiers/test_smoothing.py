"""Radii against linear networks, whose smoothed versions are known in closed form."""

from statistics import NormalDist

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.errors import DataError, ModelError
from robustcompress.robustness.certifiers import Certificate, Subject
from robustcompress.robustness.certifiers.smoothing import Smoothing
from robustcompress.robustness.predictor import Predictor

TwoClass = tuple[nn.Module, Tensor, Tensor]


def _distances(two_class: TwoClass) -> Tensor:
    """Return how far each image lies on class 1's side of the boundary, in L2."""
    network, images, _ = two_class
    logits = network(images).detach()
    difference = network.get_parameter("weight")[1] - network.get_parameter("weight")[0]
    distances: Tensor = (logits[:, 1] - logits[:, 0]) / difference.detach().norm()
    return distances


def _certify(certifier: Smoothing, two_class: TwoClass, count: int, seed: int = 0) -> list[Certificate]:
    network, images, labels = two_class
    return certifier.certify(
        Subject(network), images[:count], labels[:count], indices=range(count), seed=seed
    )


def _one(
    certifier: Smoothing, predictor: Predictor, image: Tensor, label: int, index: int = 0
) -> Certificate:
    (found,) = certifier.certify(
        Subject(predictor), image[None], torch.tensor([label]), indices=[index], seed=0
    )
    return found


def test_radii_of_a_linear_network_are_never_above_its_exact_ones_and_near_them(two_class: TwoClass) -> None:
    # Smoothing leaves a linear boundary where it is: P(class 1) = Phi(distance / sigma), and the exact
    # radius is the distance itself.
    sigma, exact = 0.3, _distances(two_class)
    certifier = Smoothing(sigma=sigma, n0=1000, n=20_000, alpha=1e-4)
    for certificate in _certify(certifier, two_class, 40):
        distance = float(exact[certificate.index])
        assert certificate.radius <= abs(distance)
        if certificate.predicted is not None:
            assert certificate.predicted == int(distance > 0)
        if 0.2 * sigma < abs(distance) < 2 * sigma:
            assert certificate.radius == pytest.approx(abs(distance), abs=0.1 * sigma)


def test_the_share_of_draws_is_the_normal_distributions(two_class: TwoClass) -> None:
    sigma, exact = 0.3, _distances(two_class)
    draws, seen = 0, 0.0
    for certificate in _certify(Smoothing(sigma=sigma, n=4000), two_class, 20):
        share = NormalDist().cdf(float(exact[certificate.index]) / sigma)
        share = share if certificate.counts["guess"] == 1 else 1 - share
        hits = certificate.counts["hits"]
        assert hits / 4000 == pytest.approx(share, abs=4 * max(share * (1 - share) / 4000, 1e-7) ** 0.5)
        draws, seen = draws + 1, seen + (hits / 4000 - share)
    assert abs(seen / draws) < 0.01


def test_bounds_hold_as_often_as_alpha_promises(two_class: TwoClass) -> None:
    # With alpha 0.2 a radius is too large once in five times at most: 200 images, five deviations.
    exact = _distances(two_class).abs()
    found = _certify(Smoothing(sigma=0.3, n0=40, n=400, alpha=0.2), two_class, 200)
    wrong = sum(item.radius > float(exact[item.index]) for item in found)
    assert 0 < wrong <= 200 * 0.2 + 5 * (200 * 0.2 * 0.8) ** 0.5


def test_a_unanimous_sample_gives_the_largest_radius() -> None:
    certifier = Smoothing(sigma=0.5, n0=10, n=1000, alpha=0.001)
    found = _one(certifier, lambda images: torch.tensor([[0.0, 1.0]]).repeat(len(images), 1), _image(), 1)
    closed = 0.5 * NormalDist().inv_cdf(0.001 ** (1 / 1000))
    assert found.radius == certifier.largest_radius == pytest.approx(closed, rel=1e-9)
    assert found.predicted == 1
    assert found.counts == {"guess": 1, "hits": 1000, "draws": 1000}


def test_the_papers_largest_radius_is_found() -> None:
    # Cohen et al., section 4.2: with n = 100,000 and alpha = 0.001 no radius is above about 3.8 sigma.
    assert Smoothing(sigma=1).largest_radius == pytest.approx(3.8, abs=0.05)


def _image() -> Tensor:
    return torch.full((1, 2, 2), 0.5)


def _alternating(images: Tensor) -> Tensor:
    """Return class 0 and class 1 in turn, for as many images of either."""
    return torch.eye(2)[torch.arange(len(images)) % 2]


def test_at_a_tie_it_abstains() -> None:
    found = _one(Smoothing(n0=10, n=1000), _alternating, _image(), 0)
    assert found.counts == {"guess": 0, "hits": 500, "draws": 1000}
    assert found.predicted is None
    assert found.radius == 0.0
    assert not found.holds(0.0)


def test_a_network_that_says_nan_is_refused() -> None:
    def broken(images: Tensor) -> Tensor:
        return torch.full((len(images), 2), float("nan"))

    with pytest.raises(ModelError, match=r"image 7 with noise 0\.25: expected finite logits"):
        _one(Smoothing(n0=1, n=10), broken, _image(), 0, index=7)


def test_what_returns_no_logits_is_refused() -> None:
    with pytest.raises(DataError, match=r"image 0 with noise 0\.25: the network must return logits"):
        _one(Smoothing(n0=1, n=10), lambda images: images, _image(), 0)


def _draws(certifier: Smoothing, image: Tensor, index: int = 4, seed: int = 0) -> tuple[Tensor, list[int]]:
    seen: list[Tensor] = []

    def watch(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return torch.eye(2)[(images.flatten(1).sum(1) > 2).long()]

    labels = torch.tensor([0])
    certifier.certify(Subject(watch), image[None], labels, indices=[index], seed=seed)
    return torch.cat(seen), [len(part) for part in seen]


@pytest.mark.parametrize("batch_size", [1, 7, 128, 300, 5000])
def test_noise_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    expected, _ = _draws(Smoothing(n0=30, n=411, sigma=0.2, batch_size=64), _image())
    found, sizes = _draws(Smoothing(n0=30, n=411, sigma=0.2, batch_size=batch_size), _image())
    assert torch.equal(found, expected)
    assert len(found) == 441
    assert max(sizes) == min(batch_size, 411)


@pytest.mark.parametrize("batch_size", [1, 50, 1000])
def test_certificates_do_not_depend_on_the_batch_size(batch_size: int, two_class: TwoClass) -> None:
    expected = _certify(Smoothing(n0=20, n=500, sigma=0.3), two_class, 3)
    other = Smoothing(n0=20, n=500, sigma=0.3, batch_size=batch_size)
    assert _certify(other, two_class, 3) == expected


def test_images_samples_and_seeds_have_noise_of_their_own() -> None:
    certifier = Smoothing(n0=128, n=256)
    first, _ = _draws(certifier, _image())
    assert not torch.equal(first[:128], first[128:256])
    assert not torch.equal(first[128:256], first[256:])
    assert not torch.equal(_draws(certifier, _image(), index=5)[0], first)
    assert not torch.equal(_draws(certifier, _image(), seed=1)[0], first)


def test_noise_is_normal_and_not_clipped() -> None:
    found, _ = _draws(Smoothing(n0=1, n=20_000, sigma=0.5), torch.zeros(1, 2, 2))
    assert found.mean().item() == pytest.approx(0, abs=0.01)
    assert found.std().item() == pytest.approx(0.5, rel=0.01)
    assert float(found.min()) < -1
    assert float(found.max()) > 1


@pytest.mark.parametrize(("n", "alpha", "needed"), [(9, 0.001, 10), (1, 0.499, 2), (2, 0.25, 3)])
def test_settings_with_which_all_must_abstain_are_refused(n: int, alpha: float, needed: int) -> None:
    message = f"alpha {alpha:g} needs n of {needed} or more; got {n}. With fewer every image must abstain"
    with pytest.raises(ValidationError, match=message):
        Smoothing(n=n, alpha=alpha)
    assert Smoothing(n=needed, alpha=alpha).largest_radius > 0


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": 0}, {"sigma": "inf"}, {"n0": 0}, {"n": 0}, {"alpha": 0}, {"alpha": 0.5}, {"batch_size": 0}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Smoothing.model_validate(wrong)


def test_it_prints_its_noise() -> None:
    assert str(Smoothing(sigma=0.5)) == "smoothing 0.5"
