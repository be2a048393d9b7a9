"""Counting certified images: against exact margins, and against attacks."""

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.bounds.counting import certified_counts
from robustcompress.robustness.threat import Threat
from tests.robustness.bounds.soundness import NAMES, batch, margins, network, smallest_found

CPU = torch.device("cpu")


def _linear(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a linear network, 300 images inside the pixel range, and labels, two thirds right."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images = 0.3 + 0.4 * torch.rand(300, 1, 2, 4, generator=generator, dtype=torch.float64)
    labels = model(images).argmax(1)
    labels[::3] = (labels[::3] + 1) % 4
    return model, images, labels


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.1, 0.3])
def test_of_a_linear_network_exactly_the_robust_images_are_counted(eps: float) -> None:
    model, images, labels = _linear()
    weight = model.get_parameter("1.weight")
    reach = eps * (weight[labels][:, None, :] - weight[None]).abs().sum(2)
    others = torch.ones_like(reach).scatter(1, labels[:, None], 0).bool()
    exact = ((margins(model(images), labels) - reach) > 0) | ~others
    clean, certified, count = certified_counts(
        model,
        {},
        [(images[:130], labels[:130]), (images[130:], labels[130:])],
        threat=Threat(eps=eps),
        device=CPU,
    )
    assert count == 300
    assert clean == int((model(images).argmax(1) == labels).sum()) == 200
    assert certified == int(exact.all(1).sum())


@pytest.mark.parametrize("name", NAMES)
def test_no_image_that_was_beaten_is_counted(name: str) -> None:
    model, (images, _) = network(name), batch()
    labels = model(images).argmax(1)
    for eps in (0.002, 0.02):
        threat = Threat(eps=eps)
        standing = smallest_found(model, {}, images, labels, threat)
        standing = standing.scatter(1, labels[:, None], 1).gt(0).all(1)
        counts = certified_counts(model, {}, [(images, labels)], threat=threat, device=CPU)
        assert counts[1] <= int(standing.sum())
        if eps == 0.002:
            assert counts[1] > 0


def test_masked_weights_are_judged_in_place_of_the_networks_own() -> None:
    model, images, labels = _linear()
    zeros = {"1.weight": torch.zeros(4, 8, dtype=torch.float64)}
    always = int(model.get_parameter("1.bias").argmax())
    counts = certified_counts(model, zeros, [(images, labels)], threat=Threat(eps=0.3), device=CPU)
    assert counts[0] == counts[1] == int((labels == always).sum())


def test_shares_add_up_and_the_limit_cuts() -> None:
    model, images, labels = _linear()
    batches = list(zip(images.split(70), labels.split(70), strict=True))
    whole = certified_counts(model, {}, batches, threat=Threat(eps=0.05), device=CPU, limit=250)
    parts = [
        certified_counts(model, {}, batches, threat=Threat(eps=0.05), device=CPU, limit=250, share=(index, 3))
        for index in range(3)
    ]
    assert whole == tuple(sum(column) for column in zip(*parts, strict=True))
    assert whole[2] == 250


def test_an_operation_without_bounds_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Tanh())
    with pytest.raises(ModelError, match="Tanh"):
        certified_counts(
            model,
            {},
            [(torch.rand(2, 1, 2, 4), torch.zeros(2, dtype=torch.int64))],
            threat=Threat(eps=0.1),
            device=CPU,
        )
