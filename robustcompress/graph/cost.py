"""What each layer of a network costs: weights and multiply-adds."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from robustcompress.errors import ModelError

Kind: TypeAlias = Literal["conv1d", "conv2d", "conv3d", "linear"]

_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.Linear, "linear"),
)


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer, for one image.

    Attributes:
        kind: ``conv1d``, ``conv2d``, ``conv3d`` or ``linear``.
        weights: Entries of the weight; the bias is not counted.
        nonzero: Of them, how many are not zero.
        positions: Places at which every weight is used once, summed over all calls of the layer: the
            height times width of a convolution's output, 1 for a linear layer on features.
        output_shape: Of the last call, without the batch.
    """

    kind: Kind
    weights: int
    nonzero: int
    positions: int
    output_shape: tuple[int, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer. In a grouped convolution the weight holds one group's inputs."""
        return self.weights * self.positions

    @property
    def effective_macs(self) -> int:
        """Multiply-adds with weights that are not zero."""
        return self.nonzero * self.positions


def count_macs(model: nn.Module, example_inputs: Tensor) -> dict[str, LayerCost]:
    """Run ``model`` once and return the cost of every convolution and linear layer that was called.

    Padding counts as any other input. Layers that compute through functions (attention, ``F.linear``) are
    not seen. Modes, random state and gradients are as before afterwards.

    Args:
        model: On the device of ``example_inputs``.
        example_inputs: ``[batch, ...]``; costs are for one of the batch, whatever its size.

    Returns:
        Costs by module name, in the order of ``named_modules``.

    Raises:
        ModelError: If the network cannot be called with these inputs.
    """
    found: dict[str, LayerCost] = {}
    names = {module: name for name, module in model.named_modules() if _kind(module) is not None}

    def note(module: nn.Module, inputs: object, outputs: Tensor) -> None:
        name, kind = names[module], _kind(module)
        assert kind is not None
        weight = cast("nn.Conv2d | nn.Linear", module).weight.detach()
        # Counted on all outputs, so that a layer that sees windows of an image as a larger batch is right.
        positions = outputs.numel() // (weight.shape[0] * len(example_inputs))
        before = found.get(name)
        found[name] = LayerCost(
            kind=kind,
            weights=weight.numel(),
            nonzero=int(torch.count_nonzero(weight)),
            positions=positions + (before.positions if before else 0),
            output_shape=tuple(outputs.shape[1:]),
        )

    with _quiet_run(model, example_inputs):
        handles = [module.register_forward_hook(note) for module in names]
        try:
            model(example_inputs)
        except Exception as error:  # whatever the user's own code raises
            raise ModelError(
                f"the network cannot be called with images {list(example_inputs.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
    return {name: found[name] for name in names.values() if name in found}


def effective_macs(costs: Mapping[str, LayerCost]) -> int:
    """Return the multiply-adds of one image that nonzero weights need, over all layers.

    It is what the speed of a runtime that skips zeros follows; weights in early layers, which see more
    positions, count more than their number.
    """
    return sum(cost.effective_macs for cost in costs.values())


def _kind(module: nn.Module) -> Kind | None:
    return next((kind for layer, kind in _KINDS if isinstance(module, layer)), None)


@contextmanager
def _quiet_run(model: nn.Module, example_inputs: Tensor) -> Generator[None]:
    """Put ``model`` in eval mode for one run that leaves no trace."""
    modes = [(module, module.training) for module in model.modules()]
    cuda = [example_inputs.device] if example_inputs.is_cuda else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            yield
    finally:
        for module, training in modes:
            module.training = training
