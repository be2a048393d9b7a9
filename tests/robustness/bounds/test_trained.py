"""Networks trained on intervals, where bounds are tight: no image beats one, masked or compact."""

import copy

import pytest
import torch
from torch import Tensor, nn

from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.compaction import compact
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns.channel import Channel
from robustcompress.pruning.scores.magnitude import Magnitude
from robustcompress.robustness.threat import Threat
from robustcompress.training.objectives import Ibp
from tests.robustness.bounds.soundness import METHODS, excess
from tests.training.test_loop import data, train

EPS = 0.1
ROUNDING = 1e-9  # float64


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """A network trained by IBP, what channel pruning and IBP finetuning make of it, and that made smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    settings = {"optimizer": "adam", "lr": 0.01, "select": "last", "weight_decay": 0.0}
    train(model, objective=Ibp(ramp=0.5), settings={**settings, "epochs": 12})
    made = {"whole": _copy(model)}
    images, _ = _images()
    masking = Masking(
        Channel().plan(model, images[:2].float(), []).sites,
        score=Magnitude(),
        budget=Uniform(),
        sparsity=0.5,
        parameters=dict(model.named_parameters()),
    )
    masking.freeze()
    masking.bake(model)
    train(model, overrides=masking, objective=Ibp(ramp=0), settings={**settings, "epochs": 6})
    masking.bake(model)
    made["masked"] = _copy(model)
    smaller = compact(model.eval(), images[:2].float())
    assert sum(smaller.removed.values()) >= 4
    made["compact"] = _copy(smaller.network)
    return made


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double().eval()


def _images() -> tuple[Tensor, Tensor]:
    chosen = data(12)
    return chosen.images.double() / 255, chosen.labels


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["whole", "masked", "compact"])
def test_no_image_of_the_box_beats_a_tight_bound(
    networks: dict[str, nn.Module], name: str, method: str
) -> None:
    images, labels = _images()
    for eps in (EPS / 2, EPS, 2 * EPS):
        assert excess(METHODS[method], networks[name], images, labels, threat=Threat(eps=eps)) <= ROUNDING


@pytest.mark.parametrize("method", METHODS)
def test_the_bounds_prove_something_and_are_the_same_masked_and_compact(
    networks: dict[str, nn.Module], method: str
) -> None:
    images, labels = _images()
    found = {
        name: METHODS[method](model, {}, images, labels, Threat(eps=EPS)) for name, model in networks.items()
    }
    torch.testing.assert_close(found["masked"], found["compact"], atol=1e-9, rtol=1e-9)
    for bounds in found.values():
        certified = bounds.scatter(1, labels[:, None], 1.0).gt(0).all(1)
        assert float(certified.double().mean()) >= 0.75
