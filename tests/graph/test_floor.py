"""The floor against torch's own count of operations, and against bytes counted by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustcompress.errors import ModelError
from robustcompress.graph.floor import Passes, step_floor
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Moment, Objective
from robustcompress.training.step import Stepper
from robustcompress.zoo.networks import Network


class Counter(TorchDispatchMode):
    """torch's formulas for each operation; its own counter cannot follow ``torch.autograd.grad``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def test_passes_are_those_of_the_papers() -> None:
    assert Passes.pgd(7) == Passes(forward=8, to_images=7, to_weights=1)
    assert Passes.trades(10) == Passes(forward=13, to_images=10, to_weights=2)


@pytest.mark.parametrize("kind", ["pgd", "trades"])
@pytest.mark.parametrize(("name", "shape"), [("small_cnn", (1, 28, 28)), ("resnet18", (3, 32, 32))])
def test_a_real_step_has_exactly_the_floors_operations(name: str, shape: tuple[int, ...], kind: str) -> None:
    torch.manual_seed(0)
    network, images, steps = Network.find(name).build(), torch.rand(2, *shape), 2
    passes = {"pgd": Passes.pgd, "trades": Passes.trades}[kind](steps)
    stepper = Stepper(
        network.train(),
        None,
        objective=Objective.find({"kind": kind, "steps": steps}),
        threat=Threat(norm="linf", eps=0.1),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        device=torch.device("cpu"),
        precision="fp32",
        clip_gradient=None,
        seed=0,
    )
    with Counter() as counter:
        stepper.step(images, torch.tensor([1, 2]), Moment(0, 1, 0, 1))
    assert step_floor(network, images, passes, batch=2).flops == counter.flops


def test_bytes_of_two_layers_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 3)).train()
    images = torch.rand(2, 1, 5, 5)
    floor = step_floor(network, images, Passes(forward=3, to_images=2, to_weights=1), batch=10, width=2)
    first = (25 + 100) * 10 + 36
    last = (100 + 3) * 10 + 300
    assert floor.bytes == 2 * (first * (3 + 2 + 1) + last * (3 + 2 + 2))
    assert floor.flops == 2 * 10 * (36 * 25 * 6 + 300 * 7)


class Reversed(nn.Module):
    """Its layers are named in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.norm, self.first = nn.Linear(5, 3), nn.BatchNorm1d(5), nn.Linear(7, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(images)))
        return logits


def test_the_first_layer_is_the_one_called_first() -> None:
    floor = step_floor(Reversed(), torch.rand(2, 7), Passes(forward=0, to_images=0, to_weights=1), batch=1)
    assert floor.flops == 2 * (35 + 2 * 15)


def test_modes_and_statistics_stay_as_they_are() -> None:
    network = Reversed().train()
    network.norm.eval()
    before = [buffer.clone() for buffer in network.buffers()]
    step_floor(network, torch.rand(2, 7), Passes.pgd(1), batch=1)
    assert (network.training, network.norm.training, network.first.training) == (True, False, True)
    assert all(torch.equal(*pair) for pair in zip(before, network.buffers(), strict=True))


def test_images_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"cannot be called with images \[2, 6\]"):
        step_floor(Reversed(), torch.rand(2, 6), Passes.pgd(1), batch=1)
