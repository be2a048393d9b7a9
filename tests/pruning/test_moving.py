"""Masks that move, against the same exchange computed with NumPy."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from robustcompress.errors import ConfigError
from robustcompress.pruning.budgets import Budget
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.moving import MovingMasks, exchange
from robustcompress.pruning.patterns import Pattern
from robustcompress.pruning.patterns.n_m import NMSite
from robustcompress.pruning.patterns.unstructured import WeightSite
from robustcompress.pruning.scores.flying_bird import FlyingBird

Array = npt.NDArray[np.float64]
IMAGES = torch.rand(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved_by_numpy(
    weight: Array, gradient: Array, mask: npt.NDArray[np.bool_], dropped: int, staying: int
) -> Array:
    """Drop the weakest of the kept ones, then grow by gradient among all that are not there."""
    kept = np.flatnonzero(mask)
    survivors = kept[np.argsort(np.abs(weight[kept]), kind="stable")[dropped:]]
    others = np.setdiff1d(np.arange(len(weight)), survivors)
    grown = others[
        np.argsort(np.abs(gradient[others]), kind="stable")[len(others) - staying + len(survivors) :]
    ]
    moved = np.zeros(len(weight), bool)
    moved[survivors] = True
    moved[grown] = True
    return moved


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_what_goes_and_what_grows_is_what_numpy_finds(data: st.DataObject, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Whole numbers, so that there are ties, zeros among the kept ones too.
    weight, gradient = (random.integers(-4, 5, size).astype(float) for _ in range(2))
    mask = random.random(size) < 0.5
    dropped = data.draw(st.integers(0, int(mask.sum())))
    staying = data.draw(st.integers(int(mask.sum()) - dropped, size))
    site = WeightSite("layer", torch.zeros(1, size))
    values, slopes, present = (torch.from_numpy(row)[None] for row in (weight, gradient, mask))
    found = exchange(site, values, slopes, present, dropped, staying)
    assert found.tolist() == [moved_by_numpy(weight, gradient, mask, dropped, staying).tolist()]
    assert int(found.sum()) == staying


def test_without_gradients_and_with_infinite_ones_the_strong_weights_stay() -> None:
    site = WeightSite("layer", torch.zeros(1, 4))
    weight, mask = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([[True, True, True, False]])
    assert exchange(site, weight, None, mask, 1, 2).tolist() == [[True, True, False, False]]
    endless = torch.tensor([[0.0, 0.0, torch.nan, torch.inf]])
    assert exchange(site, weight, endless, mask, 1, 3).tolist() == [[True, True, False, True]]


def test_groups_of_n_of_m_stay_what_they_are() -> None:
    """The weakest of the site goes; the largest gradient of its own group comes."""
    site = NMSite("layer", torch.zeros(2, 4), 2, 4)
    weight = torch.tensor([[5.0, 4.0, 0.0, 0.0], [0.0, 3.0, 0.1, 0.0]])
    mask = torch.tensor([[True, True, False, False], [False, True, True, False]])
    gradient = torch.tensor([[0.0, 0.0, 9.0, 8.0], [1.0, 0.0, 0.0, 2.0]])
    moved = exchange(site, weight, gradient, mask, 1, 4)
    assert moved.tolist() == [[True, True, False, False], [False, True, False, True]]


class Bench:
    """A small network that trains under masks that move."""

    def __init__(
        self,
        score: FlyingBird,
        *,
        pattern: str = "unstructured",
        steps: int = 12,
        optimizer: str = "sgd",
        training_robust: Callable[[], float] = lambda: 0.0,
    ) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
        parameters = dict(self.network.named_parameters())
        sites = Pattern.find(pattern).plan(self.network, IMAGES, ()).sites
        generator = torch.Generator().manual_seed(2)
        self.masking = Masking(
            sites,
            score=score,
            budget=Budget.find("erk"),
            sparsity=0.5,
            parameters=parameters,
            initial=[score.first(site.saliency(parameters), generator) for site in sites],
        )
        self.moving = MovingMasks(
            self.masking, score, parameters=parameters, steps=steps, training_robust=training_robust
        )
        self.optimizer: torch.optim.Optimizer
        if optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.05, weight_decay=1e-3)
        else:
            self.optimizer = torch.optim.SGD(
                self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3
            )
        self.done = 0

    def backward(self) -> None:
        self.optimizer.zero_grad()
        images = torch.rand(6, 8, generator=torch.Generator().manual_seed(self.done), dtype=torch.float64)
        tensors = self.moving.tensors(dict(self.network.named_parameters()))
        functional_call(self.network, tensors, (images,)).sin().sum().backward()

    def step(self) -> None:
        self.backward()
        self.moving.before_step(self.optimizer)
        self.optimizer.step()
        self.moving.after_step()
        self.done += 1

    def tensors(self) -> dict[str, Tensor]:
        found = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return found | {name: tensor.clone() for name, tensor in self.moving.state().items()}

    def masks(self) -> list[Tensor]:
        return [mask.clone() for mask in self.masking.masks]


def weight_of(bench: Bench, index: int) -> nn.Parameter:
    return bench.network.get_parameter(bench.masking.sites[index].parameters[0])


def test_removed_weights_get_the_gradient_that_they_would_have() -> None:
    bench = Bench(FlyingBird())
    bench.backward()
    mask, weight = bench.masking.masks[0], weight_of(bench, 0)
    assert not bool(weight.detach()[~mask].any())  # set to 0 at the start
    assert weight.grad is not None
    dense = weight.grad.clone()
    bench.network.zero_grad()
    images = torch.rand(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bench.network(images).sin().sum().backward()  # the zeros are the network's own now
    torch.testing.assert_close(dense, weight.grad)
    assert bool(dense[~mask].any())


@pytest.mark.parametrize("pattern", ["unstructured", "n_m"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sparsity_stays_while_masks_move_and_removed_weights_are_nothing(
    pattern: str, optimizer: str
) -> None:
    bench = Bench(FlyingBird(update_steps=3), pattern=pattern, optimizer=optimizer)
    counts = [int(mask.sum()) for mask in bench.masks()]
    moved: list[int] = []
    for _ in range(12):
        before = bench.masks()
        bench.step()
        moved.append(sum(int((a != b).sum()) for a, b in zip(before, bench.masks(), strict=True)))
        assert [int(mask.sum()) for mask in bench.masking.masks] == counts
        assert bench.masking.removed == [m.numel() - c for m, c in zip(before, counts, strict=True)]
        for index, mask in enumerate(bench.masking.masks):
            weight = weight_of(bench, index)
            assert not bool(weight.detach()[~mask].any())
            assert weight.grad is not None
            assert not bool(weight.grad[~mask].any())
            for remembered in bench.optimizer.state[weight].values():
                if remembered.shape == weight.shape:
                    assert not bool(remembered[~mask].any())
                    assert bool(remembered[mask].any())
    # At the third, sixth and ninth step, where what goes may come back; the last of a stage moves nothing.
    assert {2, 5} <= {index for index, count in enumerate(moved) if count} <= {2, 5, 8}


def test_an_exchange_is_the_one_that_numpy_finds() -> None:
    score = FlyingBird(update_steps=1, fraction=0.4)
    bench = Bench(score, steps=8)
    for done in range(1, 6):
        bench.backward()
        before = [(weight_of(bench, i).detach().clone(), mask) for i, mask in enumerate(bench.masks())]
        gradients = [weight_of(bench, i).grad for i in range(2)]
        dense = [gradient.clone() for gradient in gradients if gradient is not None]
        bench.moving.before_step(bench.optimizer)
        for index, (weight, mask) in enumerate(before):
            kept = int(mask.sum())
            dropped = round(0.4 / 2 * (1 + np.cos(np.pi * done / 8)) * kept)
            expected = moved_by_numpy(
                weight.flatten().numpy(),
                dense[index].flatten().numpy(),
                mask.flatten().numpy(),
                dropped,
                kept,
            )
            assert dropped > 0
            assert bench.masking.masks[index].flatten().tolist() == expected.tolist()
        bench.optimizer.step()
        bench.done += 1


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_a_restored_state_goes_on_bit_for_bit(stop: int) -> None:
    def epoch(bench: Bench) -> None:
        if bench.done % 2 == 0:
            bench.moving.after_epoch(0.5 - 0.01 * bench.done)

    score = FlyingBird(update_steps=2, plus=True, plus_after=0.0)
    unbroken, first, second = (Bench(score, training_robust=lambda: 0.6) for _ in range(3))
    for _ in range(10):
        unbroken.step()
        epoch(unbroken)
    for _ in range(stop):
        first.step()
        epoch(first)
    saved = first.tensors()
    second.network.load_state_dict({k: v for k, v in saved.items() if k in second.network.state_dict()})
    second.moving.restore(saved)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.done = stop
    for _ in range(10 - stop):
        second.step()
        epoch(second)
    expected = unbroken.tensors()
    assert int(expected["mask.0"].sum()) < 48  # plus has made it sparser
    for name, tensor in second.tensors().items():
        assert torch.equal(tensor, expected[name]), name


def test_plus_drops_more_once_after_each_judgement_and_not_below_its_least() -> None:
    score = FlyingBird(
        update_steps=1, fraction=0.5, plus=True, plus_after=0.0, plus_drop=0.4, plus_grow=0.0, plus_least=0.8
    )
    gaps = iter([0.1, 0.2, 0.3, 0.4, 0.5])
    bench = Bench(score, steps=100, training_robust=lambda: 0.5 + next(gaps))
    (first, _), most = [int(mask.sum()) for mask in bench.masking.masks], [m.numel() for m in bench.masks()]
    assert first < most[0]
    bench.moving.after_epoch(0.5)
    bench.step()
    assert int(bench.masking.masks[0].sum()) == first  # one judgement shows no trend
    bench.moving.after_epoch(0.51)
    bench.step()
    exchanged = round(score.exchanged(2 / 100) * first)
    fewer = int(bench.masking.masks[0].sum())
    assert fewer == max(first - round(0.4 * exchanged), -(-first * 4 // 5))
    bench.step()
    assert int(bench.masking.masks[0].sum()) == fewer  # one exchange follows a judgement
    for robust in (0.52, 0.53, 0.54):
        bench.moving.after_epoch(robust)
        bench.step()
    assert int(bench.masking.masks[0].sum()) == -(-first * 4 // 5)


def test_plus_grows_no_further_than_the_sparsity_asked_for() -> None:
    score = FlyingBird(update_steps=1, plus=True, plus_after=0.0, plus_grow=0.5)
    bench = Bench(score, steps=100, training_robust=lambda: 0.5)
    first = [int(mask.sum()) for mask in bench.masking.masks]
    for _ in range(3):
        bench.moving.after_epoch(0.5)
        bench.step()
    assert [int(mask.sum()) for mask in bench.masking.masks] == first


def test_epochs_that_were_not_judged_ask_for_nothing() -> None:
    def refuse() -> float:
        raise AssertionError

    Bench(FlyingBird(plus=True), training_robust=refuse).moving.after_epoch(None)
    Bench(FlyingBird(), training_robust=refuse).moving.after_epoch(0.4)


def test_nothing_but_the_network_learns() -> None:
    moving = Bench(FlyingBird()).moving
    assert list(moving.learnable()) == []
    assert moving.penalty() is None


@pytest.mark.parametrize("pattern", ["block", "channel"])
def test_units_of_another_kind_are_refused(pattern: str) -> None:
    with pytest.raises(
        ConfigError, match=r"masks move between single weights; '0' has units of another kind"
    ):
        Bench(FlyingBird(), pattern=pattern)


def test_a_budget_that_learns_is_refused() -> None:
    bench = Bench(FlyingBird())
    bench.masking.rates = object()  # type: ignore[assignment]  # any will do
    with pytest.raises(ConfigError, match=r"this budget learns it\. Use the budget 'erk'"):
        MovingMasks(
            bench.masking,
            FlyingBird(),
            parameters=dict(bench.network.named_parameters()),
            steps=1,
            training_robust=lambda: 0.0,
        )


def test_a_state_of_other_settings_is_refused() -> None:
    bench = Bench(FlyingBird(plus=True, plus_window=2))
    state = bench.tensors()
    with pytest.raises(ConfigError, match=r"moves\.counts must be \[3\]; the saved state has none\. Was it"):
        bench.moving.restore({name: t for name, t in state.items() if name != "moves.counts"})
    with pytest.raises(
        ConfigError, match=r"moves\.accuracies must be \[2, 2\]; the saved state has \[3, 2\]"
    ):
        Bench(FlyingBird(plus=True, plus_window=1)).moving.restore(state)  # fmt: skip
