"""The network as torch-pruning sees it: which layers and operations a layer's output channels reach."""

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from robustcompress.errors import ModelError
from robustcompress.pruning.copies import private_copy, run


class ObstacleError(Exception):
    """Why a group of channels cannot be removed. Never reaches a user: it becomes a reason to freeze."""


@dataclass(frozen=True, eq=False)
class Stop:
    """One layer or operation that a group of coupled channels touches.

    Attributes:
        name: Of the layer as in ``named_modules``; of an operation, its autograd name such as ``Relu``.
        module: The layer (of a private copy), or None for an operation.
        consumes: Whether the channels are the layer's inputs, and end there.
        ends: Whether nothing follows: what it returns are the network's outputs.
        positions: Index along the layer's channels, and ...
        roots: ... the channel of the root layer that it belongs to; as long as ``positions``.
    """

    name: str
    module: nn.Module | None
    consumes: bool
    ends: bool
    positions: list[int]
    roots: list[int]


class Trace:
    """torch-pruning's dependency graph of a private copy; only its index sets are used, never its pruners.

    Args:
        model: Left as it is, its mode and ``requires_grad`` included.
        example_inputs: float ``[batch, ...]``; the first two images are used.

    Attributes:
        calls: How often each layer was called in one forward pass, by name.

    Raises:
        ModelError: If the network does not run or torch-pruning cannot trace it.
    """

    def __init__(self, model: nn.Module, example_inputs: Tensor) -> None:
        twin = private_copy(model).eval()
        inputs = example_inputs[:2]
        self.calls: Counter[str] = Counter()
        with torch.no_grad():
            self._count_calls(twin, inputs)
        # Frozen parameters would be left out of autograd's graph, and their layers out of every group.
        for parameter in twin.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        device = next(twin.parameters()).device
        self._layers = dict(twin.named_modules())
        self._names = {module: name for name, module in self._layers.items()}
        self._graph: Any = DependencyGraph()
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._graph.build_dependency(twin, (inputs.detach().to(device),), verbose=False)
        except Exception as error:
            raise ModelError(
                "coupled channels are found with torch-pruning, which cannot trace this network "
                f"({type(error).__name__}: {error}). Use the pattern 'unstructured'."
            ) from error

    def _count_calls(self, twin: nn.Module, inputs: Tensor) -> None:
        def count(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                self.calls[name] += 1

            return hook

        handles = [module.register_forward_hook(count(name)) for name, module in twin.named_modules()]
        run(twin, inputs)
        for handle in handles:
            handle.remove()

    def reaches(self, layer: str) -> list[Stop]:
        """Return every stop of the channels that ``layer`` puts out, the layer itself first.

        Raises:
            ObstacleError: If torch-pruning cannot follow the layer's channels.
        """
        root = self._layers[layer]
        if self.calls[layer] == 0:
            raise ObstacleError("the network does not call it as a layer")
        if root not in self._graph.module2node:
            raise ObstacleError("the logits do not depend on it through anything that autograd can follow")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pruner = self._graph.get_pruner_of_module(root)
                channels = list(range(self._graph.get_out_channels(root)))
                group = self._graph.get_pruning_group(root, pruner.prune_out_channels, channels)
                return [self._stop(item) for item in group]
        except Exception as error:
            raise ObstacleError(
                f"torch-pruning cannot follow its channels ({type(error).__name__}: {error})"
            ) from error

    def _stop(self, item: Any) -> Stop:
        dependency, positions = item
        node = dependency.target
        module = node.module if node.module in self._names else None
        consumes = dependency.handler.__name__ == "prune_in_channels"
        return Stop(
            name=_operation(node) if module is None else self._names[module],
            module=module,
            consumes=consumes,
            ends=not node.outputs and not consumes,
            positions=list(positions),
            roots=list(item.root_idxs),
        )


def _operation(node: Any) -> str:
    """Return the name of an operation or parameter that is no layer, as a person knows it."""
    if isinstance(node.module, nn.Parameter):
        return "Parameter"
    name = getattr(node.grad_fn, "name", None)
    return str(name()).split("Backward")[0] if callable(name) else "an unknown operation"
