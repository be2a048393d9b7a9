import torch
from torch import Tensor, nn

from robustcompress.robustness.reachable import class_excluder
from robustcompress.robustness.threat import Threat


def _linear(classes: int = 5) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, classes)).eval(), torch.rand(40, 1, 3, 3)


def test_of_a_linear_network_exactly_the_classes_that_no_image_of_the_box_gets_are_excluded() -> None:
    network, images = _linear()
    threat = Threat(eps=0.05)
    layer = network[1]  # type: ignore[index]
    labels = network(images).argmax(1)
    excluder = class_excluder(network, images, threat)
    assert excluder is not None
    found = excluder(images, labels)
    low, high = threat.box(images.flatten(1))
    for image in range(len(images)):
        own = int(labels[image])
        difference = layer.weight - layer.weight[own]  # pointing away from the right class
        worst = torch.where(difference > 0, high[image], low[image]) * difference
        margin = worst.sum(1) + layer.bias - layer.bias[own]
        expected = margin >= 0
        expected[own] = False
        assert found[image].tolist() == expected.tolist()
    assert 0 < int(found.sum()) < 5 * len(images)


def test_nothing_is_asked_where_bounds_tell_nothing() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Flatten(), *[part for _ in range(6) for part in (nn.Linear(9, 9), nn.ReLU())])
    images = torch.rand(8, 1, 3, 3)
    for layer in deep:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=2.0)
    assert class_excluder(deep.eval(), images, Threat(eps=0.5)) is None


def test_a_network_that_cannot_be_looked_into_excludes_nothing() -> None:
    class Sorted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).sort(1).values

    _, images = _linear()
    assert class_excluder(Sorted(), images, Threat(eps=0.01)) is None


def test_bounds_are_about_pixels_from_0_to_1() -> None:
    network, images = _linear()
    assert class_excluder(network, images, Threat(eps=0.05, upper=2.0)) is None
    assert class_excluder(network, images, Threat(eps=0.0)) is None


def test_an_l2_ball_lies_in_the_box_of_its_radius() -> None:
    network, images = _linear()
    labels = network(images).argmax(1)
    box, ball = (class_excluder(network, images, Threat(norm=norm, eps=0.05)) for norm in ("linf", "l2"))
    assert box is not None
    assert ball is not None
    torch.testing.assert_close(box(images, labels), ball(images, labels))
