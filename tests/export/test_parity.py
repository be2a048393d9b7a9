import pytest
import torch
from torch import nn

from robustcompress.errors import ExportError
from robustcompress.export.parity import TOLERANCE, largest_difference, logits_of

EXPECTED = torch.tensor([[10.0, 1.0, 0.0], [2.0, 1.0, 0.0]])


def test_the_difference_is_over_the_largest_logit() -> None:
    found = EXPECTED.clone()
    found[1, 2] += 0.0005
    assert largest_difference(EXPECTED, found, where="x") == pytest.approx(5e-5)
    assert largest_difference(EXPECTED, EXPECTED, where="x") == 0.0


def test_the_worst_image_is_named_when_the_difference_is_no_rounding() -> None:
    found = EXPECTED.clone()
    found[0, 1] += 0.002
    found[1, 2] += 0.02
    with pytest.raises(ExportError, match=r"net\.onnx: .*image 1 differs by 0\.002 of the largest logit"):
        largest_difference(EXPECTED, found, where="net.onnx")


def test_logits_that_are_no_numbers_are_refused() -> None:
    found = EXPECTED.clone()
    found[1, 0] = torch.nan
    with pytest.raises(ExportError, match="image 1 differs by inf"):
        largest_difference(EXPECTED, found, where="x")


def test_a_tie_may_fall_either_way() -> None:
    tied = torch.tensor([[10.0, 10.0 - 0.5 * TOLERANCE * 10, 0.0]])
    found = torch.tensor([[10.0 - 0.6 * TOLERANCE * 10, 10.0, 0.0]])
    assert int(found.argmax()) != int(tied.argmax())
    assert largest_difference(tied, found, where="x") < TOLERANCE


def test_a_class_that_leads_may_not_change() -> None:
    scale = TOLERANCE * 10
    expected = torch.tensor([[1.0, 0.0, 0.0], [10.0, 10.0 - 1.5 * scale, 0.0]])
    found = torch.tensor([[1.0, 0.0, 0.0], [10.0 - 0.9 * scale, 10.0 - 0.7 * scale, 0.0]])
    with pytest.raises(ExportError, match="image 1 changes from class 0 to 1"):
        largest_difference(expected, found, where="x")


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ExportError, match=r"x: expected logits \[2, 3\]; got \[2, 1\]"):
        largest_difference(EXPECTED, EXPECTED[:, :1], where="x")


def test_zero_logits_and_a_single_class_are_compared_too() -> None:
    assert largest_difference(torch.zeros(2, 3), torch.zeros(2, 3), where="x") == 0.0
    assert largest_difference(torch.ones(2, 1), torch.ones(2, 1), where="x") == 0.0
    with pytest.raises(ExportError, match="image 0 differs by 1 of"):
        largest_difference(torch.zeros(2, 1), torch.ones(2, 1), where="x")


def test_networks_that_give_no_logits_are_refused() -> None:
    images = torch.rand(2, 4)
    with pytest.raises(ExportError, match=r"cannot be called with images \[2, 4\].*RuntimeError"):
        logits_of(nn.Linear(5, 2), images)
    with pytest.raises(ExportError, match=r"must return logits \[2, classes\]; got \[2, 4, 1\]"):
        logits_of(nn.Unflatten(1, (4, 1)), images)
    with pytest.raises(ExportError, match=r"must return logits \[2, classes\]; got tuple"):
        logits_of(nn.GRU(4, 2), images)
    linear = nn.Linear(4, 2)
    with torch.no_grad():
        linear.bias.fill_(torch.inf)
    with pytest.raises(ExportError, match="own logits of image 0 are not finite"):
        logits_of(linear, images)
