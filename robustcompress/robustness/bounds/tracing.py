"""A network as a graph that boxes can be sent through."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.bounds.rules import is_view, writes_over_input


@dataclass(frozen=True, eq=False)
class TracedNetwork:
    """A network's operations in order, and where their weights are found.

    Attributes:
        graph: Of the network in eval mode.
        network: A copy of the modules that shares every parameter and buffer with the network traced.
    """

    graph: fx.Graph
    network: nn.Module

    def values(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Return parameters and buffers by every name they have, those of ``tensors`` in their place.

        Args:
            tensors: Replaced parameters or buffers, such as masked weights, by name.
            dtype: That floating-point values are converted to.

        Raises:
            ModelError: If the network has no parameter or buffer of a name.
        """
        own = [
            *self.network.named_parameters(remove_duplicate=False),
            *self.network.named_buffers(remove_duplicate=False),
        ]
        unknown = sorted(set(tensors) - {name for name, _ in own})
        if unknown:
            raise ModelError(
                f"expected tensors by the names of parameters and buffers; the network has no {unknown[0]!r}."
            )
        # A tensor shared by layers has several names and may be replaced under any of them.
        replaced = {id(tensor): tensors[name] for name, tensor in own if name in tensors}
        found = {name: replaced.get(id(tensor), tensor) for name, tensor in own}
        return {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()
        }

    def constant(self, name: str, values: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """Return the attribute that the graph reads under ``name``."""
        if name in values:
            return values[name]
        value = attrgetter(name)(self.network)
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def trace_network(model: nn.Module) -> TracedNetwork:
    """Return ``model`` in eval mode as a graph; nothing is computed yet.

    Args:
        model: Any module that ``torch.fx`` can trace; neither it nor its mode is changed, and its parameters
            and buffers are shared, not copied.

    Raises:
        ModelError: If it cannot be traced, a layer has hooks, or an operation writes over an input that
            others read.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    try:
        # A copy: a forward that stores what it computes would leave traces in the user's network.
        network = copy.deepcopy(model, shared).eval()
        tracer = fx.Tracer()
        graph = tracer.trace(network)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ModelError(
            "bounds need a network whose operations do not depend on its input; torch.fx cannot trace "
            f"{type(model).__name__}: {reason}"
        ) from error
    modules = dict(network.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if module._forward_hooks or module._forward_pre_hooks:
                raise ModelError(
                    f"layer {node.target!r} has forward hooks, which bounds cannot see into. Remove them."
                )
        _refuse_overwriting(node, modules)
    return TracedNetwork(graph, network)


def _refuse_overwriting(node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """Refuse an operation in place whose input is read elsewhere: who reads it gets which value?"""
    if not writes_over_input(node, modules):
        return
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node):
        if len(source.users) > 1 or source.op == "placeholder":
            raise ModelError(
                f"operation {node.name!r} writes over its input {source.name!r}, which "
                f"{'belongs to the caller' if source.op == 'placeholder' else 'others read'}. "
                "Use the form that is not in place."
            )
        source = source.args[0] if is_view(source, modules) and source.args else None
