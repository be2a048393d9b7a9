"""Peaks against sums that can be done by hand."""

import torch
from torch import nn

from robustcompress.training.memory import PeakMemory
from robustcompress.training.recompute import recompute_activations

MIB = 2**20


def test_the_peak_is_what_was_alive_at_once_and_not_what_was_ever_made() -> None:
    with PeakMemory() as memory:
        for _ in range(3):
            held = torch.zeros(MIB // 4)
            del held
        pair = [torch.zeros(MIB // 4) for _ in range(2)]
        del pair
    assert memory.peak == 2 * MIB


def test_a_view_costs_nothing_and_given_tensors_count() -> None:
    given = torch.zeros(MIB // 4)
    with PeakMemory([given, given[1:]]) as memory:
        assert memory.peak == memory.held == MIB
        given.view(2, -1).transpose(0, 1)
        assert memory.peak == MIB
        given.add_(1)
        assert memory.peak == MIB


def test_what_autograd_keeps_counts_until_the_backward_pass() -> None:
    points = torch.zeros(MIB // 4, requires_grad=True)
    with PeakMemory([points]) as memory:
        # Each exp keeps its result for the backward pass.
        result = points.exp().exp().exp()
        assert memory.peak == 4 * MIB
        result.sum().backward()
    assert memory.peak <= 4 * MIB + 2 * MIB + 64  # two gradients at a time besides


def _deep(layers: int) -> nn.Sequential:
    parts = (nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()) for _ in range(layers))
    return nn.Sequential(*parts)


def test_recomputing_holds_the_blocks_inputs_and_one_block() -> None:
    peaks: list[int] = []
    gradients: list[torch.Tensor] = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = _deep(16)
        if recompute:
            assert recompute_activations(network) == 16
        inputs = torch.rand(1024, 64)
        with PeakMemory([inputs, *network.parameters()]) as memory:
            network(inputs).square().sum().backward()
        peaks.append(memory.peak - memory.held)
        gradient = network.get_parameter("0.0.weight").grad
        assert gradient is not None
        gradients.append(gradient)
    activation = 1024 * 64 * 4
    # Kept: two tanh results a block, and some gradients. Recomputed: one input a block.
    assert peaks[0] > 32 * activation
    assert peaks[1] < 24 * activation
    assert torch.equal(*gradients)


def test_a_sequence_of_single_layers_is_cut_into_about_the_root_of_their_number() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*(layer for _ in range(16) for layer in (nn.Linear(8, 8), nn.Tanh())))
    inputs = torch.rand(4, 8)
    expected = network(inputs)
    assert recompute_activations(network) == 4
    outputs = network(inputs)
    assert torch.equal(outputs, expected)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_without_gradients_nothing_is_recomputed() -> None:
    calls: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            result: torch.Tensor = self.b(self.a(values))
            return result

    network = nn.Sequential(Counting(), Counting())
    assert recompute_activations(network) == 2
    with torch.no_grad():
        network(torch.rand(2, 4))
    assert len(calls) == 2
    network(torch.rand(2, 4)).sum().backward()
    assert len(calls) == 6
