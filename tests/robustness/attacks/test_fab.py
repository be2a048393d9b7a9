from collections.abc import Callable

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.attacks.fab import Fab
from robustcompress.robustness.attacks.fab_t import FabT
from robustcompress.robustness.nearest import shortest_step
from robustcompress.robustness.threat import Norm, Threat

Known = tuple[nn.Module, Tensor, Tensor]
STEPS = 40
NAMES = {"linf": "Linf", "l2": "L2"}
both = pytest.mark.parametrize("kind", ["fab", "fab_t"])
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def _random(classes: int, *, count: int, linear: bool = False, seed: int = 4) -> Known:
    """Return a random network, images [1, 6, 6] of which many pixels are black or white, and its classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
        if not linear:
            network = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, classes))
        images = (torch.rand(count, 1, 6, 6) * 1.6 - 0.3).clamp(0, 1)
    return network.requires_grad_(False), images, network(images).argmax(1)


def _run(attack: Attack, known: tuple[Logits, Tensor, Tensor], threat: Threat, *, seed: int = 5) -> Tensor:
    return attack.run(*known, threat=threat, generator=torch.Generator().manual_seed(seed))


def _broken(attack: Attack, known: Known, threat: Threat) -> Tensor:
    found = _run(attack, known, threat)
    assert bool(threat.contains(found, known[1]).all())
    broken: Tensor = known[0](found).argmax(1) != known[2]
    return broken


def _authors(known: Known, norm: Norm, eps: float, *, targeted: bool) -> FABAttack_PT:
    targets = int(known[0](known[1][:1]).shape[1]) - 1
    return FABAttack_PT(
        known[0],
        norm=NAMES[norm],
        n_restarts=1,
        n_iter=STEPS,
        eps=eps,
        targeted=targeted,
        n_target_classes=targets,
        device="cpu",
    )


@both
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("linf", 0.1), ("l2", 0.25), ("l2", 0.5)])
def test_it_breaks_the_images_that_the_authors_code_breaks(
    kind: str, classes: int, norm: Norm, eps: float
) -> None:
    known = _random(classes, count=40)
    with torch.random.fork_rng():
        theirs = _authors(known, norm, eps, targeted=kind == "fab_t").perturb(known[1], known[2])
    expected = known[0](theirs).argmax(1) != known[2]
    attack = Attack.find({"kind": kind, "steps": STEPS, "restarts": 1})
    assert _broken(attack, known, Threat(norm=norm, eps=eps)).tolist() == expected.tolist()
    assert 0 < int(expected.sum()) < 40


def _nearest_misses(known: Known, norm: Norm, run: Callable[[Logits], None]) -> Tensor:
    """Return the shortest way from each image to a misclassified point that a run shows after a step."""
    network, images, labels = known
    threat, shown = Threat(norm=norm, eps=0), list[Tensor]()

    def spying(points: Tensor) -> Tensor:
        shown.append(points.detach().clone())
        logits: Tensor = network(points)
        return logits

    run(spying)
    nearest = torch.full((len(images),), float("inf"))
    for points in shown[2::2]:  # the images, then by turns the point before a step and the point after it
        wrong = network(points).argmax(1) != labels
        nearest = torch.where(wrong, nearest.minimum(threat.distances(points, images)), nearest)
    return nearest


@both
@norms
def test_the_nearest_point_found_is_as_near_as_the_authors(kind: str, norm: Norm) -> None:
    known = _random(4, count=40)
    tiny = Threat(norm=norm, eps=1e-9)  # nothing is broken within it: nothing leaves the batch
    attack = Attack.find(
        {"kind": kind, "steps": STEPS, "restarts": 1, **({"targets": 1} if kind == "fab_t" else {})}
    )

    def run(logits_of: Logits) -> None:
        _run(attack, (logits_of, *known[1:]), tiny)

    ours = _nearest_misses(known, norm, run)
    authors = _authors(known, norm, 1, targeted=kind == "fab_t")
    authors.target_class = 2
    theirs = authors.attack_single_run(known[1], known[2], is_targeted=kind == "fab_t")
    found = known[0](theirs).argmax(1) != known[2]
    assert int(found.sum()) > 30
    assert found.tolist() == ours.isfinite().tolist()
    # Which side of a kink rounding takes decides which way is gone: most ways are alike, and none is far off.
    ratios = ours[found] / Threat(norm=norm, eps=0).distances(theirs, known[1])[found]
    assert float((ratios - 1).abs().quantile(0.8)) < 1e-3
    assert float((ratios - 1).abs().max()) < 0.1


def _exact(known: Known, norm: Norm, *, lower: float = 0, upper: float = 1) -> Tensor:
    """Return each image's distance to a linear network's decision boundary, within the pixel range."""
    network, images, labels = known
    weight = next(network.parameters()).detach()
    logits = network(images).detach()
    distances: list[Tensor] = []
    for target in range(len(weight)):
        normals = weight[target] - weight[labels]
        values = logits[:, target] - logits.gather(1, labels[:, None])[:, 0]
        step = shortest_step(images.flatten(1), normals, values, norm=norm, lower=lower, upper=upper)
        crosses = (values + (step * normals).sum(1)).abs() < 1e-4
        length = Threat(norm=norm, eps=0).distances(step, torch.zeros_like(step))
        distances.append(length.masked_fill(~crosses | (labels == target), float("inf")))
    return torch.stack(distances).amin(0)


@both
@norms
@pytest.mark.parametrize("classes", [2, 6])
def test_on_a_linear_network_it_finds_the_exact_distance_to_the_boundary(
    kind: str, norm: Norm, classes: int
) -> None:
    known = _random(classes, count=60, linear=True)
    exact = _exact(known, norm)
    attack = Attack.find({"kind": kind, "steps": 60, "restarts": 1})
    for share in (0.3, 0.6):
        eps = float(exact[exact.isfinite()].quantile(share))
        broken = _broken(attack, known, Threat(norm=norm, eps=eps))
        assert not bool(broken[exact > eps * (1 + 1e-5)].any())
        assert bool(broken[exact < eps * 0.99].all())  # the overshoot eta is what the last 1% are


@both
def test_pixels_may_have_a_range_of_their_own(kind: str) -> None:
    network, images, _ = _random(3, count=40, linear=True)
    images = images * 5 - 2
    known = network, images, network(images).argmax(1)
    exact = _exact(known, "linf", lower=-2, upper=3)
    eps = float(exact.median())
    attack = Attack.find({"kind": kind, "steps": 60, "restarts": 1})
    broken = _broken(attack, known, Threat(eps=eps, lower=-2, upper=3))
    assert bool(broken[exact < eps * 0.99].all())
    assert not bool(broken[exact > eps * (1 + 1e-5)].any())


@both
@norms
def test_it_works_in_double_precision(kind: str, norm: Norm, two_class: Known) -> None:
    exact = _exact(two_class, norm)
    right = two_class[0](two_class[1]).argmax(1) == two_class[2]
    eps = float(exact[right].median())
    found = _run(Attack.find({"kind": kind, "steps": 30}), two_class, Threat(norm=norm, eps=eps))
    assert found.dtype == torch.float64
    broken = two_class[0](found).argmax(1) != two_class[2]
    assert bool(broken[right & (exact < eps * 0.99)].all())
    assert not bool(broken[right & (exact > eps)].any())


@both
def test_restarts_keep_what_was_found_and_find_more(kind: str) -> None:
    known = _random(4, count=200, seed=2)
    attacks = (Attack.find({"kind": kind, "steps": 1, "restarts": count}) for count in (1, 8))
    once, often = (_broken(attack, known, Threat(eps=0.1)) for attack in attacks)
    assert bool((once <= often).all())
    assert int(once.sum()) < int(often.sum()) < 200


@both
@norms
def test_further_attempts_start_halfway_to_the_border(kind: str, norm: Norm) -> None:
    images = torch.full((30, 1, 3, 3), 0.5)
    shown: list[Tensor] = []

    def never_wrong(points: Tensor) -> Tensor:
        shown.append(points.detach().clone())
        return torch.stack([points.flatten(1).sum(1) * 0 + 1, points.flatten(1)[:, 0] * 0], 1)

    threat = Threat(norm=norm, eps=0.2)
    _run(
        Attack.find({"kind": kind, "steps": 1, "restarts": 2}),
        (never_wrong, images, images[:, 0, 0, 0].long()),
        threat,
    )
    assert len(shown) == 1 + 2 * 2
    assert torch.equal(shown[1], images)
    torch.testing.assert_close(threat.distances(shown[3], images), torch.full((30,), 0.1))
    assert not torch.equal(shown[3][0], shown[3][1])


@both
def test_an_image_gets_the_same_whoever_else_still_stands(kind: str) -> None:
    network, images, labels = _random(4, count=40)
    attack, threat = Attack.find({"kind": kind, "steps": 20, "restarts": 3}), Threat(eps=0.06)
    others = torch.where(
        torch.arange(40) % 2 == 0, labels, (labels + 1) % 4
    )  # every other one is wrong already
    together = _run(attack, (network, images, labels), threat)
    half = _run(attack, (network, images, others), threat)
    torch.testing.assert_close(together[::2], half[::2], atol=1e-5, rtol=0)
    assert torch.equal(half[1::2], images[1::2])


@both
def test_work_shrinks_to_the_images_still_standing(kind: str) -> None:
    network, images, labels = _random(4, count=60)
    sizes: list[int] = []

    def counting(points: Tensor) -> Tensor:
        sizes.append(len(points))
        logits: Tensor = network(points)
        return logits

    _run(
        Attack.find({"kind": kind, "steps": 10, "restarts": 2}), (counting, images, labels), Threat(eps=0.05)
    )
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sizes[-1] < sizes[0]


@both
def test_images_that_were_not_broken_come_back_as_they_are(kind: str) -> None:
    known = _random(4, count=60)
    found = _run(Attack.find({"kind": kind, "steps": 20}), known, Threat(eps=0.04))
    broken = known[0](found).argmax(1) != known[2]
    assert 0 < int(broken.sum()) < 60
    assert torch.equal(found[~broken], known[1][~broken])


@both
def test_gradients_that_are_not_finite_are_refused(kind: str) -> None:
    images = torch.zeros(3, 4)

    def root_at_zero(points: Tensor) -> Tensor:
        return torch.stack([points.sqrt().sum(1) + 1, points.sum(1)], 1)

    with pytest.raises(ModelError, match="3 of 3 images gave NaN or infinity"):
        _run(Attack.find(kind), (root_at_zero, images, torch.zeros(3).long()), Threat(eps=0.1))


@both
def test_logits_without_gradients_are_refused(kind: str) -> None:
    known = _random(3, count=3)
    with pytest.raises(ModelError, match="depend on the images through differentiable operations"):
        _run(Attack.find(kind), (lambda images: known[0](images.detach()), *known[1:]), Threat(eps=0.1))


def test_a_target_out_of_reach_is_skipped() -> None:
    known = _random(4, count=80)
    network, images, labels = known
    threat = Threat(eps=0.08)

    def broken(reachable: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found = FabT(steps=30).run(*known, threat=threat, generator=generator, reachable=reachable)
        which: Tensor = network(found).argmax(1) != labels
        return which

    everything = torch.ones(80, 4, dtype=torch.bool)
    assert torch.equal(broken(None), broken(everything))
    assert not bool(broken(~everything).any())
    runner_up = network(images).scatter(1, labels[:, None], float("-inf")).argmax(1)
    only = torch.zeros(80, 4, dtype=torch.bool).scatter(1, runner_up[:, None], True)
    alone = FabT(steps=30, targets=1).run(*known, threat=threat, generator=torch.Generator().manual_seed(0))
    assert torch.equal(broken(only), network(alone).argmax(1) != labels)
    assert bool((broken(only) <= broken(None)).all())


@pytest.mark.parametrize("restarts", [1, 2])
def test_aiming_at_all_targets_together_breaks_the_same_images(restarts: int) -> None:
    known = _random(5, count=60)
    for eps in (0.03, 0.08):
        one, all_ = (
            _broken(FabT(together=together, steps=20, restarts=restarts), known, Threat(eps=eps))
            for together in (False, True)
        )
        assert torch.equal(one, all_)
        assert 0 < int(one.sum()) < 60


def test_names_tell_steps_targets_and_restarts() -> None:
    assert str(Fab()) == "FAB-100x5"
    assert str(FabT()) == "FAB-T-100x9"
    assert str(FabT(steps=20, targets=3, restarts=2)) == "FAB-T-20x3x2"


@both
@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"restarts": 0}, {"alpha_max": 2}, {"eta": 0.9}, {"beta": 0}]
)
def test_settings_out_of_range_are_refused(kind: str, wrong: dict[str, object]) -> None:
    model = Fab if kind == "fab" else FabT
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        model.model_validate(wrong)
