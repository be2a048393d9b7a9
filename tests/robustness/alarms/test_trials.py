"""Attacks on a linear model of two classes, where every radius has its exact answer."""

import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness.alarms.trials import Bench, try_attacks
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.batches import Batch
from robustcompress.robustness.threat import Threat

TwoClass = tuple[nn.Module, Tensor, Tensor]


def _bench(two_class: TwoClass, threat: Threat) -> tuple[Bench, Tensor]:
    """Return a bench of the right images, and how far each must be moved to be wrong."""
    network, images, labels = two_class
    network.requires_grad_(False)
    logits, weight = network(images), next(network.parameters())
    margin = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])).squeeze(1)
    difference = weight[labels] - weight[1 - labels]
    length = difference.abs().sum(1) if threat.norm == "linf" else difference.norm(dim=1)
    right = margin > 0
    return Bench(Batch(0, images[right], labels[right], 1), network, threat, 0), (margin / length)[right]


@pytest.mark.parametrize("threat", [Threat(eps=0.04), Threat(eps=0.15, norm="l2")], ids=str)
def test_trials_break_what_lies_within_reach(two_class: TwoClass, threat: Threat) -> None:
    bench, reach = _bench(two_class, threat)
    tried = try_attacks(bench, bench.judge)
    for found, eps in (
        (tried.cross_entropy, threat.eps),
        (tried.margin, threat.eps),
        (tried.broken, threat.eps),
        (tried.smaller, threat.eps / 2),
        (tried.larger, threat.eps * 2),
    ):
        clear = (reach / eps - 1).abs() > 0.01  # in L2 steps come near the nearest point, not upon it
        assert torch.equal(found[clear], (reach < eps)[clear])
    assert bool(tried.unlimited.all())
    assert not tried.more_steps.any()
    assert not tried.more_starts.any()
    assert 10 < int(tried.smaller.sum()) < int(tried.broken.sum()) < int(tried.larger.sum()) < len(reach)


def test_what_each_attack_broke_is_told_by_name(two_class: TwoClass) -> None:
    bench, _ = _bench(two_class, Threat(eps=0.04))
    tried = try_attacks(bench, bench.judge)
    named = tried.by_name()
    assert torch.equal(named["PGD-100x1"], tried.cross_entropy | tried.more_steps)
    assert torch.equal(named["PGD-20x5"], tried.cross_entropy | tried.more_starts)
    assert list(named) == [
        "PGD-20x1 within half the radius",
        "PGD-20x1",
        "PGD-20x1 within twice the radius",
        "PGD-100x1",
        "PGD-20x5",
        "PGD-margin-20x1",
        "PGD-20x1 within the whole range",
    ]


def test_only_the_images_named_are_attacked(two_class: TwoClass) -> None:
    bench, reach = _bench(two_class, Threat(eps=0.04))
    among = torch.arange(len(reach)) % 2 == 0
    found = bench.broken(Pgd(steps=5), bench.judge, among=among)
    assert torch.equal(found, among & (reach < 0.04))
    assert not bench.broken(Pgd(steps=5), bench.judge, among=torch.zeros_like(among)).any()


def test_the_judge_decides_and_not_what_the_attack_looked_at(two_class: TwoClass) -> None:
    bench, reach = _bench(two_class, Threat(eps=0.04))
    zero = Bench(
        bench.batch, lambda images: torch.tensor([[1.0, 0.0]]).repeat(len(images), 1), bench.threat, 0
    )
    assert torch.equal(zero.broken(Pgd(steps=5), bench.judge), bench.batch.labels != 0)
    assert bool((reach < 0.04).any())
