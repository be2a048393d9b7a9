import pytest
import torch
from torch import nn
from torch.func import functional_call

from robustcompress.errors import ModelError
from robustcompress.pruning.patterns.unstructured import Unstructured


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(6, 4), 6),
        (nn.Conv1d(4, 6, 3), 12),
        (nn.Conv2d(4, 6, (3, 5)), 60),
        (nn.Conv2d(4, 6, 3, groups=2), 18),
        (nn.Conv3d(2, 3, 2), 16),
    ],
)
def test_every_weight_is_a_unit_and_no_bias_is(layer: nn.Module, fan_in: int) -> None:
    (site,) = Unstructured().plan(nn.Sequential(layer), torch.zeros(1), ()).sites
    weight = layer.get_parameter("weight")
    assert (site.name, site.shape, site.fan_in) == ("0", tuple(weight.shape), fan_in)
    assert site.parameters == ("0.weight",)
    assert site.layers == ("0",)
    assert site.units == weight.numel()
    assert torch.equal(site.saliency({"0.weight": weight}), weight)


def test_a_mask_of_weights_multiplies_them() -> None:
    network = nn.Linear(3, 2)
    (site,) = Unstructured().plan(network, torch.zeros(1, 3), ()).sites
    mask = torch.tensor([[True, False, True], [False, False, True]])
    parameters = dict(network.named_parameters())
    tensors: dict[str, torch.Tensor] = dict(parameters)
    site.apply(tensors, mask.float())
    images = torch.rand(4, 3)
    expected = images @ (network.weight * mask).T + network.bias
    torch.testing.assert_close(functional_call(network, tensors, (images,)), expected)
    site.bake(parameters, mask)
    torch.testing.assert_close(network(images), expected)
    assert not bool(network.weight.detach()[~mask].signbit().any())


def test_the_error_names_what_was_left_alone() -> None:
    with pytest.raises(ModelError, match=r"left to prune \(1 are left alone: 0: ignored by '0'\)\."):
        Unstructured().plan(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), ("0",))
    with pytest.raises(ModelError, match=r"layer left to prune\.$"):
        Unstructured().plan(nn.ReLU(), torch.zeros(1, 2), ())
