"""The oracle is the pruned network itself: the rebuilt one must compute the same, bit for bit."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import StorageError
from robustcompress.storage.rebuild import load_into
from robustcompress.storage.sparse_file import read_tensors, write_tensors


class Net(nn.Module):
    """Two convolutions with BN, a residual-free depthwise pair, PReLU and a classifier."""

    def __init__(self, widths: tuple[int, int, int] = (8, 12, 10)) -> None:
        super().__init__()
        a, b, hidden = widths
        self.stem = nn.Conv2d(3, a, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(a)
        self.depthwise = nn.Conv2d(a, a, 3, padding=1, groups=a)
        self.act = nn.PReLU(a)
        self.point = nn.Conv2d(a, b, 1)
        self.group_norm = nn.GroupNorm(1, b)
        self.up = nn.ConvTranspose2d(b, b, 2, stride=2)
        self.instance = nn.InstanceNorm2d(b, affine=True, track_running_stats=True)
        self.hidden = nn.Linear(b, hidden)
        self.layer_norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.norm(self.stem(images))))
        x = self.instance(self.up(self.group_norm(self.point(x))))
        found = self.head(torch.relu(self.layer_norm(self.hidden(x.mean((2, 3))))))
        assert isinstance(found, Tensor)
        return found


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic random, so that no default can hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
            else:
                tensor.fill_(11)
    return network.eval()


def pruned() -> nn.Module:
    """What is left of ``Net()``: built narrow from the start, which is the oracle."""
    return randomised(Net((5, 7, 6)))


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_same_network(built: nn.Module, oracle: nn.Module) -> None:
    state = built.state_dict()
    assert list(state) == list(oracle.state_dict())
    for name, tensor in oracle.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    assert repr(built) == repr(oracle)  # in_channels, groups, num_features ... of every layer


def test_a_wide_network_becomes_the_pruned_one() -> None:
    built = Net().eval()
    load_into(built, pruned().state_dict())
    assert_same_network(built, pruned())
    assert torch.equal(built(IMAGES), pruned()(IMAGES))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = self.second(torch.relu(self.norm(self.first(images))))
        assert isinstance(found, Tensor)
        return found


def test_a_hand_pruned_network_is_rebuilt_from_a_file() -> None:
    """Channels removed by slicing weights, as compaction does, rather than by building narrow."""
    wide = Plain()
    randomised(wide)
    kept = torch.tensor([0, 3, 4, 7])
    narrow = copy.deepcopy(wide)
    for layer in (narrow.first, narrow.norm):
        layer.weight = nn.Parameter(layer.weight.detach()[kept])
        assert layer.bias is not None
        layer.bias = nn.Parameter(layer.bias.detach()[kept])
    assert narrow.norm.running_mean is not None
    assert narrow.norm.running_var is not None
    narrow.norm.running_mean = narrow.norm.running_mean[kept]
    narrow.norm.running_var = narrow.norm.running_var[kept]
    narrow.second.weight = nn.Parameter(narrow.second.weight.detach()[:, kept])
    built = Plain().eval()
    load_into(built, read_tensors(write_tensors(narrow.state_dict())))
    assert torch.equal(built(IMAGES), narrow(IMAGES))
    # Removed channels that nobody reads change nothing: the wide network agrees too.
    with torch.no_grad():
        wide.second.weight[:, [1, 2, 5, 6]] = 0
    torch.testing.assert_close(built(IMAGES), wide(IMAGES))


def test_the_rebuilt_network_can_be_trained_like_the_pruned_one() -> None:
    built, oracle = Net(), pruned().train()
    load_into(built, pruned().state_dict())
    for network in (built, oracle):
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        network(IMAGES).square().sum().backward()
        optimizer.step()
    assert_same_network(built, oracle)


def test_a_network_of_the_same_shapes_keeps_its_tensor_objects() -> None:
    built = Net((5, 7, 6)).eval()
    before = {name: id(tensor) for name, tensor in built.state_dict(keep_vars=True).items()}
    load_into(built, pruned().state_dict())
    assert {name: id(tensor) for name, tensor in built.state_dict(keep_vars=True).items()} == before
    assert_same_network(built, pruned())


def test_what_learns_stays_what_learns() -> None:
    built = Net().requires_grad_(False)
    built.head.requires_grad_(True)
    load_into(built, pruned().state_dict())
    assert not built.stem.weight.requires_grad
    assert built.head.weight.requires_grad


def test_tensors_take_the_saved_dtype() -> None:
    built = Net()
    load_into(built, pruned().double().state_dict())
    assert_same_network(built, pruned().double())


def test_the_saved_tensors_are_copied() -> None:
    tensors = pruned().state_dict()
    built = Net()
    load_into(built, tensors)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert tensors["stem.weight"].abs().sum() > 0


class Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Linear(width, width, bias=False)
        self.b = nn.Linear(width, width, bias=False)
        self.b.weight = self.a.weight


def test_tied_weights_stay_tied() -> None:
    built, oracle = Tied(8), randomised(Tied(5))
    load_into(built, oracle.state_dict())
    assert built.a.weight is built.b.weight
    assert_same_network(built, oracle)


def test_tied_weights_that_were_saved_apart_are_refused() -> None:
    tensors = {"a.weight": torch.ones(8, 8), "b.weight": torch.zeros(8, 8)}
    with pytest.raises(StorageError, match=r"b\.weight and a\.weight are one tensor in the network built"):
        load_into(Tied(8), tensors)


def test_a_layer_used_twice_is_resized_once() -> None:
    def make(width: int) -> nn.Sequential:
        layer = nn.Linear(width, width)
        return nn.Sequential(layer, nn.ReLU(), layer)

    built, oracle = make(8), randomised(make(5))
    load_into(built, oracle.state_dict())
    assert built[0] is built[2]
    assert_same_network(built, oracle)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (lambda: nn.Conv1d(4, 6, 3), lambda: nn.Conv1d(2, 3, 3)),
        (lambda: nn.Conv3d(4, 6, (1, 2, 3), bias=False), lambda: nn.Conv3d(4, 1, (1, 2, 3), bias=False)),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), lambda: nn.Conv2d(3, 3, 3, groups=3)),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), lambda: nn.Conv2d(1, 1, 3, groups=1)),
        (lambda: nn.Conv2d(16, 32, 3, groups=4), lambda: nn.Conv2d(8, 32, 3, groups=4)),
        (lambda: nn.Conv2d(16, 32, 3, groups=4), lambda: nn.Conv2d(8, 16, 3, groups=4)),
        (lambda: nn.Conv2d(15, 30, 3, groups=5), lambda: nn.Conv2d(9, 18, 3, groups=3)),
        (lambda: nn.ConvTranspose1d(4, 6, 3), lambda: nn.ConvTranspose1d(2, 3, 3)),
        (lambda: nn.BatchNorm1d(9, affine=False), lambda: nn.BatchNorm1d(2, affine=False)),
        (lambda: nn.BatchNorm3d(9, 1e-5, 0, True, False), lambda: nn.BatchNorm3d(2, 1e-5, 0, True, False)),
        (lambda: nn.GroupNorm(9, 9), lambda: nn.GroupNorm(4, 4)),
        (lambda: nn.GroupNorm(3, 9), lambda: nn.GroupNorm(3, 9)),
        (lambda: nn.LayerNorm([4, 6]), lambda: nn.LayerNorm([3, 6])),
        (lambda: nn.PReLU(4), lambda: nn.PReLU(1)),
        (lambda: nn.Linear(4, 6, bias=False), lambda: nn.Linear(4, 1, bias=False)),
    ],
)  # fmt: skip
def test_each_kind_of_layer_takes_the_saved_shape(
    wide: Callable[[], nn.Module], narrow: Callable[[], nn.Module]
) -> None:
    built, oracle = wide(), randomised(narrow())
    load_into(built, oracle.state_dict())
    assert_same_network(built, oracle)
    inside = nn.ModuleDict({"layer": wide()})
    load_into(inside, {f"layer.{name}": tensor for name, tensor in oracle.state_dict().items()})
    assert_same_network(inside["layer"], oracle)


class Positions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(width))


@pytest.mark.parametrize(
    ("network", "saved", "message"),
    [
        (nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(8, 16, 3, groups=2), "16 of 32 channels in 4 .* 2 or 4"),
        (nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(4, 8, 3, groups=4), "8 of 16 channels in 8 .* 4 or 8"),
        (nn.GroupNorm(4, 16), nn.GroupNorm(2, 8), r"8 of 16 channels in 4 groups are left, .* 2 or 4 groups"),
        (nn.GroupNorm(4, 16), nn.GroupNorm(1, 7), r"7 of 16 channels in 4 groups .* no number of groups"),
        (nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(1, 7, 1), "7 saved output channels cannot be spread"),
        (nn.ConvTranspose2d(4, 4, 2, groups=2), nn.ConvTranspose2d(2, 4, 2, groups=2), "cannot be made"),
        (nn.Linear(4, 5), nn.Linear(4, 6), r"weight: Linear has \[5, 4\], the saved tensor \[6, 4\]"),
        (nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 1), r"weight: Conv2d has \[5, 4, 3, 3\], the saved tensor"),
        (nn.Conv2d(4, 5, 3), nn.Conv1d(4, 5, 3), r"weight: Conv2d has .* saved tensor \[5, 4, 3\]"),
        (nn.Embedding(9, 4), nn.Embedding(9, 3), "weight: Embedding has .* cannot be made to fit"),
        (Positions(4), Positions(3), "table: Positions has .* cannot be made to fit"),
        (nn.Linear(4, 5), nn.Linear(4, 5, bias=False), r"missing \['bias'\]; unexpected \[\]"),
        (nn.Linear(4, 5, bias=False), nn.Linear(4, 5), r"missing \[\]; unexpected \['bias'\]"),
        (nn.LazyLinear(5), nn.Linear(4, 5), "has no shape yet: run the network once"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_become_the_saved_one_is_left_as_it_was(
    network: nn.Module, saved: nn.Module, message: str
) -> None:
    whole = nn.ModuleDict({"first": nn.Linear(3, 3), "last": network})
    tensors = nn.ModuleDict({"first": nn.Linear(2, 2), "last": saved}).state_dict()
    described = repr(whole)
    before = [parameter.detach().clone() for parameter in whole["first"].parameters()]
    with pytest.raises(
        StorageError, match=message.replace("['", "['last.") if "missing" in message else message
    ):
        load_into(whole, tensors)
    assert repr(whole) == described
    assert all(torch.equal(a, b) for a, b in zip(before, whole["first"].parameters(), strict=True))


def test_a_bias_that_does_not_match_its_weight_is_refused() -> None:
    with pytest.raises(StorageError, match=r"^bias: Linear has \[5\], the saved tensor \[3\]"):
        load_into(nn.Linear(4, 5), {"weight": torch.ones(4, 4), "bias": torch.ones(3)})


def test_whole_numbers_in_the_place_of_weights_are_refused() -> None:
    tensors = {"weight": torch.ones(5, 4, dtype=torch.int8), "bias": torch.ones(5)}
    with pytest.raises(StorageError, match=r"weight: expected a tensor like torch\.float32; .* torch\.int8"):
        load_into(nn.Linear(4, 5), tensors)


def test_missing_batch_counts_of_batch_norm_are_named() -> None:
    tensors = nn.BatchNorm2d(3).state_dict()
    del tensors["num_batches_tracked"]
    with pytest.raises(StorageError, match=r"missing \['num_batches_tracked'\]"):
        load_into(nn.BatchNorm2d(3), tensors)
