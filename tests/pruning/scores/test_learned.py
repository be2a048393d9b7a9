import math

import torch

from robustcompress.pruning.scores.learned import Learned


def test_scores_start_as_the_weights_scaled_to_a_fresh_layer() -> None:
    """Closed form: sqrt(6 / fan_in) * W / max|W|."""
    weight = torch.tensor([[0.5, -2.0], [1.0, 0.0]], dtype=torch.float64)
    expected = math.sqrt(6 / 24) * weight / 2.0
    torch.testing.assert_close(Learned().initial(weight, 24), expected)
    assert Learned.learns


def test_weights_of_zero_give_scores_of_zero() -> None:
    assert torch.equal(Learned().initial(torch.zeros(3, 2), 2), torch.zeros(3, 2))


def test_the_largest_score_depends_on_the_fan_in_alone() -> None:
    for scale in (1e-6, 1.0, 1e6):
        scores = Learned().initial(scale * torch.randn(5, 6), 6)
        assert math.isclose(float(scores.abs().max()), 1.0, rel_tol=1e-6)
