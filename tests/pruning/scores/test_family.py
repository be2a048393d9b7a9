"""What every score promises; a new file in the family is tested here by being there."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcompress import families
from robustcompress.pruning.budgets.uniform import Uniform
from robustcompress.pruning.masking import Masking
from robustcompress.pruning.patterns.unstructured import Unstructured
from robustcompress.pruning.scores import Score

each_kind = pytest.mark.parametrize("kind", families.kinds(Score.family))


@each_kind
def test_settings_survive_yaml(kind: str) -> None:
    score = Score.find(kind)
    assert score.kind == kind
    assert Score.find(yaml.safe_load(yaml.safe_dump(score.model_dump()))) == score


@each_kind
def test_unknown_settings_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        Score.find({"kind": kind, "scale": 3})


@each_kind
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), fan_in=st.integers(1, 5000))
def test_scores_start_in_the_order_of_the_saliency_with_its_signs(
    kind: str, values: list[float], fan_in: int
) -> None:
    saliency = torch.tensor(values, dtype=torch.float64)
    scores = Score.find(kind).initial(saliency, fan_in)
    assert scores.shape == saliency.shape
    assert scores.dtype == saliency.dtype
    assert bool(scores.isfinite().all())
    assert torch.equal(scores.sign(), saliency.sign())
    assert torch.equal(scores.abs().sort(stable=True).indices, saliency.abs().sort(stable=True).indices)


@each_kind
def test_scores_are_of_their_own_and_outside_every_graph(kind: str) -> None:
    weight = nn.Parameter(torch.rand(3, 4))
    scores = Score.find(kind).initial(weight, 4)
    assert not scores.requires_grad
    scores.zero_()
    assert bool((weight > 0).any())


@each_kind
def test_only_scores_that_learn_are_given_to_the_optimizer(kind: str) -> None:
    network = nn.Linear(4, 3)
    score = Score.find(kind)
    masking = Masking(
        Unstructured().plan(network, torch.zeros(1, 4), ()).sites,
        score=score,
        budget=Uniform(),
        sparsity=0.5,
        parameters=dict(network.named_parameters()),
    )
    assert len(list(masking.learnable())) == int(score.learns)
