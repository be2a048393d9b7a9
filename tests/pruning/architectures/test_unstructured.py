from pathlib import Path

import pytest

from robustcompress.pruning.patterns.unstructured import Unstructured
from tests.pruning.architectures.matrix import assert_all_agree, baked
from tests.pruning.architectures.networks import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_masked_and_compacted_and_exported_give_the_same_logits(name: str, tmp_path: Path) -> None:
    masked = baked(name, Unstructured(), 0.9)
    result = assert_all_agree(masked, tmp_path / "network.onnx")
    kept = sum(int((parameter != 0).sum()) for parameter in result.network.parameters())
    assert kept <= sum(int((parameter != 0).sum()) for parameter in masked.parameters())
