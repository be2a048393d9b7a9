import pytest
import torch
from torch import Tensor, nn

from robustcompress.errors import DataError, ModelError
from robustcompress.robustness.predictor import as_predictor, predicted_classes


def _network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    network[2].eval()
    network[4].bias.requires_grad_(False)
    return network


def _state(network: nn.Module) -> tuple[list[bool], list[bool]]:
    return [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]


def test_a_network_is_judged_in_eval_mode_without_learning_parameters() -> None:
    network = _network()
    before = _state(network)
    assert True in before[0]
    assert False in before[0]
    assert False in before[1]
    with as_predictor(network, "cpu") as predictor:
        assert predictor is network
        assert _state(network) == ([False] * 6, [False] * 6)
    assert _state(network) == before


def test_mode_and_gradients_come_back_after_an_error() -> None:
    network = _network()
    before = _state(network)
    with pytest.raises(RuntimeError, match="midway"), as_predictor(network, "cpu"):
        raise RuntimeError("midway")
    assert _state(network) == before


def test_a_network_on_another_device_is_copied_and_left_where_it_is() -> None:
    network = _network()
    before = _state(network)
    with as_predictor(network, "meta") as predictor:
        assert predictor(torch.empty(2, 4, device="meta")).shape == (2, 3)
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert _state(network) == before


def test_the_class_of_the_largest_logit_is_predicted_and_the_first_one_of_a_tie() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 3.0]])
    found = predicted_classes(lambda _: logits, torch.rand(2, 1), torch.tensor([0, 2]), where="here")
    assert found.tolist() == [1, 0]


def test_no_graph_is_kept() -> None:
    seen: list[bool] = []
    weight = torch.ones(1, requires_grad=True)

    def predictor(images: Tensor) -> Tensor:
        logits = images * weight
        seen.append(logits.requires_grad)
        return logits

    predicted_classes(predictor, torch.rand(2, 3), torch.tensor([0, 2]), where="here")
    assert seen == [False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [bad, 1.0], [0.0, bad]])
    with pytest.raises(
        ModelError, match=r"batch 7 \(network\): expected finite logits; 2 of 3 images gave NaN"
    ):
        predicted_classes(
            lambda _: logits, torch.rand(3, 1), torch.zeros(3).long(), where="batch 7 (network)"
        )


def test_an_output_that_is_no_logits_is_refused() -> None:
    with pytest.raises(DataError, match=r"here: the network must return logits \[batch, classes\]"):
        predicted_classes(lambda _: torch.rand(3), torch.rand(3, 1), torch.zeros(3).long(), where="here")
