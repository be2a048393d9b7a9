"""Blocks against loops over them, and against the blocks that torch's block-sparse tensors store."""

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns.block import Block
from robustcompress.pruning.scores.magnitude import Magnitude

LAYERS = [
    nn.Linear(6, 8), nn.Conv1d(4, 8, 3), nn.Conv2d(6, 4, (3, 2)), nn.Conv2d(8, 8, 3, groups=2),
    nn.Conv3d(2, 4, 2),
]  # fmt: skip


@pytest.mark.parametrize("size", [(4, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_units_are_blocks_of_each_kernel_position(layer: nn.Module, size: tuple[int, int]) -> None:
    height, width = size
    (site,) = Block(height=height, width=width).plan(nn.Sequential(layer), torch.zeros(1), ()).sites
    weight = layer.get_parameter("weight").detach()
    assert site.units * height * width == weight.numel()
    assert site.weight_shape == tuple(weight.shape)
    norms = site.saliency({"0.weight": weight})
    gate = (torch.rand(site.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    tensors: dict[str, Tensor] = {"0.weight": weight}
    site.apply(tensors, gate)
    baked = nn.Parameter(weight.clone())
    site.bake({"0.weight": baked}, gate.bool())
    for place in itertools.product(*(range(length) for length in site.shape)):
        row, column, *position = place
        block: tuple[slice | int, ...] = (
            slice(row * height, (row + 1) * height),
            slice(column * width, (column + 1) * width),
            *position,
        )
        norm = math.sqrt(float(weight[block].double().square().sum()))
        assert math.isclose(float(norms[place]), norm, rel_tol=1e-5)
        expected = weight[block] if bool(gate[place]) else torch.zeros(())
        assert torch.equal(tensors["0.weight"][block], expected.expand_as(weight[block]))
        assert torch.equal(baked.detach()[block], expected.expand_as(weight[block]))
    assert not bool(baked.detach()[baked == 0].signbit().any())


@pytest.mark.parametrize("layer", [nn.Linear(12, 8), nn.Conv2d(8, 12, 3)], ids=str)
def test_a_block_sparse_tensor_stores_exactly_the_kept_blocks(layer: nn.Module) -> None:
    network = nn.Sequential(layer)
    masking = Masking(
        Block(height=4, width=2).plan(network, torch.zeros(1), ()).sites,
        score=Magnitude(),
        budget=Budget.find("uniform"),
        sparsity=0.75,
        parameters=dict(network.named_parameters()),
    )
    masking.bake(network)
    weight = layer.get_parameter("weight").detach()
    # Outputs by (kernel position, input), as a matrix product takes them.
    matrix = weight.movedim(1, -1).flatten(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: its sparse layouts are in beta
        stored = matrix.to_sparse_bsr((4, 2)).values().shape[0]
    assert stored == int(masking.masks[0].sum())
    assert stored == masking.sites[0].units // 4


def test_gradients_of_a_gate_are_sums_over_its_block() -> None:
    (site,) = Block(height=2, width=2).plan(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1), ()).sites
    weight, slope = torch.randn(4, 4), torch.randn(4, 4)
    gate = torch.ones(2, 2, requires_grad=True)
    tensors: dict[str, Tensor] = {"0.weight": weight}
    site.apply(tensors, gate)
    (tensors["0.weight"] * slope).sum().backward()
    product = weight * slope
    expected = [[product[r : r + 2, c : c + 2].sum() for c in (0, 2)] for r in (0, 2)]
    assert gate.grad is not None
    torch.testing.assert_close(gate.grad, torch.tensor(expected))


def test_layers_that_do_not_divide_stay_dense_with_a_reason() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(4, 10)
    )
    plan = Block(height=4, width=2).plan(network, torch.zeros(1), ())
    assert [site.name for site in plan.sites] == ["2"]
    assert {item.name: item.reason for item in plan.frozen} == {
        "0": "its 3 input channels are no multiple of 2",
        "1": "its 2 output channels of each group are no multiple of 4",
        "3": "its 10 output channels are no multiple of 4",
    }
