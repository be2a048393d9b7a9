"""Interval bound propagation: a box through the network, one operation after the other.

Shapes: B batch, C classes, S linear functions (specifications).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcompress.errors import ModelError
from robustcompress.robustness.bounds.operations import Convolution, Interval, Linear, Operation, Pulled
from robustcompress.robustness.bounds.rules import (
    Built,
    UnsupportedError,
    Value,
    batch_norm_factors,
    of_function,
    of_module,
    unsupported,
)
from robustcompress.robustness.bounds.tracing import TracedNetwork


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a network and the indices of its inputs' intervals."""

    operation: Operation
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Propagation:
    """Where a network's intermediate results lie.

    Attributes:
        intervals: The input's first, then one for each step; those of the logits last.
        steps: In the order of computation; ``steps[i]`` made ``intervals[i + 1]``.
    """

    intervals: tuple[Interval, ...]
    steps: tuple[Step, ...]

    @property
    def logits(self) -> Interval:
        """Where the logits ``[batch, classes]`` lie."""
        return self.intervals[-1]

    def pull_back(self, coefficients_BS: Tensor, index: int) -> Pulled:
        """Return linear functions of ``intervals[index]`` as functions of the inputs of its step."""
        step = self.steps[index - 1]
        return step.operation.pull_back(coefficients_BS, [self.intervals[source] for source in step.sources])


def propagate(
    network: TracedNetwork, tensors: Mapping[str, Tensor], lower: Tensor, upper: Tensor
) -> Propagation:
    """Return where every intermediate result lies for images between ``lower`` and ``upper``.

    An affine operation maps the centre as it stands and the radius with absolute weights,
    ``c' = W c + b`` and ``r' = |W| r``; a monotone one maps both ends.

    Args:
        network: The graph; batch normalisation takes its running statistics.
        tensors: Parameters or buffers that replace the network's own, by name; others are the network's.
            Gradients flow to them.
        lower: float ``[batch, ...]``, as :meth:`Threat.box` returns them. All is computed in its type.
        upper: Of the same shape.

    Raises:
        ModelError: If an operation has no bounds (it is named), or the logits are no ``[batch, classes]``.

    Source:
        Gowal et al. 2018, https://arxiv.org/abs/1810.12715, eq. 6 and 7 (centre and radius of affine layers).
    """
    return _Walk(network, tensors, lower, upper).run()


_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: nn.BatchNorm2d,
    nn.Linear: nn.BatchNorm1d,
}
"""Layers, and the normalisation that can be merged with them."""


