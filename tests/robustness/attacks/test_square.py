from collections.abc import Callable

import pytest
import torch
from pyautoattack.square import SquareAttack
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from robustcompress.errors import ModelError
from robustcompress.robustness.attacks import Attack, Logits
from robustcompress.robustness.attacks.square import Square
from robustcompress.robustness.losses import margin
from robustcompress.robustness.threat import Norm, Threat
from robustcompress.zoo.datasets.fashion_mnist_mini import FashionMnistMini

Known = tuple[nn.Module, Tensor, Tensor]
norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def _run(attack: Attack, known: tuple[Logits, Tensor, Tensor], threat: Threat, *, seed: int = 5) -> Tensor:
    return attack.run(*known, threat=threat, generator=torch.Generator().manual_seed(seed))


def _shown(attack: Attack, images: Tensor, threat: Threat, logits: Logits | None = None) -> list[Tensor]:
    """Return what the attack shows to a network, by default to one that is always right and never surer."""
    shown: list[Tensor] = []

    def spying(points: Tensor) -> Tensor:
        shown.append(points.clone())
        return torch.eye(2)[[0] * len(points)].to(points) if logits is None else logits(points)

    _run(attack, (spying, images, torch.zeros(len(images)).long()), threat)
    return shown


@pytest.fixture(scope="module")
def small_cnn() -> Known:
    """Return a network trained on Fashion-MNIST for a moment, and 100 test images that it gets right."""
    data, test = (FashionMnistMini().load(split) for split in ("train", "test"))
    images, labels = data.images[:3000].float() / 255, data.labels[:3000].long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        order = torch.randperm(len(images))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for batch in order.split(50):
        optimizer.zero_grad()
        functional.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
    network.requires_grad_(False)
    images, labels = test.images[:300].float() / 255, test.labels[:300].long()
    right = (network(images).argmax(1) == labels).nonzero().flatten()[:100]
    assert len(right) == 100
    return network, images[right], labels[right]


@pytest.mark.parametrize(("norm", "eps", "queries"), [("linf", 0.15, 150), ("l2", 2.0, 120)])
def test_it_breaks_as_many_images_as_the_authors_code(
    small_cnn: Known, norm: Norm, eps: float, queries: int
) -> None:
    network, images, labels = small_cnn
    ours, theirs = list[float](), list[float]()
    with torch.random.fork_rng():
        for seed in range(3):
            found = _run(Square(queries=queries), small_cnn, Threat(norm=norm, eps=eps), seed=seed)
            authors = SquareAttack(
                network,
                norm={"linf": "Linf", "l2": "L2"}[norm],
                n_queries=queries,
                eps=eps,
                seed=seed,
                resc_schedule=False,
                device="cpu",
            )
            for accuracies, points in ((ours, found), (theirs, authors.perturb(images, labels))):
                accuracies.append(float((network(points).argmax(1) == labels).float().mean()))
    mean = sum(ours) / 3
    assert 0.2 < mean < 0.8
    assert mean == pytest.approx(sum(theirs) / 3, abs=0.03)


