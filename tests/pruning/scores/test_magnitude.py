import torch

from robustcompress.pruning.scores.magnitude import Magnitude


def test_scores_are_the_weights() -> None:
    weight = torch.randn(4, 3, 3, 3)
    assert torch.equal(Magnitude().initial(weight, 27), weight)
    assert not Magnitude.learns
