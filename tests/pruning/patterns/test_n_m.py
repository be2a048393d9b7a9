"""N of every M against brute force over all groups, and against torch's own 2:4 layout."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.sparse import _semi_structured_conversions as semi_structured

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns.n_m import NM, NMSite
from robustcompress.pruning.scores.learned import Learned
from robustcompress.pruning.scores.magnitude import Magnitude

LAYERS = [
    nn.Linear(16, 6), nn.Conv1d(8, 6, 3), nn.Conv2d(16, 5, (3, 2)), nn.Conv2d(16, 8, 3, groups=2),
    nn.Conv3d(8, 2, 2),
]  # fmt: skip


def site_of(layer: nn.Module, pattern: NM) -> NMSite:
    (site,) = pattern.plan(nn.Sequential(layer), torch.zeros(1), ()).sites
    assert isinstance(site, NMSite)
    return site


def by_brute_force(scores: Tensor, n: int, m: int) -> Tensor:
    """Choose among all subsets of each group the one of largest sum."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    outer = [range(length) for axis, length in enumerate(scores.shape) if axis != 1]
    for output, *position in itertools.product(*outer):
        for start in range(0, scores.shape[1], m):
            places = [(output, start + offset, *position) for offset in range(m)]
            best = max(
                itertools.combinations(places, n),
                key=lambda some: sum(float(scores[at].abs()) for at in some),
            )
            for at in best:
                mask[at] = True
    return mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 4)])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_each_group_along_the_inputs_keeps_the_largest(layer: nn.Module, n: int, m: int) -> None:
    site = site_of(layer, NM(n=n, m=m))
    scores = torch.randn(site.shape, generator=torch.Generator().manual_seed(0))
    removed = site.units * (m - n) // m
    assert site.fixed_removed == removed
    mask = site.select(scores, removed)
    assert torch.equal(mask, by_brute_force(scores, n, m))
    assert int(mask.sum()) == site.units * n // m
    # channels_last scores give the same mask.
    if scores.ndim == 4:
        other = scores.contiguous(memory_format=torch.channels_last)
        assert torch.equal(site.select(other, removed), mask)


def test_of_equal_scores_the_later_stay() -> None:
    site = site_of(nn.Linear(4, 2), NM())
    mask = site.select(torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 2.0, 0.0, -2.0]]), 4)
    assert mask.tolist() == [[False, False, True, True], [False, True, False, True]]


@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(64, 32, 3)], ids=str)
def test_torchs_semi_structured_layout_holds_what_is_kept(layer: nn.Module) -> None:
    """Compressed and expanded again the weight is the same; a dense weight is not."""
    network = nn.Sequential(layer)
    masking = Masking(
        NM().plan(network, torch.zeros(1), ()).sites,
        score=Magnitude(),
        budget=Budget.find("uniform"),
        sparsity=0.9,
        parameters=dict(network.named_parameters()),
    )
    weight = layer.get_parameter("weight")

    def comes_back() -> bool:
        # The matrix of a convolution at each kernel position.
        for matrix in weight.detach().half().flatten(2).unbind(2) if weight.ndim > 2 else [weight.half()]:
            dense = matrix.detach().contiguous()
            values, meta = semi_structured.sparse_semi_structured_from_dense_cutlass(dense)
            assert values.numel() == dense.numel() // 2
            if not torch.equal(semi_structured.sparse_semi_structured_to_dense_cutlass(values, meta), dense):
                return False
        return True

    assert not comes_back()
    masking.bake(network)
    assert comes_back()


def test_masks_of_learned_scores_stay_n_of_m() -> None:
    network = nn.Sequential(nn.Linear(8, 6))
    sites = NM().plan(network, torch.zeros(1, 8), ()).sites
    masking = Masking(
        sites, score=Learned(), budget=Budget.find("global"), sparsity=0.9,
        parameters=dict(network.named_parameters()),
    )  # fmt: skip
    optimizer = torch.optim.SGD(masking.learnable(), lr=1.0)
    before = masking.masks[0].clone()
    for step in range(5):
        optimizer.zero_grad()
        images = torch.rand(3, 8, generator=torch.Generator().manual_seed(step))
        logits = torch.func.functional_call(
            network, masking.tensors(dict(network.named_parameters())), (images,)
        )
        logits.square().sum().backward()
        optimizer.step()
        masking.after_step()
        assert bool((masking.masks[0].reshape(-1, 4).sum(1) == 2).all())
    assert not torch.equal(masking.masks[0], before)


def test_layers_that_do_not_divide_stay_dense_with_a_reason() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(6, 4)
    )
    plan = NM().plan(network, torch.zeros(1), ())
    assert [site.name for site in plan.sites] == ["2"]
    assert {item.name: item.reason for item in plan.frozen} == {
        "0": "its 3 input channels are no multiple of 4",
        "1": "its 1 input channels of each group are no multiple of 4",
        "3": "its 6 input channels are no multiple of 4",
    }


def test_another_sparsity_than_the_patterns_is_refused() -> None:
    site = site_of(nn.Linear(8, 2), NM())
    with pytest.raises(ConfigError, match=r"'0' loses exactly 8 weights with 2:4; got 4\. Use the pattern"):
        site.select(torch.rand(2, 8), 4)


def test_a_pattern_that_removes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n must be below m; got 4:4\. 2:4 keeps 2 of every 4 weights"):
        NM(n=4, m=4)
    assert NM().fixed_sparsity == 0.5
    assert NM(n=1, m=4).fixed_sparsity == 0.75
