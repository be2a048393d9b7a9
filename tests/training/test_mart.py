import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.training.objectives.mart import Mart, boosted_cross_entropy
from tests.training.test_objectives import Linear, Watched


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(5, 1, 2, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


def formula(clean_BC: Tensor, attacked_BC: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Equations 8 to 11 of the paper, image by image, in probabilities."""
    total = torch.zeros((), dtype=torch.float64)
    for p, q, y in zip(clean_BC.softmax(1), attacked_BC.softmax(1), labels.tolist(), strict=True):
        rival = max(q[k] for k in range(len(q)) if k != y)
        boosted = -torch.log(q[y]) - torch.log(1 - rival)
        divergence = sum(p[k] * torch.log(p[k] / q[k]) for k in range(len(p)))
        total = total + boosted + beta * divergence * (1 - p[y])
    return total / len(labels)


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_loss_and_gradient_are_those_of_the_formula(beta: float) -> None:
    images, labels = batch()
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    plain = copy.deepcopy(network)
    watched = Watched(network)
    loss = Mart(beta=beta, steps=3).loss(watched.view, images, labels)
    loss.backward()
    clean, adversarial = watched.learning_inputs
    assert torch.equal(clean, images)
    expected = formula(plain(images), plain(adversarial), labels, beta)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(network.parameters(), plain.parameters(), strict=True):
        assert wanted.grad is not None
        torch.testing.assert_close(found.grad, wanted.grad)


def test_on_a_linear_model_of_two_classes_everything_is_known() -> None:
    network, (images, labels) = Linear(2), batch()
    labels = labels % 2
    loss = Mart(beta=5, steps=4).loss(Watched(network).view, images, labels)
    x, w, y = images.numpy().reshape(5, 6), network.weight.detach().numpy(), labels.numpy()
    worst = np.clip(x - 0.1 * np.sign(w[y] - w[1 - y]), 0, 1)
    rows = np.arange(5)
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (x @ w.T, worst @ w.T))
    # With two classes the rival's probability is what the label's leaves: both logarithms are the same.
    boosted = -2 * np.log(q[rows, y])
    expected = (boosted + 5 * (p * np.log(p / q)).sum(1) * (1 - p[rows, y])).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_extreme_logits_give_finite_values_and_gradients() -> None:
    logits = torch.tensor([[900.0, 0.0, -900.0], [0.0, 900.0, -900.0]], requires_grad=True)
    is_label = torch.tensor([[True, False, False], [True, False, False]])
    values = boosted_cross_entropy(logits.log_softmax(1), is_label)
    # Right and sure costs nothing; wrong and sure costs both logarithms: 900 and 900.
    torch.testing.assert_close(values, torch.tensor([0.0, 1800.0]))
    values.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_settings_have_ranges() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Mart(beta=-1)
