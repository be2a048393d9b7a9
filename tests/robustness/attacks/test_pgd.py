import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.threat import Threat

Known = tuple[nn.Module, Tensor, Tensor]


def _margins(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = network(images).detach()
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return right - logits.gather(1, 1 - labels[:, None]).squeeze(1)


def _slopes(network: nn.Module, labels: Tensor) -> Tensor:
    weight = next(network.parameters()).detach()
    return weight[labels] - weight[1 - labels]


def _run(attack: Pgd, known: Known, threat: Threat, *, seed: int = 0) -> Tensor:
    return attack.run(*known, threat=threat, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("eps", [0.02, 0.08, 0.5])  # the last one reaches black and white
def test_on_a_linear_model_linf_pgd_finds_the_exact_worst_case(
    two_class: Known, loss: str, eps: float
) -> None:
    network, images, labels = two_class
    slopes = _slopes(network, labels).reshape(images.shape)
    corner = torch.where(slopes > 0, (images - eps).clamp_min(0), (images + eps).clamp_max(1))
    worst = _margins(network, corner, labels)
    threat = Threat(norm="linf", eps=eps)
    found = _run(Pgd.model_validate({"loss": loss}), two_class, threat)
    margins = _margins(network, found, labels)
    assert (margins < 0).tolist() == (worst < 0).tolist()
    standing = worst > 0
    torch.testing.assert_close(margins[standing], worst[standing])
    assert 0 < int(standing.sum()) < 200 or eps == 0.5


def test_on_a_linear_model_l2_pgd_finds_the_exact_worst_case(two_class: Known) -> None:
    network, images, labels = two_class
    worst = _margins(network, images, labels) - 0.2 * _slopes(network, labels).norm(dim=1)
    found = _run(Pgd(random_start=False), two_class, Threat(norm="l2", eps=0.2))
    margins = _margins(network, found, labels)
    assert (margins < 0).tolist() == (worst < 0).tolist()
    standing = worst > 0
    torch.testing.assert_close(margins[standing], worst[standing])
    assert 0 < int(standing.sum()) < 200


def test_restarts_never_raise_accuracy_and_keep_what_was_found(trained: Known) -> None:
    network, _, labels = trained
    threat = Threat(eps=0.12)
    broken = [
        network(_run(Pgd(steps=1, step_size=0.05, restarts=restarts), trained, threat)).argmax(1) != labels
        for restarts in (1, 2, 6)
    ]
    assert bool((broken[0] <= broken[1]).all())
    assert bool((broken[1] <= broken[2]).all())
    assert int(broken[0].sum()) < int(broken[2].sum()) < 300


def test_an_image_that_is_misclassified_only_on_the_way_counts_as_broken() -> None:
    """The loss rises all the way, but only the start of the path is misclassified."""

    def logits_of(images: Tensor) -> Tensor:
        x = images.flatten(1)
        # Class 1 wins in a narrow band around 0.6, and the right class 0 loses confidence beyond it.
        band = 2.5 * torch.exp(-(((x - 0.6) / 0.02) ** 2))
        return torch.cat([1 - 0.1 * x, band.detach() + 0.1 * x], 1)

    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    attack = Pgd(steps=4, step_size=0.1, random_start=False)
    found = attack.run(logits_of, images, labels, threat=Threat(eps=0.3), generator=torch.Generator())
    assert float(found) == pytest.approx(0.6)


def test_an_image_alone_is_attacked_as_it_is_in_a_batch(trained: Known) -> None:
    network, images, labels = trained
    attack, threat = Pgd(steps=5, random_start=False), Threat(eps=0.12)
    together = _run(attack, (network, images[:60], labels[:60]), threat)
    for row in range(60):
        one = slice(row, row + 1)
        alone = _run(attack, (network, images[one], labels[one]), threat)
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=0)


def test_work_shrinks_to_the_images_still_standing(two_class: Known) -> None:
    network, images, labels = two_class
    sizes: list[int] = []

    def counting(points: Tensor) -> Tensor:
        sizes.append(len(points))
        logits: Tensor = network(points)
        return logits

    attack = Pgd(steps=5, restarts=2)
    attack.run(counting, images, labels, threat=Threat(eps=0.05), generator=torch.Generator())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 200
    assert 0 < sizes[-1] < sizes[1]
    assert len(sizes) == 1 + 2 * 6


def test_nothing_is_asked_of_the_network_once_all_images_are_broken(two_class: Known) -> None:
    network, images, labels = two_class
    calls: list[int] = []

    def counting(points: Tensor) -> Tensor:
        calls.append(len(points))
        logits: Tensor = network(points)
        return logits

    attack = Pgd(steps=50, restarts=9)
    attack.run(counting, images, labels, threat=Threat(eps=1), generator=torch.Generator())
    assert len(calls) < 40


def test_names_and_settings_tell_steps_restarts_and_the_step_that_was_used() -> None:
    assert str(Pgd()) == "PGD-20x1"
    assert str(Pgd(steps=50, restarts=10, loss="margin")) == "PGD-margin-50x10"
    assert Pgd().settings(Threat(eps=0.1)) == {
        "kind": "pgd",
        "steps": 20,
        "step_size": pytest.approx(0.0125),
        "restarts": 1,
        "random_start": True,
        "loss": "cross_entropy",
    }
    assert Pgd.model_validate({"step_size": "2/255"}).settings(Threat(eps=0.1))["step_size"] == 2 / 255


def test_restarts_from_the_same_point_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 restarts without random_start repeat one attempt"):
        Pgd(restarts=3, random_start=False)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": 0}, {"step_size": 0}, {"loss": "dlr"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Pgd.model_validate(wrong)
