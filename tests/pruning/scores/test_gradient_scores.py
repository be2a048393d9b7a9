import torch

from robustcompress.pruning.scores.snip import Snip
from robustcompress.pruning.scores.taylor import Taylor

BATCHES = torch.tensor([[3.0, -1.0, 0.5], [-1.0, -3.0, 0.5]])  # gradients of three gates in two batches


def test_snip_is_the_magnitude_of_the_whole_gradient() -> None:
    scores = Snip().from_gradients(BATCHES.mean(0), BATCHES.square().mean(0))
    assert scores.tolist() == [1.0, 2.0, 0.5]


def test_taylor_is_the_mean_of_squares() -> None:
    scores = Taylor().from_gradients(BATCHES.mean(0), BATCHES.square().mean(0))
    assert scores.tolist() == [5.0, 5.0, 0.25]
