import logging

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack_targeted
from torch import Tensor, nn

from robustcompress.robustness.attacks import Logits
from robustcompress.robustness.attacks.apgd_t import ApgdT
from robustcompress.robustness.targets import ranked_targets
from robustcompress.robustness.threat import Norm, Threat

Known = tuple[nn.Module, Tensor, Tensor]


def _run(
    attack: ApgdT, known: tuple[Logits, Tensor, Tensor], threat: Threat, *, reachable: Tensor | None = None
) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return attack.run(*known, threat=threat, generator=generator, reachable=reachable)


def _random(classes: int, *, count: int, layers: bool = False) -> Known:
    """Return a random network, images [1, 6, 6] away from black and white, and the classes it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
        if layers:
            network = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, classes))
        images = 0.3 + 0.4 * torch.rand(count, 1, 6, 6)
    return network.requires_grad_(False), images, network(images).argmax(1)


@pytest.mark.parametrize(
    ("norm", "eps", "rank"), [("linf", 0.05, 1), ("linf", 0.12, 3), ("l2", 0.3, 1), ("l2", 0.7, 3)]
)
def test_iterates_are_those_of_the_authors_code(norm: Norm, eps: float, rank: int) -> None:
    network, images, labels = _random(5, count=40, layers=True)
    names = {"linf": "Linf", "l2": "L2"}
    log = logging.getLogger(__name__)
    authors = APGDAttack_targeted(network, norm=names[norm], eps=eps, device="cpu", logger=log)
    authors.init_hyperparam(images)
    authors.y_target = network(images).sort(dim=1)[1][:, -rank - 1]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(rank - 1):  # ours draws for every target, also for those that are out of reach
            (torch.rand if norm == "linf" else torch.randn)(images.shape)
        best, right, _, _ = authors.attack_single_run(images, labels)
    only = torch.zeros(40, 5, dtype=torch.bool).scatter(1, authors.y_target[:, None], True)
    known, threat = (network, images, labels), Threat(norm=norm, eps=eps)
    found = _run(ApgdT(targets=rank), known, threat, reachable=only)
    broken = network(found).argmax(1) != labels
    assert broken.tolist() == (~right).tolist()
    assert 0 < int(broken.sum()) < 40
    torch.testing.assert_close(found[~broken], best[~broken], atol=1e-4, rtol=0)


def test_targets_are_the_wrong_classes_in_the_order_of_their_logits() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 5.0, 5.0, 2.0]])
    assert ranked_targets(logits, torch.tensor([0, 2]), 9).tolist() == [[2, 1, 3], [1, 3, 0]]
    assert ranked_targets(logits, torch.tensor([0, 2]), 2).tolist() == [[2, 1], [1, 3]]


def _excess(known: Known, threat: Threat) -> Tensor:
    """Return how far each wrong logit of a linear model can rise over the right one; [batch, classes]."""
    network, images, labels = known
    weight = next(network.parameters())
    slopes = weight[None] - weight[labels][:, None]
    dual = slopes.abs().sum(2) if threat.norm == "linf" else slopes.norm(dim=2)
    logits = network(images)
    excess: Tensor = logits - logits.gather(1, labels[:, None]) + threat.eps * dual
    return excess.scatter(1, labels[:, None], float("-inf"))


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.15)])
def test_on_a_linear_model_it_finds_the_exact_worst_case(classes: int, norm: Norm, eps: float) -> None:
    known, threat = _random(classes, count=60), Threat(norm=norm, eps=eps)
    network, _, labels = known
    best = _excess(known, threat).amax(1)
    broken = network(_run(ApgdT(steps=60), known, threat)).argmax(1) != labels
    clear = best.abs() > 1e-4
    assert broken[clear].tolist() == (best > 0)[clear].tolist()
    assert 0 < int(broken.sum()) < 60


@pytest.mark.parametrize("together", [False, True])
def test_what_is_out_of_reach_is_skipped_and_no_answer_changes(together: bool) -> None:
    known, threat = _random(7, count=60), Threat(eps=0.03)
    network, images, labels = known
    looked_at = 0

    def counting(points: Tensor) -> Tensor:
        nonlocal looked_at
        looked_at += len(points)
        logits: Tensor = network(points)
        return logits

    answers, costs = [], []
    for reachable in (None, _excess(known, threat) > -1e-4):
        looked_at = 0
        attack = ApgdT(steps=20, together=together)
        found = _run(attack, (counting, images, labels), threat, reachable=reachable)
        answers.append((network(found).argmax(1) != labels).tolist())
        costs.append(looked_at)
    assert answers[0] == answers[1]
    assert costs[1] < costs[0] / 2


def test_nothing_in_reach_leaves_the_images_as_they_are() -> None:
    known = _random(4, count=10)
    none = torch.zeros(10, 4, dtype=torch.bool)
    assert torch.equal(_run(ApgdT(steps=3), known, Threat(eps=0.3), reachable=none), known[1])


@pytest.mark.parametrize("restarts", [1, 2])
def test_targets_together_break_the_images_that_targets_one_by_one_do(trained: Known, restarts: int) -> None:
    network, _, labels = trained
    threat = Threat(eps=0.1)
    broken = [
        network(_run(ApgdT(steps=10, restarts=restarts, together=together), trained, threat)).argmax(1)
        != labels
        for together in (False, True)
    ]
    assert torch.equal(*broken)
    assert 0 < int(broken[0].sum()) < 300


def test_names_tell_steps_targets_and_restarts() -> None:
    assert str(ApgdT()) == "APGD-T-100x9"
    assert str(ApgdT(steps=20, targets=3, restarts=2)) == "APGD-T-20x3x2"
