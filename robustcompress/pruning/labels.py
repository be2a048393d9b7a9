"""Which channels are tied to which: every channel of every layer has a number, and ties unite numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

NOBODY = -1
"""Label of what belongs to no channel: it stays whatever is removed."""

PADDING = -2
"""Label of a literal zero, as padding puts at borders: it may go with any channel around it."""


class UnevenError(Exception):
    """A tensor from which no channel can be cut out as a whole slice. Becomes a reason to freeze."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The channels of one activation.

    Attributes:
        axis: Along which they lie.
        numbers: int64, as long as the axis: a channel's number, or ``NOBODY``.
        zero: Whether the activation is exactly 0 wherever a channel was set to zero at its source.
    """

    axis: int
    numbers: Tensor
    zero: bool

    def spread(self, shape: Iterable[int]) -> Tensor:
        """Return the numbers for each entry of an activation of ``shape``; float64, for any operation."""
        sizes = tuple(shape)
        view = [1] * len(sizes)
        view[self.axis] = -1
        return self.numbers.to(torch.float64).reshape(view).expand(sizes).contiguous()


@dataclass(frozen=True, order=True)
class Slot:
    """One entry along one axis of one layer's weight.

    Attributes:
        layer: Name of the layer.
        axis: 0 where the layer makes or normalises the channel, 1 where it takes it in.
        position: Along the axis.
    """

    layer: str
    axis: int
    position: int


class Ties:
    """Numbers of channels, united where channels can only go together (a union-find)."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._slots: list[Slot] = []
        self._first: dict[tuple[str, int], tuple[int, int]] = {}
        self._reasons: dict[int, str] = {}

    def numbers(self, layer: str, axis: int, size: int) -> Tensor:
        """Return the numbers of a layer's channels along an axis, int64 ``[size]``; always the same."""
        key = (layer, axis)
        if key not in self._first:
            self._first[key] = (len(self._parent), size)
            self._parent.extend(range(len(self._parent), len(self._parent) + size))
            self._slots.extend(Slot(layer, axis, position) for position in range(size))
        first, known = self._first[key]
        assert known == size
        return torch.arange(first, first + size)

    def layers(self, axis: int) -> set[str]:
        """Return the layers that have numbers along ``axis``."""
        return {layer for layer, along in self._first if along == axis}

    def unite(self, some: Tensor, others: Tensor, where: str) -> None:
        """Tie the channels of two tensors of numbers, entry by entry; a channel that meets nobody must stay.

        ``where`` begins the reason for that.
        """
        for one, other in set(zip(some.flatten().tolist(), others.flatten().tolist(), strict=True)):
            if one >= 0 and other >= 0:
                self._parent[self._root(one)] = self._root(other)
            elif max(one, other) >= 0:
                self.freeze([max(one, other)], f"{where}, where they meet values that stay")

    def freeze(self, numbers: Tensor | Iterable[int], reason: str) -> None:
        """Note why channels must stay; the first reason counts."""
        for number in numbers.flatten().tolist() if isinstance(numbers, Tensor) else numbers:
            if number >= 0:
                self._reasons.setdefault(int(number), reason)

    def freeze_layer(self, layer: str, reason: str) -> None:
        """Note why all channels of a layer must stay, those it takes and those it makes."""
        for axis in (0, 1):
            first, size = self._first.get((layer, axis), (0, 0))
            self.freeze(range(first, first + size), reason)

    def units(self) -> list[tuple[list[Slot], str | None]]:
        """Return every set of tied slots, sorted, and why it must stay if it must."""
        slots: dict[int, list[Slot]] = {}
        reasons: dict[int, str] = {}
        for number, slot in enumerate(self._slots):
            slots.setdefault(self._root(number), []).append(slot)
        for number, reason in self._reasons.items():
            reasons.setdefault(self._root(number), reason)
        return [(sorted(members), reasons.get(root)) for root, members in slots.items()]

    def gather(self, spread: Tensor, where: str, prefer: int = -1) -> tuple[int, Tensor] | None:
        """Return axis and numbers of a tensor of labels, or None if it holds no channel.

        Where the numbers vary along several axes, channels are tied so that whole slices along the last of
        them can go: a view of channels as (groups, channels of a group) lets the same ones of every group go.

        Args:
            spread: Labels of each entry, as from ``Labels.spread``.
            where: Begins the reason for channels that must stay.
            prefer: Axis to take instead if the numbers vary along it.

        Raises:
            UnevenError: If no axis is left along which slices could go.
        """
        if not bool((spread >= 0).any()):
            return None
        top = torch.where(spread == PADDING, NOBODY, spread).to(torch.int64)
        varying = [axis for axis in range(spread.ndim) if _varies(spread, axis)]
        if not varying:
            raise UnevenError("a single one of its channels is picked out")
        exact = [axis for axis in varying if _settled(spread, axis)]
        axis = exact[-1] if exact else prefer if prefer in varying else varying[-1]
        rows = top.movedim(axis, 0).reshape(spread.shape[axis], -1)
        numbers = rows.amax(1)
        if not exact:
            padding = spread.movedim(axis, 0).reshape(spread.shape[axis], -1) == PADDING
            self.unite(numbers[:, None].expand_as(rows)[~padding], rows[~padding], where)
        return axis, numbers

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number


def _varies(spread: Tensor, axis: int) -> bool:
    """Whether entries along ``axis`` belong to different channels; padding fits with all."""
    if spread.shape[axis] < 2:
        return False
    high = spread.amax(axis)
    low = torch.where(spread == PADDING, torch.inf, spread).amin(axis)
    return bool((low < high).any())


def _settled(spread: Tensor, axis: int) -> bool:
    """Whether everything else in a slice along ``axis`` belongs to one channel, or is padding."""
    rows = spread.movedim(axis, 0).reshape(spread.shape[axis], -1)
    high = rows.amax(1)
    low = torch.where(rows == PADDING, torch.inf, rows).amin(1)
    return bool((low >= high).all())
