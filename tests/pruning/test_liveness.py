from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustcompress.pruning.groups import couplings
from robustcompress.pruning.liveness import live_channels


def mlp(widths: list[int], seed: int, kept: float) -> nn.Sequential:
    """A chain of linear layers whose weights are 1 or 0: an output counts its paths from a channel."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(taken, made) for taken, made in pairwise(widths)]
    for layer in layers:
        layer.weight.data = (torch.rand(layer.weight.shape, generator=generator) < kept).float()
    return nn.Sequential(*layers)


@settings(deadline=None, max_examples=40)
@given(
    widths=st.lists(st.integers(2, 6), min_size=3, max_size=5),
    seed=st.integers(0, 2**16),
    kept=st.floats(0.05, 0.9),
)
def test_in_a_chain_a_channel_is_live_if_a_path_of_weights_leads_to_an_output(
    widths: list[int], seed: int, kept: float
) -> None:
    network = mlp(widths, seed, kept)
    live = live_channels(network, couplings(network, torch.rand(2, widths[0])).groups)
    paths = torch.eye(widths[-1])
    for index in reversed(range(1, len(widths) - 1)):
        paths = paths @ network.get_submodule(str(index)).get_parameter("weight")
        assert torch.equal(live[str(index - 1)], paths.sum(0) > 0)


class Stream(nn.Module):
    """A residual stream: what blocks write there other blocks, and they themselves, may read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.enter = nn.ModuleList(nn.Linear(4, 5) for _ in range(2))
        self.leave = nn.ModuleList(nn.Linear(5, 4) for _ in range(2))
        self.last = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        for enter, leave in zip(self.enter, self.leave, strict=True):
            stream = stream + leave(enter(stream).relu())
        logits: Tensor = self.last(stream)
        return logits


def test_channels_of_a_stream_that_read_only_each_other_are_dead() -> None:
    network = Stream()
    groups = couplings(network, torch.rand(2, 3)).groups
    with torch.no_grad():
        for layer in (*network.enter, *network.leave, network.last):
            assert isinstance(layer, nn.Linear)
            layer.weight.zero_()
        network.last.weight[0, 0] = 1.0  # the logits read channel 0 of the stream,
        for enter, leave in zip(network.enter, network.leave, strict=True):
            assert isinstance(enter, nn.Linear)
            assert isinstance(leave, nn.Linear)
            enter.weight[1, 3] = 1.0  # and hidden 1 reads 3 and writes 3, for nobody else
            leave.weight[3, 1] = 1.0
            enter.weight[2, 1] = 1.0
            leave.weight[0, 2] = 1.0  # hidden 2 reads 1 and writes 0
    live = live_channels(network, groups)
    assert live["stem"].tolist() == [True, True, False, False]
    assert live["enter.0"].tolist() == [False, False, True, False, False]
    assert live["enter.1"].tolist() == [False, False, True, False, False]


def test_a_grouped_convolution_reads_a_channel_if_one_of_its_groups_does() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(6 * 4, 2)
    )
    groups = couplings(network, torch.rand(2, 3, 2, 2)).groups
    with torch.no_grad():
        network.get_parameter("1.weight").zero_()
        network.get_parameter("1.weight")[4, 1] = 1.0  # the second group reads its second channel, 3
    live = live_channels(network, groups)
    assert live["0"].tolist() == [False, True]  # channels 0 and 2 of both groups, 1 and 3
    assert live["1"].tolist() == [True, True, True]


@pytest.mark.parametrize(("layer", "live"), [("ignored", True), ("read", False)])
def test_filters_outside_all_groups_are_live(layer: str, live: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    found = couplings(network, torch.rand(2, 3), ignore=("2",) if layer == "ignored" else ())
    with torch.no_grad():
        network.get_parameter("2.weight").zero_()
    assert bool(live_channels(network, found.groups)["0"].all()) is live
