"""Channels that masks of single weights leave dead: all of them go, and the network stays the same."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcompress.export.formats.onnx import Onnx
from robustcompress.export.session import OnnxSession
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.compaction import Compacted, compact
from robustcompress.pruning.groups import couplings
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns import PRUNABLE
from robustcompress.pruning.patterns.channel import granularity
from robustcompress.pruning.patterns.unstructured import Unstructured
from robustcompress.pruning.scores.learned import Learned
from tests.pruning.conftest import CASES, build

ZOO = ("resnet18", "vgg16_bn", "small_cnn")


def sparse(name: str, sparsity: float, budget: str) -> tuple[nn.Module, Tensor]:
    """Return a network in float64 with a mask of single weights baked in, and images for it."""
    made = build(name)
    network = made.network.double().eval()
    sites = Unstructured().plan(network, made.images.double(), ()).sites
    parameters = dict(network.named_parameters())
    chosen = Budget.find(budget)
    Masking(sites, score=Learned(), budget=chosen, sparsity=sparsity, parameters=parameters).bake(network)
    return network, made.images.double()


def agree(network: nn.Module, result: Compacted, images: Tensor) -> None:
    unseen = torch.randn((4, *images.shape[1:]), dtype=torch.float64) * 5
    with torch.no_grad():
        expected, actual = network(unseen), result.network(unseen)
    assert float((expected - actual).abs().max()) <= 1e-10 * float(expected.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_at_99_percent_sparse_compact_and_exported_networks_agree(name: str, tmp_path: Path) -> None:
    network, images = sparse(name, 0.99, "global")
    result = compact(network, images)
    assert sum(result.removed.values()) > 0
    agree(network, result, images)
    single = copy.deepcopy(result.network).float()
    Onnx(style="compact").write(single, tmp_path / "model.onnx", images=images.float(), metadata={})
    exported = torch.as_tensor(OnnxSession(tmp_path / "model.onnx")(images.float())).double()
    with torch.no_grad():
        for reference in (network(images), result.network(images)):
            assert float((reference - exported).abs().max()) <= 1e-4 * float(reference.abs().max())


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(sorted(set(CASES) - {"wide_resnet_28_4", "vgg16_bn"})),
    seed=st.integers(0, 2**16),
    sparsity=st.floats(0.3, 0.995),
)
def test_whatever_weights_go_the_network_stays_the_same(name: str, seed: int, sparsity: float) -> None:
    made = build(name)
    network, images = made.network.double().eval(), made.images.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, PRUNABLE):
                module.weight *= torch.rand(module.weight.shape, generator=generator) >= sparsity
                rows = torch.rand(len(module.weight), generator=generator) < 0.3
                module.weight[rows] = 0.0
    agree(network, compact(network, images), images)


def disturbed(network: nn.Module, layer: str, channel: int, images: Tensor) -> bool:
    """Return whether the logits change if a channel of a layer puts out noise: brute force."""
    twin = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(7)

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        noisy = output.clone()
        noise = torch.randn(output[:, channel].shape, generator=generator, dtype=output.dtype)
        noisy[:, channel] = 30.0 * noise.abs() + 1.0
        return noisy

    twin.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        return not torch.equal(twin(images), network(images))


@pytest.mark.parametrize("sparsity", [0.9, 0.97])
@pytest.mark.parametrize("name", ["small_cnn", "flatten_cnn", "conv1d", "mlp"])
def test_in_a_chain_every_channel_that_does_not_count_is_removed(name: str, sparsity: float) -> None:
    network, images = sparse(name, sparsity, "uniform")
    result = compact(network, images)
    again = compact(result.network, images)
    assert not any(again.removed.values())
    for group in couplings(network, images).groups:
        layer = network.get_submodule(group.name)
        rows = (layer.get_parameter("weight") != 0).flatten(1).any(1)
        counts = [disturbed(network, group.name, channel, images) for channel in range(group.channels)]
        # A channel with a filter that counts stays, and so may one constant that others are carried by.
        alive = sum(bool(row) and count for row, count in zip(rows.tolist(), counts, strict=True))
        assert group.channels - result.removed[group.name] <= max(1, alive + 1)


def test_the_second_time_nothing_is_left_to_remove() -> None:
    network, images = sparse("resnet18", 0.97, "global")
    once = compact(network, images)
    twice = compact(once.network, images)
    assert sum(once.removed.values()) > 0
    assert not any(twice.removed.values())
    assert twice.difference == 0.0


@pytest.mark.parametrize("name", ["resnet18", "small_cnn"])
def test_widths_that_are_left_are_rounded_and_no_living_channel_goes(name: str) -> None:
    network, images = sparse(name, 0.97, "global")
    exact, rounded = compact(network, images), compact(network, images, round_to=16)
    agree(network, rounded, images)
    assert sum(rounded.removed.values()) > 0
    for group in couplings(network, images).groups:
        left, multiple = group.channels - rounded.removed[group.name], granularity(group.channels, 16)
        assert left % multiple == 0
        # Not one more than rounding needs.
        assert 0 <= exact.removed[group.name] - rounded.removed[group.name] < multiple
