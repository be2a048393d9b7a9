import pytest
import torch
from torch import nn

from robustcompress.errors import ModelError
from robustcompress.robustness.probe import probe


def test_a_probe_tells_loss_mistakes_and_gradient() -> None:
    images = torch.tensor([[[[0.2]]], [[[0.9]]]])
    seen = probe(
        lambda x: torch.cat([x.flatten(1), 1 - x.flatten(1)], 1), images, torch.tensor([0, 0]), "margin"
    )
    torch.testing.assert_close(seen.loss, torch.tensor([0.6, -0.8]))
    assert seen.wrong.tolist() == [True, False]
    torch.testing.assert_close(seen.gradient, torch.full_like(images, -2.0))
    assert not images.requires_grad


def test_without_gradient_nothing_is_recorded() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    watched: list[bool] = []

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network(images)
        watched.append(logits.requires_grad)
        return logits

    seen = probe(logits_of, torch.rand(3, 1, 2, 2), torch.zeros(3).long(), "dlr", with_gradient=False)
    assert watched == [False]
    assert seen.gradient.numel() == 0


def test_a_runtime_without_gradients_is_refused() -> None:
    with pytest.raises(ModelError, match="judge runtimes by re-scoring"):
        probe(lambda x: x.detach().flatten(1), torch.rand(1, 1, 1, 2), torch.tensor([0]), "cross_entropy")


def test_a_gradient_that_is_no_number_is_refused() -> None:
    images = torch.tensor([0.0, 0.25]).reshape(2, 1, 1, 1)
    with pytest.raises(ModelError, match="1 of 2 images gave NaN or infinity, and no attack can follow them"):
        probe(
            lambda x: torch.cat([x.flatten(1).sqrt(), x.flatten(1)], 1),
            images,
            torch.zeros(2).long(),
            "margin",
        )


def test_several_calls_are_averaged_and_most_of_them_decide() -> None:
    images = torch.tensor([[0.5]])
    slopes = iter([1.0, 4.0, -2.0] * 2)

    def unsteady(points: torch.Tensor) -> torch.Tensor:
        slope = next(slopes)
        return torch.cat([slope * points, 0 * points], 1)

    seen = probe(unsteady, images, torch.tensor([0]), "margin", calls=3)
    assert seen.loss.tolist() == pytest.approx([-(0.5 + 2.0 - 1.0) / 3])
    assert seen.gradient.tolist() == [[-1.0]]
    assert seen.wrong.tolist() == [False]
    seen = probe(unsteady, images, torch.tensor([1]), "margin", calls=3, with_gradient=False)
    assert seen.wrong.tolist() == [True]
    assert seen.gradient.numel() == 0


def test_half_of_the_calls_do_not_break_an_image() -> None:
    answers = iter([1.0, -1.0])
    seen = probe(
        lambda x: torch.cat([next(answers) * x, 0 * x], 1),
        torch.tensor([[0.5]]),
        torch.tensor([0]),
        "margin",
        calls=2,
    )
    assert seen.wrong.tolist() == [False]


def test_a_targeted_loss_aims_at_its_targets() -> None:
    images = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    seen = probe(lambda x: x, images, torch.tensor([3, 3]), "targeted_dlr", targets=torch.tensor([0, 2]))
    torch.testing.assert_close(seen.loss, torch.tensor([-3.0, -1.0]) / 2.5)
