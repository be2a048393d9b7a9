"""Twenty networks of timm; takes three to ten minutes.

    pip install --no-deps timm huggingface_hub
    pytest -m timm -s tests/pruning/architectures/test_timm.py

``--no-deps``, because timm's own dependencies may replace torch; a folder of ``pip install --target`` on
``PYTHONPATH`` will do.
"""

import copy
import time
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from robustcompress.errors import ModelError
from robustcompress.graph.cost import count_macs
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.compaction import compact
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns.channel import Channel
from robustcompress.pruning.scores.magnitude import Magnitude
from tests.pruning.architectures.timm_stubs import stand_in

pytestmark = [pytest.mark.timm, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

NETWORKS = {
    "resnet18": 64, "resnet50": 64, "wide_resnet50_2": 64, "resnext50_32x4d": 64, "seresnet50": 64,
    "vgg11_bn": 64, "densenet121": 64, "mobilenetv2_050": 64, "mobilenetv3_small_050": 64,
    "efficientnet_b0": 64, "regnetx_002": 64, "ghostnet_050": 64, "repvgg_a0": 64, "dla34": 64,
    "inception_v3": 75, "skresnet18": 64, "convnext_atto": 64, "convnextv2_atto": 64,
    "vit_tiny_patch16_224": 64, "mixer_s32_224": 224,
}  # fmt: skip
"""Names and the size of an image."""


def network_of(name: str, size: int) -> nn.Module:
    timm: Any = import_module("timm")
    settings = {"img_size": size} if name.startswith("vit") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = timm.create_model(name, num_classes=10, **settings)
        with torch.no_grad():  # some begin with a classifier of zeros, which would hide every difference
            for parameter in network.parameters():
                if not bool(parameter.any()):
                    nn.init.normal_(parameter, 0.0, 0.1)
    return network.eval()


def removed(network: nn.Module, images: torch.Tensor) -> tuple[float, str]:
    """Return the fraction of multiply-adds that go with half of every group, proven exact, and a reason."""
    try:
        plan = Channel(round_to=1).plan(network, images, ())
    except ModelError as error:
        return 0.0, str(error)
    masked = copy.deepcopy(network)
    parameters = dict(masked.named_parameters())
    Masking(plan.sites, score=Magnitude(), budget=Uniform(), sparsity=0.5, parameters=parameters).bake(masked)
    small = compact(masked, images).network
    with torch.no_grad():
        unseen = torch.rand(2, *images.shape[1:], dtype=torch.float64)
        expected, actual = (copy.deepcopy(each).double()(unseen) for each in (masked, small))
    assert float((expected - actual).abs().max() / expected.abs().max()) < 1e-10
    before, after = (
        sum(cost.macs for cost in count_macs(each, images[:1]).values()) for each in (network, small)
    )
    reasons = [item.reason for item in plan.frozen if "network's outputs" not in item.reason]
    return 1 - after / before, reasons[0] if reasons else ""


def test_fifteen_of_twenty_lose_a_third_of_their_multiply_adds_and_the_others_say_why() -> None:
    stand_in()
    pytest.importorskip("timm")
    torch.manual_seed(1)
    enough = 0
    for name, size in NETWORKS.items():
        begun = time.monotonic()
        fraction, reason = removed(network_of(name, size), torch.rand(2, 3, size, size))
        seconds = time.monotonic() - begun
        print(f"{name:24}{fraction:8.1%}{seconds:7.1f} s  {reason[:120]}")  # noqa: T201  # the table asked for
        enough += fraction >= 0.3
        assert fraction >= 0.3 or reason
    assert enough >= 15
