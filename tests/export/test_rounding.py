import numpy as np
import pytest
import torch
from torch import nn

from robustcompress.errors import ExportError
from robustcompress.export.rounding import round_values
from robustcompress.export.values import ValueType, code


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()


@pytest.mark.parametrize("kind", ["float16", "int8", "int6", "int4"])
def test_weights_are_what_the_bits_give_back_and_all_else_is_float16(kind: ValueType) -> None:
    before = network()
    held = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    rounded = round_values(before, kind)
    after = rounded.network.state_dict()
    for name, tensor in held.items():
        assert torch.equal(before.state_dict()[name], tensor)
        if tensor.dtype == torch.int64:
            assert name not in rounded.coded
            continue
        own: ValueType = kind if name in ("0.weight", "4.weight") else "float16"
        assert rounded.coded[name].kind == own
        np.testing.assert_array_equal(after[name].numpy(), code(tensor.numpy(), own).values)


def test_float32_rounds_nothing() -> None:
    rounded = round_values(network(), "float32")
    assert rounded.coded == {}
    for name, tensor in network().state_dict().items():
        assert torch.equal(rounded.network.state_dict()[name], tensor)


def test_a_shared_weight_is_rounded_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    rounded = round_values(nn.Sequential(layer, nn.ReLU(), layer), "int8").network
    assert isinstance(rounded, nn.Sequential)
    assert rounded[0] is rounded[2]


def test_a_value_that_does_not_fit_is_named() -> None:
    large = network()
    with torch.no_grad():
        large.get_parameter("4.bias")[2] = 1e6
    with pytest.raises(ExportError, match=r"4\.bias: a weight of 1e\+06 is too large"):
        round_values(large, "int8")
