import pytest
import torch

from robustcompress.robustness.losses import attack_loss, dlr, margin, targeted_dlr

LOGITS = torch.tensor([[3.0, 1.0, 2.5, -1.0], [0.0, 4.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 3])


def test_margin_is_the_best_wrong_logit_minus_the_right_one() -> None:
    assert margin(LOGITS, LABELS).tolist() == [-0.5, 2.0]


def test_dlr_divides_the_margin_by_the_gap_from_first_to_third() -> None:
    assert dlr(LOGITS, LABELS).tolist() == pytest.approx([-0.5 / 2.0, 2.0 / 3.0])


def test_dlr_does_not_change_when_logits_are_scaled_and_shifted() -> None:
    torch.testing.assert_close(dlr(1000 * LOGITS - 7, LABELS), dlr(LOGITS, LABELS))


def test_dlr_of_two_classes_is_the_margin() -> None:
    assert dlr(LOGITS[:, :2], LABELS % 2).tolist() == [-2.0, -4.0]


def test_targeted_dlr_divides_by_the_gap_from_first_to_the_mean_of_third_and_fourth() -> None:
    targets = torch.tensor([1, 0])
    expected = [-2.0 / (3.0 - 0.0), -2.0 / (4.0 - 0.5)]
    assert targeted_dlr(LOGITS, LABELS, targets).tolist() == pytest.approx(expected)
    found = attack_loss("targeted_dlr", LOGITS, LABELS, targets)
    assert found.tolist() == pytest.approx(expected)
    torch.testing.assert_close(targeted_dlr(1000 * LOGITS - 7, LABELS, targets), found)


@pytest.mark.parametrize("classes", [2, 3])
def test_targeted_dlr_of_fewer_than_four_classes_is_the_difference_to_the_target(classes: int) -> None:
    labels, targets = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert targeted_dlr(LOGITS[:, :classes], labels, targets).tolist() == [-2.0, -4.0]


def test_cross_entropy_is_minus_the_log_of_the_right_class_probability() -> None:
    expected = -LOGITS.softmax(1)[[0, 1], LABELS].log()
    torch.testing.assert_close(attack_loss("cross_entropy", LOGITS, LABELS), expected)


def test_losses_are_found_by_name() -> None:
    assert torch.equal(attack_loss("margin", LOGITS, LABELS), margin(LOGITS, LABELS))
    assert torch.equal(attack_loss("dlr", LOGITS, LABELS), dlr(LOGITS, LABELS))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_gradients_of_margin_and_dlr_agree_with_finite_differences(classes: int) -> None:
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(5) % classes
    for loss in (margin, dlr):
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, labels), (logits.requires_grad_(),))
    targets = (labels + 1) % classes
    assert torch.autograd.gradcheck(lambda z: targeted_dlr(z, labels, targets), (logits,))
