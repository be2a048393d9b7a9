"""Proofs and attacks must not contradict each other."""

import pytest
import torch
from torch import Tensor

from robustcompress.errors import ModelError
from robustcompress.robustness.certifiers import Certificate
from robustcompress.robustness.order import check_order
from robustcompress.robustness.threat import Threat

THREAT = Threat(eps=0.1)


def certificate(index: int, *, label: int = 1, predicted: int | None = 1, radius: float = 0.1) -> Certificate:
    return Certificate(index=index, label=label, predicted=predicted, radius=radius)


def check(certificates: list[Certificate], **outcomes: list[bool]) -> None:
    pairs: list[tuple[str, Tensor]] = [(name, torch.tensor(right)) for name, right in outcomes.items()]
    check_order(certificates, pairs, threat=THREAT, certifier="best", subject="network")


def test_what_is_certified_and_withstood_passes() -> None:
    check([certificate(0), certificate(1, radius=0.2)], clean=[True, True, False], pgd=[True, True, False])


@pytest.mark.parametrize("beaten", ["clean", "pgd"])
def test_a_certified_image_that_was_beaten_is_named(beaten: str) -> None:
    outcomes = {"clean": [True] * 3, "pgd": [True] * 3, beaten: [True, True, False]}
    with pytest.raises(ModelError, match=f"image 2: best proves class 1 of network.*0.1, but {beaten} finds"):
        check([certificate(0), certificate(2)], **outcomes)


def test_certificates_that_do_not_reach_the_threat_or_the_right_class_say_nothing() -> None:
    beaten = [False, False, False]
    check(
        [
            certificate(0, radius=0.09),
            certificate(1, predicted=None, radius=0.0),
            certificate(2, predicted=0, radius=0.3),
        ],
        clean=beaten,
        pgd=beaten,
    )


def test_images_that_were_not_attacked_are_passed_over() -> None:
    check([certificate(7)], clean=[True], pgd=[False])
