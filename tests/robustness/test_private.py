import torch
from torch import Tensor, nn

from robustcompress.robustness.private import in_parts, to_follow


def _normalised() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    for _ in range(3):
        network(torch.rand(16, 1, 8, 8))
    return network.eval().requires_grad_(False)


def test_the_copy_has_its_normalisation_folded_and_computes_the_same() -> None:
    network, images = _normalised(), torch.rand(5, 1, 8, 8)
    copy = to_follow(network, images)
    assert copy is not network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    torch.testing.assert_close(copy(images), network(images), rtol=1e-5, atol=1e-6)
    assert isinstance(network[1], nn.BatchNorm2d)


def test_a_network_without_normalisation_is_followed_as_it_is() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    assert to_follow(network, torch.rand(2, 1, 8, 8)) is network


def test_a_copy_that_computes_something_else_is_not_used() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _normalised()

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.inner(images)
            return logits + torch.rand(())

    network = Noisy()
    assert to_follow(network, torch.rand(2, 1, 8, 8)) is network


def test_a_module_that_cannot_be_copied_is_followed_as_it_is() -> None:
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("not this one")

    network = Stubborn(*_normalised())
    assert to_follow(network, torch.rand(2, 1, 8, 8)) is network


def test_parts_give_the_logits_of_the_whole_without_gradients() -> None:
    network, images = _normalised(), torch.rand(150, 1, 8, 8, requires_grad=True)
    found = in_parts(network)(images)
    assert not found.requires_grad
    torch.testing.assert_close(found, network(images).detach(), rtol=1e-5, atol=1e-6)
