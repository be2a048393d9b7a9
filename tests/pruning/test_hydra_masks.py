from decimal import Decimal

import pytest
import torch

from robustcompress.errors import ConfigError, StorageError
from robustcompress.pruning.hydra_masks import hydra_mask


@pytest.mark.parametrize("k", [0.01, 0.05, 0.1, 0.29, 0.5, 0.9, 1.0])
def test_the_largest_absolute_scores_stay_and_their_number_is_the_references(k: float) -> None:
    # Different absolute scores of both signs, so that nothing depends on ties.
    scores = (torch.randperm(300, generator=torch.Generator().manual_seed(0)) + 1.0).reshape(10, 30)
    scores[::2] *= -1
    mask = hydra_mask(scores, k)
    ranked = sorted(abs(score) for score in scores.flatten().tolist())
    threshold = ranked[int((1 - k) * 300)]
    assert torch.equal(mask, scores.abs() >= threshold)


def test_the_references_floor_keeps_one_weight_more_where_one_minus_k_is_inexact() -> None:
    # 1 - 0.9 is 0.09999999999999998 in floating point, so that 9 of 100 go where 10 should.
    assert int(hydra_mask(torch.arange(100.0), 0.9).sum()) == 91
    assert int((1 - Decimal("0.9")) * 100) == 10


def test_nonsense_is_refused() -> None:
    for k in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            hydra_mask(torch.ones(3), k)
    with pytest.raises(StorageError, match="must be finite"):
        hydra_mask(torch.tensor([1.0, float("nan")]), 0.5)
