"""Make fewer operations of many: scaling, sums and clamps go into the layer that they follow."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from robustcompress.export.c.network import (
    UNBOUNDED,
    Add,
    Affine,
    Clamp,
    Convolution,
    Floats,
    Linear,
    Network,
    Operation,
    Shape,
)


def fuse(network: Network) -> Network:
    """Return a network that computes the same, up to rounding, in fewer operations.

    Of images ``[channels, height, width]`` no :class:`Affine`, :class:`Add` or :class:`Clamp` is left:
    where no layer takes one up it becomes a convolution of one tap. An :class:`Affine` of the network's own
    input stays, for the step that loads the image.
    """
    work = _Work(list(network.operations), network)
    work.fold_affines()
    work.take_up_sums()
    work.take_up_clamps()
    return replace(network, operations=tuple(work.operations))


@dataclass
class _Work:
    operations: list[Operation]
    network: Network
    uses: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self._count()

    def _count(self) -> None:
        self.uses = Counter(name for operation in self.operations for name in operation.inputs)
        self.uses[self.network.output] += 1

    def _shape(self, name: str) -> Shape:
        return self.network.shapes[name]

    def _maker(self, name: str) -> Operation | None:
        """Return the operation that makes ``name``, if nothing else reads that."""
        if self.uses[name] != 1:
            return None
        return next((operation for operation in self.operations if operation.output == name), None)

    def _put(self, old: Operation, new: Operation, *, without: Operation | None = None) -> None:
        self.operations = [new if item is old else item for item in self.operations if item is not without]
        self._count()

    def fold_affines(self) -> None:
        """Fold scaling into the layer before it, else write it as a convolution."""
        for affine in [item for item in self.operations if isinstance(item, Affine)]:
            maker = self._maker(affine.inputs[0])
            if isinstance(maker, Affine) and maker in self.operations:
                shift = affine.scale * maker.shift + affine.shift
                both = replace(affine, inputs=maker.inputs, scale=affine.scale * maker.scale, shift=shift)
                self._put(affine, both, without=maker)
                affine = both
                maker = self._maker(affine.inputs[0])
            if isinstance(maker, Convolution | Linear) and len(maker.inputs) == 1 and not _is_clamped(maker):
                self._put(affine, _scaled(maker, affine), without=maker)
            elif len(self._shape(affine.output)) == 3 and affine.inputs[0] != self.network.input:
                self._put(affine, _one_tap(affine.inputs, affine.output, affine.scale, affine.shift))

    def take_up_sums(self) -> None:
        """Make the residual of a convolution of every sum."""
        for add in [item for item in self.operations if isinstance(item, Add)]:
            if len(self._shape(add.output)) != 3:
                continue
            left, right = add.inputs
            hosts = [
                (self.operations.index(maker), maker, other)
                for name, other in ((left, right), (right, left))
                if isinstance(maker := self._maker(name), Convolution)
                and len(maker.inputs) == 1
                and not _is_clamped(maker)
                and left != right
            ]
            if hosts:  # the last one made: the other one is there when it ends
                _, maker, other = max(hosts, key=lambda host: host[0])
                taken = replace(maker, inputs=(*maker.inputs, other), output=add.output)
                self._put(add, taken, without=maker)
            else:
                ones = np.ones(self._shape(left)[0], np.float32)
                self._put(add, _one_tap((left, right), add.output, ones, np.zeros_like(ones)))

    def take_up_clamps(self) -> None:
        """Let layers clamp what they make."""
        for clamp in [item for item in self.operations if isinstance(item, Clamp)]:
            maker = self._maker(clamp.inputs[0])
            if isinstance(maker, Convolution | Linear):
                low, high = max(maker.low, clamp.low), min(maker.high, clamp.high)
                if low <= high:
                    clamped = replace(maker, output=clamp.output, low=low, high=high)
                    self._put(clamp, clamped, without=maker)
                    continue
            if len(self._shape(clamp.output)) == 3:
                ones = np.ones(self._shape(clamp.output)[0], np.float32)
                copied = _one_tap(clamp.inputs, clamp.output, ones, np.zeros_like(ones))
                self._put(clamp, replace(copied, low=clamp.low, high=clamp.high))


def _is_clamped(layer: Convolution | Linear) -> bool:
    return layer.low > -UNBOUNDED or layer.high < UNBOUNDED


def _scaled(layer: Convolution | Linear, affine: Affine) -> Convolution | Linear:
    """Return the layer with a scaling that follows it, computed in float64."""
    scale = affine.scale.astype(np.float64)
    weight = layer.weight.astype(np.float64) * scale.reshape(-1, *[1] * (layer.weight.ndim - 1)) + 0.0
    bias = layer.bias.astype(np.float64) * scale + affine.shift
    return replace(
        layer, output=affine.output, weight=weight.astype(np.float32), bias=bias.astype(np.float32)
    )


def _one_tap(inputs: tuple[str, ...], output: str, scale: Floats, shift: Floats) -> Convolution:
    return Convolution(
        inputs=inputs,
        output=output,
        weight=scale.reshape(-1, 1, 1, 1),
        bias=shift,
        groups=len(scale),
    )
