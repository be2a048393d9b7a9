import logging
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.robustness.attacks.apgd import Apgd
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.losses import LossName, attack_loss
from robustcompress.robustness.threat import Norm, Threat

Known = tuple[nn.Module, Tensor, Tensor]
Array = npt.NDArray[np.float64]
LossAndGradient = Callable[[Array], tuple[float, Array]]


def _run(attack: Apgd | Pgd, known: Known, threat: Threat, *, seed: int = 0) -> Tensor:
    return attack.run(*known, threat=threat, generator=torch.Generator().manual_seed(seed))


def _two_class_margins(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = network(images).detach()
    return (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])).squeeze(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_apgd_finds_the_exact_worst_case(two_class: Known, norm: Norm) -> None:
    network, images, labels = two_class
    weight = next(network.parameters()).detach()
    slopes = weight[labels] - weight[1 - labels]
    eps = 0.06 if norm == "linf" else 0.2
    dual = slopes.abs().sum(1) if norm == "linf" else slopes.norm(dim=1)
    worst = _two_class_margins(network, images, labels) - eps * dual
    found = _run(Apgd(steps=60), two_class, Threat(norm=norm, eps=eps))
    margins = _two_class_margins(network, found, labels)
    clear = worst.abs() > 1e-6
    assert (margins < 0)[clear].tolist() == (worst < 0)[clear].tolist()
    standing = worst > 1e-6
    torch.testing.assert_close(margins[standing], worst[standing], atol=1e-6, rtol=1e-6)
    assert 0 < int(standing.sum()) < 200


def _project(norm: Norm, x: Array, image: Array, eps: float) -> Array:
    delta = x - image
    if norm == "linf":
        delta = np.clip(delta, -eps, eps)
    elif np.linalg.norm(delta) > eps:
        delta = delta * eps / np.linalg.norm(delta)
    return np.clip(image + delta, 0, 1)


def _algorithm_1(
    norm: Norm, evaluate: LossAndGradient, image: Array, start: Array, eps: float, n: int, rho: float
) -> Array:
    """Follow Algorithm 1 of the paper for one image, line by line, every iterate kept in a list.

    Where it leaves a choice, or the authors' code takes another one, it is the code's: see below.
    """
    p = [0.0, 0.22]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(point * n, 9)) for point in p]

    def ascent(point: Array, step: float) -> Array:
        gradient = evaluate(point)[1]
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        return _project(norm, point + step * direction, image, eps)

    eta = 2 * eps
    x = [start, ascent(start, eta)]
    f = [evaluate(point)[0] for point in x]
    best = max(range(2), key=lambda i: f[i])
    x_max, f_max = x[best], f[best]
    rose = [f[1] > 0]  # the code's; the paper's is f[1] > f[0]
    etas, f_maxs = {0: eta}, {0: f[0]}
    for k in range(1, n + 1):
        if k in w:
            j = w.index(k)
            etas[k], f_maxs[k] = eta, f_max
            rises = sum(rose[w[j - 1] : k])
            # Condition 2 compares with the last checkpoint: the step must have survived that one too.
            kept = j > 1 and etas[w[j - 1]] == eta and f_maxs[w[j - 1]] == f_max
            if rises <= rho * (k - w[j - 1]) or kept:
                eta /= 2
                x[k] = x_max  # f[k] stays, in the code, and so decides whether the next step rose
        if k == n:
            break
        z = ascent(x[k], eta)
        x.append(_project(norm, x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1]), image, eps))
        f.append(evaluate(x[k + 1])[0])
        rose.append(f[k + 1] > f[k])
        if f[k + 1] > f_max:
            x_max, f_max = x[k + 1], f[k + 1]
    return x_max


@pytest.mark.parametrize(
    ("norm", "loss", "rho"),  # with the small rho, the paper's second condition decides
    [
        ("linf", "cross_entropy", 0.75),
        ("linf", "dlr", 0.01),
        ("l2", "cross_entropy", 0.01),
        ("l2", "dlr", 0.75),
    ],
)
def test_apgd_takes_the_steps_of_the_papers_algorithm(
    trained: Known, norm: Norm, loss: LossName, rho: float
) -> None:
    network = nn.Sequential(*trained[0].children())
    weights = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def logits_of(images: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(network, weights, (images,))
        return logits

    threat = Threat(norm=norm, eps=0.05 if norm == "linf" else 0.2)
    images, labels = trained[1][:16].double(), trained[2][:16]
    starts: list[Tensor] = []

    def spying(points: Tensor) -> Tensor:
        starts.append(points.detach().clone())
        return logits_of(points)

    attack = Apgd.model_validate({"steps": 50, "loss": loss, "rho": rho})
    found = attack.run(spying, images, labels, threat=threat, generator=torch.Generator().manual_seed(0))
    at_start = iter(starts[1])  # the first look is at the images themselves, the second at the starts
    right = logits_of(images).argmax(1) == labels
    compared = 0
    for row in range(16):
        if not bool(right[row]):
            continue
        start = next(at_start)
        if int(logits_of(found[row : row + 1]).argmax(1)) != int(labels[row]):
            continue  # broken: it left the batch midway

        def evaluate(point: Array, row: int = row) -> tuple[float, Array]:
            x = torch.from_numpy(point)[None].requires_grad_()
            value = attack_loss(loss, logits_of(x), labels[row : row + 1]).sum()
            return float(value.detach()), torch.autograd.grad(value, [x])[0][0].numpy()

        expected = _algorithm_1(norm, evaluate, images[row].numpy(), start.numpy(), threat.eps, 50, rho)
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-7)
        compared += 1
    assert compared >= 6


