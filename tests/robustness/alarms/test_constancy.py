import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustcompress.robustness.alarms.constancy import changes_by_batch, changes_by_call

Trained = tuple[nn.Module, Tensor, Tensor]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_network_is_constant(trained: Trained) -> None:
    network, images, _ = trained
    assert not changes_by_call(network, images).any()
    assert not changes_by_batch(network, images, _generator()).any()


def test_dropout_that_stays_on_changes_by_call(trained: Trained) -> None:
    network, images, _ = trained
    torch.manual_seed(0)
    assert changes_by_call(lambda x: network(functional.dropout(x, 0.5)), images).all()


def test_noise_on_one_image_is_found_there() -> None:
    images = torch.rand(6, 1, 2, 2, generator=_generator())
    draws = _generator()

    def predictor(pixels: Tensor) -> Tensor:
        logits = pixels.flatten(1).clone()
        logits[2] += torch.rand(4, generator=draws)
        return logits

    assert changes_by_call(predictor, images).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_batch_statistics_change_by_batch_unless_there_is_one_image(trained: Trained, count: int) -> None:
    network, images, _ = trained
    changed = changes_by_batch(lambda x: network(x - x.mean(0)), images[:count], _generator())
    assert int(changed.sum()) == (count if count > 1 else 0)


def test_a_place_in_the_batch_that_matters_is_found() -> None:
    images = torch.rand(30, 1, 2, 2, generator=_generator())

    def predictor(pixels: Tensor) -> Tensor:
        return pixels.flatten(1) + (torch.arange(len(pixels)) % 2)[:, None] * torch.tensor([1.0, 0, 0, 0])

    changed = changes_by_batch(predictor, images, _generator())
    assert int(changed.sum()) >= 10
    assert not changes_by_call(predictor, images).any()


def test_rounding_to_a_level_is_no_dependence_on_the_batch(trained: Trained) -> None:
    network, images, _ = trained
    spread = float((network(images).amax(1) - network(images).amin(1)).mean())

    def quantised(pixels: Tensor) -> Tensor:  # whose levels lie a little otherwise in a batch of one
        level = spread / 250
        logits: Tensor = ((network(pixels) + 0.3 * level / len(pixels)) / level).round() * level
        return logits

    assert not changes_by_batch(quantised, images, _generator()).any()
