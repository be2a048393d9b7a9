"""Gradients of functions whose changes are known."""

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.alarms.gradients import look_at_gradients
from robustcompress.robustness.threat import Threat
from tests.robustness.alarms.masked import Masked, inverted, rounded

LINF, L2 = Threat(eps=0.1), Threat(eps=1.0, norm="l2")
Trained = tuple[nn.Module, Tensor, Tensor]


def _right(trained: Trained) -> Trained:
    network, images, labels = trained
    right = network(images).argmax(1) == labels
    return network, images[right], labels[right]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_gradients_of_a_trained_network_foretell_its_changes(trained: Trained, threat: Threat) -> None:
    seen = look_at_gradients(*_right(trained), threat)
    assert float(seen.misleads.double().mean()) < 0.05
    assert not seen.loses_cross_entropy.any()
    assert not seen.is_flat.any()


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("levels", [1, 3, 255])
def test_rounding_the_input_misleads_everywhere(trained: Trained, threat: Threat, levels: int) -> None:
    network, images, labels = _right(trained)
    seen = look_at_gradients(Masked(network, rounded(levels)), images, labels, threat)
    assert bool(seen.is_flat.all())
    assert float(seen.misleads.double().mean()) > 0.9
    assert not seen.loses_cross_entropy.any()


def test_gradients_sent_the_other_way_mislead(trained: Trained) -> None:
    network, images, labels = _right(trained)
    seen = look_at_gradients(Masked(network, inverted), images, labels, LINF)
    assert float(seen.misleads.double().mean()) > 0.98
    assert not seen.is_flat.any()


@pytest.mark.parametrize(("factor", "lost"), [(1.0, 0), (1.3, 1), (1.6, 2), (3.0, 3), (100.0, 4)])
def test_the_cross_entropy_is_lost_exactly_where_float32_cannot_hold_its_exponential(
    factor: float, lost: int
) -> None:
    pixels = torch.tensor([0.2, 0.4, 0.6, 0.8]).reshape(-1, 1, 1, 1)

    def logits_of(images: Tensor) -> Tensor:  # margins of 20, 40, 60, 80, times the factor
        return torch.cat([50 * images.flatten(1), -50 * images.flatten(1)], 1) * factor

    seen = look_at_gradients(logits_of, pixels, torch.zeros(4, dtype=torch.int64), LINF)
    # Beyond margins of 92 the gradient, exp(-margin) * 50 * factor, is below the smallest normal number.
    assert int(seen.loses_cross_entropy.sum()) == lost
    assert not seen.misleads.any()


def test_a_network_that_is_flat_around_an_image_does_not_mislead() -> None:
    def logits_of(images: Tensor) -> Tensor:  # nothing changes for pixels below 0.5
        pixel = images.flatten(1)
        return torch.cat([(pixel - 0.5).relu() * 8, torch.ones_like(pixel)], 1)

    pixels = torch.tensor([0.1, 0.2, 0.3]).reshape(-1, 1, 1, 1)
    seen = look_at_gradients(logits_of, pixels, torch.ones(3, dtype=torch.int64), LINF)
    assert bool(seen.is_flat.all())
    assert not seen.misleads.any()
    assert not seen.loses_cross_entropy.any()


def test_a_step_beyond_the_threat_misleads_where_the_network_is_flat_within_it() -> None:
    def logits_of(images: Tensor) -> Tensor:
        pixel = images.flatten(1)
        return torch.cat([(pixel > 0.5).float() * 8 + 0 * pixel, torch.ones_like(pixel)], 1)

    pixels = torch.tensor([0.1, 0.2, 0.3]).reshape(-1, 1, 1, 1)
    seen = look_at_gradients(logits_of, pixels, torch.ones(3, dtype=torch.int64), LINF)
    assert bool(seen.misleads.all())


def test_logits_without_a_gradient_are_refused() -> None:
    with pytest.raises(ModelError, match="a gradient attack needs logits that depend on the images"):
        look_at_gradients(
            lambda images: images.detach().flatten(1),
            torch.rand(2, 1, 1, 3),
            torch.zeros(2, dtype=torch.int64),
            LINF,
        )