@norms
@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 9, 5), (2, 3, 4), (1, 1, 1), (2, 1, 7), (50,), (4, 6)])
@pytest.mark.parametrize("pixels", [(0.0, 1.0), (-2.0, 3.0)])
def test_nothing_it_shows_leaves_the_threat(
    norm: Norm, shape: tuple[int, ...], pixels: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(5, *shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    images = images * (pixels[1] - pixels[0]) + pixels[0]
    threat = Threat(norm=norm, eps=0.3, lower=pixels[0], upper=pixels[1])
    weight = torch.randn(2, images[0].numel(), generator=generator)

    def always_right(points: Tensor) -> Tensor:  # but less and less sure, so that changes are kept
        loss = (points.flatten(1) @ weight.T).sum(1).sigmoid()
        return torch.stack([2 - loss, loss * 0], 1)

    shown = _shown(Square(queries=60), images, threat, always_right)
    assert len(shown) == 61
    for points in shown[1:]:
        assert points.shape == images.shape
        assert bool(threat.contains(points, images).all())
    assert len({float(points.double().sum()) for points in shown}) > 5


def test_for_linf_each_query_moves_one_window_to_the_balls_border() -> None:
    images = torch.full((6, 2, 10, 10), 0.5)
    shown = _shown(Square(queries=150), images, Threat(eps=0.1))
    stripes = shown[1]
    torch.testing.assert_close((stripes - 0.5).abs(), torch.full_like(images, 0.1))
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    assert len({tuple(row.tolist()) for row in stripes[:, 0, 0]}) > 1
    for number, candidates in enumerate(shown[2:]):
        torch.testing.assert_close((candidates - 0.5).abs(), torch.full_like(images, 0.1))
        changed = (candidates - stripes).abs() > 0.1
        rows, columns = changed.any(0).any(0).any(1), changed.any(0).any(0).any(0)
        side = 9 if number <= 10 else 6 if number <= 50 else 4
        assert int(rows.sum()) <= side
        assert int(columns.sum()) <= side
        places = columns.nonzero().flatten()
        if len(places):  # in the window, each channel of each image has one sign
            top, left = int(rows.nonzero()[0]), int(places[0])
            inside = candidates[:, :, top : top + int(rows.sum()), left : int(places[-1]) + 1]
            assert bool((inside == inside[:, :, :1, :1]).all())


def test_for_l2_the_length_stays_eps_and_only_two_windows_change() -> None:
    images = torch.full((4, 1, 20, 20), 0.5)
    threat = Threat(norm="l2", eps=0.5)
    shown = _shown(Square(queries=600), images, threat)
    for points in shown[1:]:
        torch.testing.assert_close(threat.distances(points, images), torch.full((4,), 0.5))
    # From query 502 on windows of 5 x 5 at most: two of them are an eighth of the image.
    for candidates in shown[505:]:
        changed = (candidates - shown[1]).abs() > 1e-5
        assert 0 < int(changed[0].sum()) <= 50
        assert torch.equal(changed.any(0), changed[0])


def test_a_proposal_is_kept_where_it_lowers_the_margin_and_nowhere_else() -> None:
    generator = torch.Generator().manual_seed(1)
    images = 0.3 + 0.4 * torch.rand(8, 1, 6, 6, generator=generator)
    weight = torch.randn(3, 36, generator=generator) * 0.1
    labels = torch.zeros(8).long()

    def logits(points: Tensor) -> Tensor:
        return points.flatten(1) @ weight.T + torch.tensor([9.0, 0, 0])

    shown = _shown(Square(queries=80), images, Threat(eps=0.1), logits)
    found = _run(Square(queries=80), (logits, images, labels), Threat(eps=0.1))
    margins = torch.stack([margin(logits(points), labels) for points in shown[1:]])
    torch.testing.assert_close(margin(logits(found), labels), margins.amax(0))
    assert bool((margins.amax(0) > margins[0]).all())


@norms
def test_on_a_linear_network_it_comes_near_the_exact_worst_case_and_never_beyond(
    two_class: Known, norm: Norm
) -> None:
    network, images, labels = two_class
    eps = 0.06 if norm == "linf" else 0.2
    weight = next(network.parameters()).detach()
    slopes = weight[1 - labels] - weight[labels]
    dual = slopes.abs().sum(1) if norm == "linf" else slopes.norm(dim=1)
    logits = network(images).detach()
    right = logits.argmax(1) == labels
    worst = margin(logits, labels) + eps * dual
    found = _run(Square(queries=600), two_class, Threat(norm=norm, eps=eps))
    assert found.dtype == torch.float64
    broken = network(found).argmax(1) != labels
    assert not bool(broken[right & (worst < 0)].any())
    clear = right & (worst > 0.1 * eps * dual)
    # For L2 the smallest window, 3 x 3, is most of these images: it cannot go every way.
    assert float(broken[clear].double().mean()) > (0.9 if norm == "linf" else 0.6)
    standing = ~broken
    gained = (margin(network(found).detach(), labels) - margin(logits, labels)) / (eps * dual)
    assert bool((gained[standing] <= 1 + 1e-9).all())
    assert float(gained[standing].median()) > (0.95 if norm == "linf" else 0.4)


@pytest.mark.parametrize(
    ("attack", "halved_after"),
    [
        (Square(queries=210), [10, 50, 200]),
        (Square(queries=1000, rescale_schedule=True), [1, 5, 20, 50, 100, 200, 400, 600, 800]),
    ],
)
def test_windows_shrink_on_the_papers_schedule(attack: Square, halved_after: list[int]) -> None:
    shares = [attack._share(query) for query in range(attack.queries)]
    assert shares[0] == 0.8
    falls = [query for query in range(1, attack.queries) if shares[query] < shares[query - 1]]
    assert falls == [last + 1 for last in halved_after]
    assert shares[-1] == 0.8 / 2 ** len(halved_after)


def test_an_image_gets_the_same_whoever_else_still_stands(trained: Known) -> None:
    network, images, labels = trained
    wrong = (network(images).argmax(1) + 1) % 4
    others = torch.where(torch.arange(300) % 2 == 0, labels, wrong)
    for norm in ("linf", "l2"):
        threat = Threat.model_validate({"norm": norm, "eps": 0.1})
        together = _run(Square(queries=40), trained, threat)
        half = _run(Square(queries=40), (network, images, others), threat)
        torch.testing.assert_close(together[::2], half[::2], atol=1e-5, rtol=0)


def test_work_shrinks_to_the_images_still_standing(trained: Known) -> None:
    network, images, labels = trained
    sizes: list[int] = []

    def counting(points: Tensor) -> Tensor:
        sizes.append(len(points))
        logits: Tensor = network(points)
        return logits

    _run(Square(queries=50, restarts=2), (counting, images, labels), Threat(eps=0.1))
    assert len(sizes) == 1 + 2 * 50
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sizes[-1] < sizes[1]


def test_restarts_keep_what_was_found_and_find_more(trained: Known) -> None:
    network, _, labels = trained
    broken = [
        network(_run(Square(queries=10, restarts=restarts), trained, Threat(eps=0.1))).argmax(1) != labels
        for restarts in (1, 6)
    ]
    assert bool((broken[0] <= broken[1]).all())
    assert int(broken[0].sum()) < int(broken[1].sum()) < 300


@norms
def test_it_asks_for_no_gradient(norm: Norm, trained: Known) -> None:
    network, images, labels = trained
    asked: list[bool] = []

    def session(points: Tensor) -> Tensor:  # as a runtime answers: without any graph
        asked.append(torch.is_grad_enabled() or points.requires_grad)
        return torch.from_numpy(network(points).numpy())

    threat = Threat(norm=norm, eps=0.1 if norm == "linf" else 0.4)
    found = _run(Square(queries=30), (session, images, labels), threat)
    assert not any(asked)
    assert not Square.needs_gradient
    clean = int((network(images).argmax(1) != labels).sum())
    assert int((network(found).argmax(1) != labels).sum()) > clean
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("when", [1, 7])
def test_logits_that_are_no_numbers_are_refused(when: int) -> None:
    count = 0

    def breaking(points: Tensor) -> Tensor:
        nonlocal count
        count += 1
        logits = torch.eye(2)[[0] * len(points)]
        return logits * float("nan") if count > when else logits

    known: tuple[Callable[[Tensor], Tensor], Tensor, Tensor] = (
        breaking,
        torch.rand(3, 4),
        torch.zeros(3).long(),
    )
    with pytest.raises(ModelError, match="3 of 3 images gave NaN, and no search can compare them"):
        _run(Square(queries=20), known, Threat(eps=0.1))


def test_names_tell_queries_and_restarts() -> None:
    assert str(Square()) == "Square-5000x1"
    assert str(Square(queries=100, restarts=2)) == "Square-100x2"


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"restarts": 0}, {"p_init": 0}, {"p_init": 1.5}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Square.model_validate(wrong)
