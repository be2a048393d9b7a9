"""Alarms on real images: they fire on every mask and on no network that hides nothing.

Each network is trained for some seconds. By default a few are; ``-m slow`` takes all, up to half an hour.
"""

from functools import cache

import pytest
import torch
from torch import nn

from robustcompress.robustness.alarms.reliability import Reliability, check_reliability
from robustcompress.robustness.threat import Threat
from tests.robustness.alarms import honest
from tests.robustness.alarms.masked import MASKS

QUICK = ("linear", "natural with batch norm", "ibp, 99% sparse")
QUICK_MASKS = (
    "saturated a thousandfold",
    "saturated ten thousandfold",
    "four levels",
    "random shift",
    "centred batch",
)
SLOW_THREATS = (Threat(eps=0.05), Threat(eps=0.1), Threat(eps=0.2), Threat(eps=1.0, norm="l2"))


@cache
def network(name: str) -> nn.Module:
    return honest.made(name)


def check(judged: nn.Module, threat: Threat, *, classes: int = 10, count: int = 200) -> Reliability:
    images, labels = honest.images_of("test", count, classes)
    batches = list(zip(images.split(100), labels.split(100), strict=True))
    return check_reliability(judged, batches, threat=threat, seed=0, device="cpu", limit=count)


@pytest.mark.parametrize("name", QUICK)
def test_no_alarm_on_a_network_that_hides_nothing(name: str) -> None:
    found = check(network(name), honest.THREAT)
    assert found.status == "no alarm", str(found)


@pytest.mark.parametrize("mask", QUICK_MASKS)
def test_a_mask_sets_its_alarm_off(mask: str) -> None:
    alarm, masked = MASKS[mask]
    torch.manual_seed(0)
    found = check(masked(network("linear")), honest.THREAT, count=100)
    assert found.status == "unreliable"
    assert found.check(alarm).fired, str(found)


@pytest.mark.slow
@pytest.mark.parametrize("threat", SLOW_THREATS, ids=str)
@pytest.mark.parametrize("name", honest.NETWORKS)
def test_no_alarm_on_any_of_thirteen_networks(name: str, threat: Threat) -> None:
    found = check(network(name), threat, classes=2 if name == "two classes" else 10)
    assert found.status != "unreliable", str(found)
    assert found.right > 50


@pytest.mark.slow
@pytest.mark.parametrize("threat", [honest.THREAT, Threat(eps=1.5, norm="l2")], ids=str)
@pytest.mark.parametrize("name", ["linear", "natural with batch norm", "pgd", "ibp, 99% sparse"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_sets_its_alarm_off_on_every_network(mask: str, name: str, threat: Threat) -> None:
    alarm, masked = MASKS[mask]
    torch.manual_seed(0)
    found = check(masked(network(name)), threat)
    assert found.status == "unreliable"
    assert found.check(alarm).fired, str(found)
