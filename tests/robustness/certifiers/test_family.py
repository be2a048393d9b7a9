"""What every certifier promises; a new file in the family is tested here by being there."""

import pytest
import torch
import yaml
from torch import Tensor, nn

from robustcompress import families
from robustcompress.robustness.certifiers import Certificate, Certifier

Trained = tuple[nn.Module, Tensor, Tensor]

pytestmark = pytest.mark.parametrize("kind", families.kinds(Certifier.family))

QUICK: dict[str, dict[str, object]] = {"smoothing": {"n0": 20, "n": 200, "sigma": 0.1}}


def _certifier(kind: str) -> Certifier:
    return Certifier.find({"kind": kind, **QUICK.get(kind, {})})


def _certify(kind: str, trained: Trained, count: int = 12, seed: int = 3) -> list[Certificate]:
    network, images, labels = trained
    return [
        _certifier(kind).certify(network, images[index], int(labels[index]), index=index, seed=seed)
        for index in range(count)
    ]


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


def test_the_certifier_prints_itself_and_names_its_norm(kind: str) -> None:
    assert str(_certifier(kind))
    assert _certifier(kind).norm in ("l2", "linf")
