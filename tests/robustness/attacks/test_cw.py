import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robustcompress.robustness.attacks.cw import Cw
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.losses import margin
from robustcompress.robustness.threat import Norm, Threat

Known = tuple[nn.Module, Tensor, Tensor]


def _run(attack: Cw | Pgd, known: Known, threat: Threat) -> Tensor:
    return attack.run(*known, threat=threat, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_it_finds_the_exact_worst_case(two_class: Known, norm: Norm) -> None:
    network, images, labels = two_class
    eps = 0.06 if norm == "linf" else 0.2
    weight = next(network.parameters()).detach()
    slopes = weight[1 - labels] - weight[labels]
    dual = slopes.abs().sum(1) if norm == "linf" else slopes.norm(dim=1)
    worst = margin(network(images).detach(), labels) + eps * dual
    found = _run(Cw(step_size=eps, confidence=100), two_class, Threat(norm=norm, eps=eps))
    right = network(images).argmax(1) == labels
    margins = margin(network(found).detach(), labels)
    torch.testing.assert_close(margins[right], worst[right], atol=1e-6, rtol=1e-6)
    assert 0 < int((margins[right] > 0).sum()) < int(right.sum())


def test_without_confidence_it_breaks_what_pgd_on_the_margin_breaks(trained: Known) -> None:
    network, _, labels = trained
    threat = Threat(eps=0.1)
    ours = network(_run(Cw(steps=20), trained, threat)).argmax(1) != labels
    theirs = network(_run(Pgd(steps=20, loss="margin"), trained, threat)).argmax(1) != labels
    assert torch.equal(ours, theirs)
    assert 0 < int(ours.sum()) < 300


def test_confidence_breaks_no_other_images_and_breaks_them_by_more(trained: Known) -> None:
    network, images, labels = trained
    right = network(images).argmax(1) == labels
    plain, sure = (
        margin(network(_run(Cw(steps=20, confidence=kappa), trained, Threat(eps=0.1))), labels)[right]
        for kappa in (0, 5)
    )
    assert torch.equal(plain > 0, sure > 0)
    broken = plain > 0
    assert bool((sure >= plain - 1e-6).all())
    assert float(sure[broken].mean()) > 2 * float(plain[broken].mean())


def test_restarts_without_random_start_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 restarts without random_start repeat one attempt"):
        Cw(restarts=3, random_start=False)


def test_settings_name_the_step_that_is_used() -> None:
    assert Cw(steps=50).settings(Threat(eps=0.1))["step_size"] == pytest.approx(0.005)
    assert Cw.model_validate({"step_size": "1/255"}).settings(Threat(eps=0.1))["step_size"] == 1 / 255


def test_names_tell_steps_restarts_and_confidence() -> None:
    assert str(Cw()) == "CW-30x1"
    assert str(Cw(steps=50, restarts=2, confidence=50)) == "CW-50x2-k50"
