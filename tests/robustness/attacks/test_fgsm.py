import pytest
import torch
from torch import Tensor, nn

from robustcompress.robustness.attacks.fgsm import Fgsm
from robustcompress.robustness.threat import Norm, Threat

Known = tuple[nn.Module, Tensor, Tensor]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_of_two_classes_one_step_is_the_exact_worst_case(
    two_class: Known, norm: Norm
) -> None:
    network, images, labels = two_class
    threat = Threat(norm=norm, eps=0.06 if norm == "linf" else 0.2)
    found = Fgsm().run(*two_class, threat=threat, generator=torch.Generator())
    weight = next(network.parameters()).detach()
    slopes = (weight[1 - labels] - weight[labels]).reshape(images.shape)
    if norm == "linf":
        expected = images + 0.06 * slopes.sign()
    else:
        expected = images + 0.2 * slopes / slopes.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    right = network(images).argmax(1) == labels
    torch.testing.assert_close(found[right], expected[right])
    assert torch.equal(found[~right], images[~right])


def test_pixels_stay_in_the_range_that_the_threat_gives() -> None:
    images = torch.tensor([[-1.0, 2.0]])
    found = Fgsm().run(
        lambda x: torch.stack([x.sum(1), -x.sum(1)], 1),
        images,
        torch.tensor([0]),
        threat=Threat(eps=0.5, lower=-1, upper=2),
        generator=torch.Generator(),
    )
    assert found.tolist() == [[-1.0, 1.5]]


def test_its_name_is_plain() -> None:
    assert str(Fgsm()) == "FGSM"
