from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness.attacks import Attack, Ensemble, Logits, TargetedAttack
from robustcompress.robustness.attacks.apgd import Apgd
from robustcompress.robustness.attacks.apgd_t import ApgdT
from robustcompress.robustness.attacks.fgsm import Fgsm
from robustcompress.robustness.attacks.pgd import Pgd
from robustcompress.robustness.attacks.screen import Screen
from robustcompress.robustness.losses import margin
from robustcompress.robustness.threat import Threat
from robustcompress.seeding import generator_for

Known = tuple[nn.Module, Tensor, Tensor]
THREAT = Threat(eps=0.12)
MEMBERS = (Pgd(steps=1), Fgsm(), ApgdT(steps=1, targets=2), Apgd(steps=2, restarts=2))


class Several(Ensemble):
    def members(self, classes: int) -> tuple[Attack, ...]:
        assert classes == 4
        return MEMBERS

    def __str__(self) -> str:
        return "Several"


def _run(attack: Attack, known: Known, *, seed: int = 0) -> Tensor:
    return attack.run(*known, threat=THREAT, generator=torch.Generator().manual_seed(seed))


def test_an_image_is_broken_exactly_if_a_member_breaks_it(trained: Known) -> None:
    network, images, labels = trained
    whole = network(_run(Several(), trained)).argmax(1) != labels
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(0)))
    alone = [
        network(
            member.run(*trained, threat=THREAT, generator=generator_for("cpu", seed, number, str(member)))
        ).argmax(1)
        != labels
        for number, member in enumerate(MEMBERS)
    ]
    assert torch.equal(whole, torch.stack(alone).any(0))
    assert all(int(part.sum()) < int(whole.sum()) for part in alone)
    assert int(whole.sum()) < 300
    assert int((network(images).argmax(1) != labels).sum()) < int(alone[1].sum())


def test_what_nothing_breaks_comes_back_where_it_is_nearest_to_being_broken(trained: Known) -> None:
    network, _, labels = trained
    found = margin(network(_run(Several(), trained)), labels)
    seed = int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(0)))
    alone = torch.stack(
        [
            margin(network(member.run(*trained, threat=THREAT, generator=own)), labels)
            for number, member in enumerate(MEMBERS)
            for own in [generator_for("cpu", seed, number, str(member))]
        ]
    )
    standing = found < 0
    torch.testing.assert_close(found[standing], alone.amax(0)[standing])


def test_members_spend_their_work_on_images_that_still_stand(trained: Known) -> None:
    network, images, labels = trained
    sizes: list[int] = []

    def counting(points: Tensor) -> Tensor:
        if points.requires_grad:
            sizes.append(len(points))
        logits: Tensor = network(points)
        return logits

    Several().run(counting, images, labels, threat=THREAT, generator=torch.Generator())
    assert sizes[0] > sizes[-1] > 0
    assert sizes[1] == 300  # FGSM looks once, at the whole batch
    assert sizes[2:] == sorted(sizes[2:], reverse=True)


@dataclass
class Seen:
    labels: list[Tensor] = field(default_factory=list)
    reachable: list[Tensor | None] = field(default_factory=list)


SEEN = Seen()


class Watching(TargetedAttack):
    """Breaks nothing, and tells what it was given."""

    def run(
        self,
        logits_of: Logits,
        images: Tensor,
        labels: Tensor,
        *,
        threat: Threat,
        generator: torch.Generator,
        reachable: Tensor | None = None,
    ) -> Tensor:
        SEEN.labels.append(labels)
        SEEN.reachable.append(reachable)
        return images

    def __str__(self) -> str:
        return "Watching"


class Watched(Ensemble):
    def members(self, classes: int) -> tuple[Attack, ...]:
        return (Fgsm(), Watching())

    def __str__(self) -> str:
        return "Watched"


def test_images_that_are_broken_or_proven_reach_a_member_as_misclassified(trained: Known) -> None:
    network, images, labels = trained
    reachable = torch.ones(300, 4, dtype=torch.bool).scatter(1, labels[:, None], False)
    reachable[:50] = False
    found = Watched().run(
        network, images, labels, threat=THREAT, generator=torch.Generator(), reachable=reachable
    )
    clean = network(images).argmax(1)
    broken = network(Fgsm().run(*trained, threat=THREAT, generator=torch.Generator())).argmax(1) != labels
    done = broken.clone()
    done[:50] = True
    assert (SEEN.labels[-1] != clean).tolist() == done.tolist()
    assert torch.equal(SEEN.labels[-1][~done], labels[~done])
    assert SEEN.reachable[-1] is reachable
    assert torch.equal(found[:50], images[:50])
    assert 50 < int(done.sum()) < 300


def test_without_a_radius_no_member_runs(trained: Known) -> None:
    before = len(SEEN.labels)
    found = Watched().run(*trained, threat=Threat(eps=0), generator=torch.Generator())
    assert torch.equal(found, trained[1])
    assert len(SEEN.labels) == before


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_screen_is_a_short_apgd_and_a_short_apgd_t(classes: int) -> None:
    assert Screen().members(classes) == (Apgd(steps=20), ApgdT(steps=20, targets=min(3, classes - 1)))
    assert Screen(steps=7, targets=1).members(classes) == (Apgd(steps=7), ApgdT(steps=7, targets=1))


def test_a_screen_is_not_called_autoattack() -> None:
    assert str(Screen()) == "Screen-20x3"