def _ten_class(kind: str, seed: int) -> Known:
    """Return a random network of ten classes, 48 images [1, 8, 8], and the classes that it gives them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "convolution":
            network = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
            )
        else:
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        images = torch.rand(48, 1, 8, 8)
    return network, images, network(images).argmax(1)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
@pytest.mark.parametrize(
    ("norm", "eps", "kind"),
    [
        ("linf", 0.02, "convolution"),
        ("linf", 0.04, "layers"),
        ("linf", 0.1, "convolution"),
        ("l2", 0.1, "convolution"),
        ("l2", 0.2, "layers"),
        ("l2", 0.5, "convolution"),
    ],
)
def test_iterates_are_those_of_the_authors_code(norm: Norm, eps: float, kind: str, loss: LossName) -> None:
    network, images, labels = _ten_class(kind, seed=3)
    authors = APGDAttack(
        network,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=eps,
        loss={"cross_entropy": "ce", "dlr": "dlr"}[loss],
        device="cpu",
        logger=logging.getLogger(__name__),
    )
    authors.init_hyperparam(images)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        best, right, _, _ = authors.attack_single_run(images, labels)
    attack = Apgd.model_validate({"loss": loss})
    found = _run(attack, (network, images, labels), Threat(norm=norm, eps=eps), seed=11)
    broken = network(found).argmax(1) != labels
    assert broken.tolist() == (~right).tolist()
    assert 0 < int(broken.sum()) < 48
    # Under Linf rounding is the same too; under L2 it is not, and a step is halved sooner here or there.
    apart = (found - best)[~broken].abs().flatten(1).amax(1)
    assert (
        float(apart.max()) == 0
        if norm == "linf"
        else float(apart.median()) < 1e-5 > 1e-3 * float(apart.max())
    )


def test_a_network_that_always_says_the_same_is_attacked_the_same_with_eot(trained: Known) -> None:
    once, twice = (_run(Apgd(steps=10, eot=eot), trained, Threat(eps=0.1)) for eot in (1, 2))
    assert torch.equal(once, twice)


def test_an_image_that_is_wrong_now_and_then_is_attacked_on(two_class: Known) -> None:
    _, images, labels = two_class
    sizes: list[int] = []

    def unsteady(points: Tensor) -> Tensor:
        """Answer right twice, then wrong once."""
        sizes.append(len(points))
        answer = torch.zeros(len(points), 2, dtype=points.dtype)
        answer[:, 0] = 1 if len(sizes) % 3 else -1
        return answer + points.flatten(1).sum(1, keepdim=True) * torch.tensor([1.0, 1.001])

    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros_like(labels)
    Apgd(steps=4, eot=3).run(unsteady, images, zeros, threat=Threat(eps=0.01), generator=generator)
    assert sizes == [200] * 3 * 6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attempts_start_on_the_border(norm: Norm) -> None:
    starts: list[Tensor] = []

    def logits_of(images: Tensor) -> Tensor:
        starts.append(images.detach().clone())
        return torch.cat([images.flatten(1).sum(1, keepdim=True) * 0 + 1, images.flatten(1)[:, :1] * 0], 1)

    images = torch.full((50, 1, 2, 2), 0.5)
    threat = Threat(norm=norm, eps=0.2)
    generator = torch.Generator().manual_seed(0)
    Apgd(steps=1).run(logits_of, images, torch.zeros(50).long(), threat=threat, generator=generator)
    torch.testing.assert_close(threat.distances(starts[1], images), torch.full((50,), 0.2))


@pytest.mark.parametrize("eps", [0.08, 0.12])
def test_apgd_is_at_least_as_strong_as_pgd_with_equal_steps(trained: Known, eps: float) -> None:
    network, _, labels = trained
    broken = {
        str(attack): int((network(_run(attack, trained, Threat(eps=eps))).argmax(1) != labels).sum())
        for attack in (Pgd(steps=40), Apgd(steps=40), Apgd(steps=40, loss="dlr"))
    }
    assert broken["APGD-CE-40x1"] >= broken["PGD-40x1"]
    assert broken["APGD-DLR-40x1"] >= broken["PGD-40x1"]
    assert 0 < broken["APGD-CE-40x1"] < 300


def test_restarts_never_raise_accuracy_and_keep_what_was_found(trained: Known) -> None:
    network, _, labels = trained
    broken = [
        network(_run(Apgd(steps=2, restarts=restarts), trained, Threat(eps=0.12))).argmax(1) != labels
        for restarts in (1, 2, 6)
    ]
    assert bool((broken[0] <= broken[1]).all())
    assert bool((broken[1] <= broken[2]).all())
    assert int(broken[0].sum()) < int(broken[2].sum()) < 300


def test_work_shrinks_to_the_images_still_standing(two_class: Known) -> None:
    network, images, labels = two_class
    sizes: list[int] = []

    def counting(points: Tensor) -> Tensor:
        sizes.append(len(points))
        logits: Tensor = network(points)
        return logits

    attack = Apgd(steps=5, restarts=2)
    attack.run(counting, images, labels, threat=Threat(eps=0.05), generator=torch.Generator())
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sizes[-1] < sizes[1]
    assert len(sizes) == 1 + 2 * 6


def test_names_tell_loss_steps_and_restarts() -> None:
    assert str(Apgd()) == "APGD-CE-100x1"
    assert str(Apgd(steps=20, restarts=5, loss="dlr")) == "APGD-DLR-20x5"
    assert str(Apgd(eot=20)) == "APGD-CE-100x1-EOT20"


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"restarts": 0}, {"rho": 0}, {"momentum": 1.5}, {"loss": "margin"}, {"eot": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Apgd.model_validate(wrong)
