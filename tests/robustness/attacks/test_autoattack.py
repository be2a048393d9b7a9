import pyautoattack
import pytest
import torch
from torch import nn

from robustcompress.robustness.attacks import Attack
from robustcompress.robustness.attacks.apgd import Apgd
from robustcompress.robustness.attacks.apgd_t import ApgdT
from robustcompress.robustness.attacks.autoattack import AutoAttack
from robustcompress.robustness.attacks.fab import Fab
from robustcompress.robustness.attacks.fab_t import FabT
from robustcompress.robustness.attacks.square import Square
from robustcompress.robustness.reference import Reference, Version
from robustcompress.robustness.threat import Threat

VERSIONS: tuple[Version, ...] = ("standard", "plus", "rand")


def _as_the_authors_set_it(version: Version) -> list[Attack]:
    """Return the attacks that the authors' code would run, with the settings that it gives them."""
    theirs = pyautoattack.AutoAttack(nn.Identity(), version=version, eps=0.1, seed=0)
    apgd, apgd_t, fab, square = theirs.apgd, theirs.apgd_targeted, theirs.fab, theirs.square
    made: dict[str, Attack] = {
        "apgd-t": ApgdT(steps=apgd_t.n_iter, targets=apgd_t.n_target_classes, restarts=apgd_t.n_restarts),
        "fab": Fab(steps=fab.n_iter, restarts=fab.n_restarts),
        "fab-t": FabT(steps=fab.n_iter, targets=fab.n_target_classes, restarts=1),  # set as it is called
        "square": Square(queries=square.n_queries, restarts=square.n_restarts),
    }
    for name, loss in (("apgd-ce", "cross_entropy"), ("apgd-dlr", "dlr")):
        restarts, eot = apgd.n_restarts, apgd.eot_iter
        made[name] = Apgd.model_validate(
            {"steps": apgd.n_iter, "rho": apgd.thr_decr, "restarts": restarts, "eot": eot, "loss": loss}
        )
    return [made[name] for name in theirs.attacks_to_run or ()]


@pytest.mark.parametrize("version", VERSIONS)
def test_members_are_those_of_the_authors_code(version: Version) -> None:
    assert list(AutoAttack(version=version).members(10)) == _as_the_authors_set_it(version)
    assert AutoAttack(version=version).members(100) == AutoAttack(version=version).members(10)


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2), (9, 8), (10, 9), (1000, 9)])
def test_with_few_classes_all_wrong_ones_are_targets(classes: int, targets: int) -> None:
    members = AutoAttack().members(classes)
    assert members == (Apgd(), ApgdT(targets=targets), FabT(targets=targets), Square())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_reference_engine_is_the_authors_package_alone(version: Version) -> None:
    attack = AutoAttack(version=version, engine="reference")
    assert attack.members(10) == (Reference(version=version),)
    assert attack.settings(Threat(eps=0.1))["package"] == f"pyautoattack {pyautoattack.__version__}"
    assert "package" not in AutoAttack(version=version).settings(Threat(eps=0.1))


def test_names_tell_version_and_engine() -> None:
    assert str(AutoAttack()) == "AutoAttack-standard"
    assert str(AutoAttack(version="plus", engine="reference")) == "AutoAttack-plus (pyautoattack)"


@pytest.mark.slow  # a minute: FAB and Square of two implementations
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.1)])
def test_it_breaks_what_the_authors_code_breaks(norm: str, eps: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        images = torch.rand(100, 1, 8, 8)
    labels = network(images).argmax(1)
    threat = Threat.model_validate({"norm": norm, "eps": eps})
    ours, theirs = (
        network(
            attack.run(network, images, labels, threat=threat, generator=torch.Generator().manual_seed(1))
        ).argmax(1)
        != labels
        for attack in (AutoAttack(), AutoAttack(engine="reference"))
    )
    assert 20 < int(theirs.sum()) < 80
    assert int((ours != theirs).sum()) <= 1