class _Walk:
    """One pass over a graph."""

    def __init__(
        self, network: TracedNetwork, tensors: Mapping[str, Tensor], lower: Tensor, upper: Tensor
    ) -> None:
        self._network = network
        self._dtype = lower.dtype
        self._values = network.values(tensors, lower.dtype)
        self._modules = dict(network.network.named_modules(remove_duplicate=False))
        self._images = Value(0, Interval.between(lower, upper))
        self._intervals = [self._images.interval]
        self._steps: list[Step] = []

    def run(self) -> Propagation:
        found: dict[fx.Node, Any] = {}
        inputs = 0
        for node in self._network.graph.nodes:
            if node in found:
                continue
            args = fx.map_arg(node.args, lambda source: found[source])
            kwargs = fx.map_arg(node.kwargs, lambda source: found[source])
            if node.op == "placeholder":
                found[node] = self._images if inputs == 0 else args[0] if args else None
                inputs += 1
            elif node.op == "get_attr":
                found[node] = self._network.constant(str(node.target), self._values, self._dtype)
            elif node.op == "output":
                return self._finish(args[0])
            else:
                try:
                    norm = self._norm_after(node)
                    found[node] = self._apply(node, args, kwargs, norm)
                    if norm is not None:
                        found[norm] = found[node]
                except UnsupportedError as error:
                    raise unsupported(node, self._modules, str(error)) from error
        raise AssertionError("a graph ends with its output")

    def _norm_after(self, node: fx.Node) -> fx.Node | None:
        """Return the batch normalisation that alone reads what a convolution or linear layer makes."""
        if node.op != "call_module" or len(node.users) != 1:
            return None
        (reader,) = node.users
        pair = _PAIRS.get(type(self._modules[str(node.target)]))
        if reader.op != "call_module" or type(self._modules[str(reader.target)]) is not pair:
            return None
        if f"{reader.target}.running_mean" not in self._values:
            return None  # it has no bounds: named when its turn comes
        return reader if reader.args == (node,) and not reader.kwargs else None

    def _tensor_of(self, node: fx.Node) -> Callable[[str], Tensor | None]:
        return lambda kind: self._values.get(f"{node.target}.{kind}")

    def _apply(self, node: fx.Node, args: Any, kwargs: Any, norm: fx.Node | None) -> Any:
        if node.op == "call_module":
            name = str(node.target)
            entries = [*args, *kwargs.values()]
            if len(entries) != 1:
                raise UnsupportedError(f"it is called with {len(entries)} arguments, not 1")
            operation, sources = of_module(self._modules[name], self._tensor_of(node), entries[0])
            if norm is not None and isinstance(operation, Linear | Convolution):
                # One affine map instead of two: fewer passes over features, and over coefficients.
                following = self._modules[str(norm.target)]
                assert isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d)
                operation = operation.scaled(*batch_norm_factors(following, self._tensor_of(norm)))
            return self._take((operation, sources))
        dynamic: list[Value] = []
        _collect((args, kwargs), dynamic)
        if not dynamic:
            # Of constants alone: simply computed.
            if isinstance(node.target, str):
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        if node.target == "size":
            return dynamic[0].interval.centre.size(*args[1:], **kwargs)
        if node.target is getattr and args[1] == "shape":
            return dynamic[0].shape
        return self._take(of_function(node.target, args, kwargs))

    def _take(self, built: Built) -> Value:
        operation, sources = built
        self._steps.append(Step(operation, tuple(source.index for source in sources)))
        self._intervals.append(operation.interval(*(source.interval for source in sources)))
        return Value(len(self._steps), self._intervals[-1])

    def _finish(self, logits: Any) -> Propagation:
        if not isinstance(logits, Value) or len(logits.shape) != 2:
            what = list(logits.shape) if isinstance(logits, Value) else type(logits).__name__
            raise ModelError(
                f"bounds need a network that returns logits [batch, classes]; it returned {what}."
            )
        # What is computed after the logits, or beside them, does not count.
        return Propagation(tuple(self._intervals[: logits.index + 1]), tuple(self._steps[: logits.index]))


def _collect(entry: object, into: list[Value]) -> None:
    if isinstance(entry, Value):
        into.append(entry)
    elif isinstance(entry, tuple | list):
        for each in entry:
            _collect(each, into)
    elif isinstance(entry, dict):
        for each in entry.values():
            _collect(each, into)


def margin_coefficients(labels: Tensor, logits: Interval) -> Tensor:
    """Return ``e_y - e_j`` for each image's label ``y`` and every class ``j``.

    Returns:
        ``[batch, classes, classes]``, of the logits' type; zero where ``j`` is the label.
    """
    unit_CC = torch.eye(logits.centre.shape[1], dtype=logits.centre.dtype, device=logits.centre.device)
    return unit_CC[labels][:, None, :] - unit_CC


def interval_margins(propagation: Propagation, labels: Tensor) -> Tensor:
    """Return lower bounds of the margins ``f_y - f_j`` by interval propagation.

    The last affine layer is merged with the margin, so that what two logits share cancels.

    Args:
        propagation: Of the images' box.
        labels: int64 ``[batch]``.

    Returns:
        float ``[batch, classes]``; 0 at the label itself. Where all others are above 0 no image of the box
        is classified otherwise.

    Source:
        Gowal et al. 2018, https://arxiv.org/abs/1810.12715, section 3 (elision of the last layer).
    """
    coefficients = margin_coefficients(labels, propagation.logits)
    constant = coefficients.new_zeros(coefficients.shape[:2])
    index = len(propagation.steps)
    while index:
        step = propagation.steps[index - 1]
        if not step.operation.affine or len(step.sources) != 1:
            break
        pulled = propagation.pull_back(coefficients, index)
        coefficients, constant = pulled.coefficients[0], constant + pulled.constant
        index = step.sources[0]
        if not step.operation.moves_only:
            break
    return propagation.intervals[index].least(coefficients) + constant
