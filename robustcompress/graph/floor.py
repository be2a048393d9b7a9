"""The least work that a robust training step can be: operations and bytes that its mathematics needs."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcompress.graph.cost import count_macs

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Passes:
    """How often a batch goes through the network in one step.

    Attributes:
        forward: Forward passes.
        to_images: Backward passes that need the gradient by the images alone: the attack's.
        to_weights: Backward passes that need the gradient by everything that learns. The gradient by the
            images is not needed there, nor is the first layer's input gradient.
    """

    forward: int
    to_images: int
    to_weights: int

    @classmethod
    def pgd(cls, steps: int) -> "Passes":
        """Return those of adversarial training (Madry et al. 2018) with ``steps`` steps of ascent."""
        return cls(forward=steps + 1, to_images=steps, to_weights=1)

    @classmethod
    def trades(cls, steps: int) -> "Passes":
        """Return those of TRADES (Zhang et al. 2019): the attack's target is one more forward pass."""
        return cls(forward=steps + 3, to_images=steps, to_weights=2)


@dataclass(frozen=True)
class StepFloor:
    """Least work of one training step on one batch.

    Attributes:
        flops: Floating-point operations of convolutions and linear layers, 2 for a multiply-add.
        bytes: Least traffic: in every pass each weight, input and output of those layers moves once.
            Whatever lies between two of them (normalisation, ReLU, additions) is taken as fused.
    """

    flops: int
    bytes: int


def step_floor(model: nn.Module, images: Tensor, passes: Passes, *, batch: int, width: int = 4) -> StepFloor:
    """Return the least work of one step.

    Args:
        model: On the device of ``images``.
        images: A few examples ``[n, channels, height, width]``.
        passes: Of the objective.
        batch: Images of a step.
        width: Bytes of a number.

    Raises:
        ModelError: If the network cannot be called with the images.
    """
    moved_values: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        values = (given[0].numel() + output.numel()) // len(images)
        moved_values[module] = moved_values.get(module, 0) + values

    layers = [module for module in model.modules() if isinstance(module, _COUNTED)]
    handles = [module.register_forward_hook(note) for module in layers]
    try:
        costs = count_macs(model, images)
    finally:
        for handle in handles:
            handle.remove()
    first = next(iter(moved_values), None)  # in the order of calls
    flops = moved = 0
    for name, cost in costs.items():
        layer = model.get_submodule(name)
        one = 2 * cost.macs * batch
        traffic = (moved_values[layer] * batch + cost.weights) * width
        # A pass to the weights computes two products as large as the forward one, but for the first layer's.
        products = passes.forward + passes.to_images + passes.to_weights * (1 if layer is first else 2)
        flops += one * products
        moved += traffic * products
    return StepFloor(flops, moved)
