"""What every certifier promises; a new file in the family is tested here by being there."""

import pytest
import torch
import yaml
from torch import Tensor, nn

from robustcompress import families
from robustcompress.robustness.certifiers import Certificate, Certifier, Subject

Trained = tuple[nn.Module, Tensor, Tensor]

pytestmark = pytest.mark.parametrize("kind", families.kinds(Certifier.family))

QUICK: dict[str, dict[str, object]] = {"smoothing": {"n0": 20, "n": 200, "sigma": 0.1}}
BY_BOUNDS: dict[str, object] = {"radii": [0.002, "1/255", 0.01, 0.05, 0.2]}


def _certifier(kind: str) -> Certifier:
    return Certifier.find({"kind": kind, **QUICK.get(kind, BY_BOUNDS)})


def _certify(kind: str, trained: Trained, count: int = 12, seed: int = 3) -> list[Certificate]:
    network, images, labels = trained
    return _certifier(kind).certify(
        Subject(network, network), images[:count], labels[:count], indices=range(count), seed=seed
    )


def test_settings_survive_yaml(kind: str) -> None:
    certifier = _certifier(kind)
    assert Certifier.find(yaml.safe_load(yaml.safe_dump(certifier.model_dump()))) == certifier


def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Certifier.find({"kind": kind, "sigmo": 3})


def test_some_images_are_certified_and_each_certificate_is_whole(kind: str, trained: Trained) -> None:
    found = _certify(kind, trained)
    assert [certificate.index for certificate in found] == list(range(12))
    assert [certificate.label for certificate in found] == trained[2][:12].tolist()
    assert any(certificate.predicted is not None and certificate.radius > 0 for certificate in found)
    assert all((certificate.predicted is None) == (certificate.radius == 0) for certificate in found)
    assert all(Certificate.model_validate_json(item.model_dump_json()) == item for item in found)


def test_the_seed_decides_and_nothing_global_does(kind: str, trained: Trained) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = _certify(kind, trained)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert _certify(kind, trained) == first


def test_network_and_images_stay_as_they_are(kind: str, trained: Trained) -> None:
    network, images, _ = trained
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = images.clone()
    _certify(kind, trained, 2)
    assert torch.equal(images, before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_what_an_image_gets_does_not_depend_on_its_companions(kind: str, trained: Trained) -> None:
    network, images, labels = trained
    certifier, together = _certifier(kind), _certify(kind, trained)
    for chosen in ([3], [7, 0, 11], list(range(11, -1, -1))):
        some = certifier.certify(
            Subject(network, network), images[chosen], labels[chosen], indices=chosen, seed=3
        )
        assert some == [together[index] for index in chosen]


def test_the_usual_radii_count_from_all_that_is_certified(kind: str, trained: Trained) -> None:
    radii = _certifier(kind).usual_radii
    assert list(radii) == sorted(set(radii))
    found = _certify(kind, trained)
    right = [item for item in found if item.predicted == item.label]
    assert sum(item.holds(radii[0]) for item in found) == len(right) > 0


def test_settings_of_speed_are_settings(kind: str) -> None:
    certifier = _certifier(kind)
    assert certifier.speed_settings <= set(type(certifier).model_fields)
    assert certifier.images_at_once >= 1


def test_the_certifier_prints_itself_and_names_its_norm(kind: str) -> None:
    assert str(_certifier(kind))
    assert _certifier(kind).norm in ("l2", "linf")
