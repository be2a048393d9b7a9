import threading

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.pruning.copies import double_copy, private_copy, run


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.lock = threading.Lock()


class Many(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images}


def test_a_network_that_cannot_be_copied_says_what_is_in_the_way() -> None:
    with pytest.raises(
        ModelError, match=r"Locked must be copyable .*cannot pickle '_thread.lock' object\. Keep"
    ):
        private_copy(Locked())


def test_a_double_copy_shares_nothing_with_the_network() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = double_copy(network)
    assert not twin.training
    assert network.training
    assert {tensor.dtype for tensor in twin.parameters()} == {torch.float64}
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def test_a_network_that_returns_something_else_than_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="Many must return one tensor of logits; got dict"):
        run(Many(), torch.rand(1, 2))


def test_a_failure_without_words_is_named_by_its_type() -> None:
    class Silent(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(ModelError, match=r"of shape \[1, 2\]; NotImplementedError: no message\. Pass"):
        run(Silent(), torch.rand(1, 2))
