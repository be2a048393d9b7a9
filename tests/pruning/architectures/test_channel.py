from pathlib import Path

import pytest

from robustcompress.pruning.patterns.channel import Channel
from tests.pruning.architectures.matrix import assert_all_agree, baked
from tests.pruning.architectures.networks import ARCHITECTURES, settled


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if ARCHITECTURES[name].macs > 0])
def test_channels_masked_and_gone_and_exported_give_the_same_logits(name: str, tmp_path: Path) -> None:
    masked = baked(name, Channel(round_to=1), 0.5)
    result = assert_all_agree(masked, tmp_path / "network.onnx")
    before, after = (
        sum(parameter.numel() for parameter in network.parameters())
        for network in (settled(name), result.network)
    )
    assert after < 0.8 * before
    assert all(count > 0 for count in result.removed.values())
