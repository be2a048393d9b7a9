"""Choose for each value how its rows lie, so that convolutions read their sources where they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from robustcompress.export.c.network import Convolution, Network, Operation, Shape
from robustcompress.export.c.planes import Planes, planes
from robustcompress.export.c.taps import (
    Phase,
    Tap,
    direct_taps,
    gathered_taps,
    is_direct,
    phases,
    window,
)

WIDEST_SHIFTED = 16
"""Columns up to which rows may follow each other directly. Wider ones would not fit the nearest cache."""


@dataclass(frozen=True)
class Rows:
    """How the rows of some values lie; values that one output position joins have the same.

    Attributes:
        row: Floats from one to the next.
        shifted: Whether they follow each other directly, with shifted copies for windows.
    """

    row: int
    shifted: bool


@dataclass(frozen=True)
class Gathering:
    """Planes that are made of a value for the convolutions of a stride.

    Attributes:
        source: Name of the value.
        phases: Planes of each channel.
        stride: Of the convolutions.
        planes: Where they lie.
    """

    source: str
    phases: tuple[Phase, ...]
    stride: tuple[int, int]
    planes: Planes


@dataclass(frozen=True)
class Geometry:
    """Where everything lies.

    Attributes:
        planes: Of each value of channels, rows and columns.
        gatherings: By the name of the convolution's output; convolutions may share one.
        taps: Of each convolution, by the name of its output.
    """

    planes: dict[str, Planes]
    gatherings: dict[str, Gathering]
    taps: dict[str, list[Tap]]


class _Classes:
    """Values that must have the same rows."""

    def __init__(self, network: Network) -> None:
        self._parent = {name: name for name, shape in network.shapes.items() if len(shape) == 3}
        for operation in network.operations:
            for name in _joined(operation):
                self._parent[self.find(name)] = self.find(operation.output)

    def find(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name


def _joined(operation: Operation) -> Iterator[str]:
    """Yield the inputs whose rows must lie like the output's."""
    if isinstance(operation, Convolution):
        yield from operation.inputs if is_direct(operation) else operation.inputs[1:]


def lay_out(network: Network, *, lanes: int) -> Geometry:
    """Return where every value of channels, rows and columns lies.

    Args:
        network: As fused.
        lanes: Floats of the vectors that it should be best for. Others work as well.
    """
    spatial = {name: shape for name, shape in network.shapes.items() if len(shape) == 3}
    used = {name for item in network.operations for name in (*item.inputs, item.output)}
    spatial = {name: shape for name, shape in spatial.items() if name in used}
    classes = _Classes(network)
    convolutions = [item for item in network.operations if isinstance(item, Convolution)]
    rows = _rows(classes, convolutions, spatial)
    taps: dict[str, list[Tap]] = {}
    reach: dict[str, list[tuple[int, int]]] = {name: [] for name in spatial}
    copies = dict.fromkeys(spatial, 1)
    for item in convolutions:
        own = rows[classes.find(item.output)]
        if not is_direct(item):
            continue
        source = item.inputs[0]
        taps[item.output] = direct_taps(item, row=own.row, shifted=own.shifted)
        reach[source].append(_reach(spatial[item.output], taps[item.output], own.row))
        if own.shifted and any(tap.phase for tap in taps[item.output]):
            copies[source] = 3
    places = {
        name: planes(
            shape,
            row=rows[classes.find(name)].row,
            reach=reach[name],
            lanes=lanes,
            copies=copies[name],
        )
        for name, shape in spatial.items()
    }
    gatherings: dict[str, Gathering] = {}
    for group in _gathered(convolutions, classes):
        first = group[0]
        own = rows[classes.find(first.output)]
        wanted = sorted({phase for item in group for phase in phases(item, shifted=own.shifted)})
        channels, height, width = spatial[first.inputs[0]]
        vertical, horizontal = first.stride
        shape = (
            channels * len(wanted),
            -(-height // vertical),
            own.row if own.shifted else -(-width // horizontal),
        )
        ends: list[tuple[int, int]] = []
        for item in group:
            taps[item.output] = gathered_taps(item, wanted, row=own.row, shifted=own.shifted)
            ends.append(_reach(spatial[item.output], taps[item.output], own.row))
        place = planes(shape, row=own.row, reach=ends, lanes=lanes)
        gathering = Gathering(first.inputs[0], tuple(wanted), first.stride, place)
        gatherings.update({item.output: gathering for item in group})
    return Geometry(places, gatherings, taps)


def _gathered(convolutions: list[Convolution], classes: _Classes) -> list[list[Convolution]]:
    """Return the convolutions that can share gathered planes, together."""
    found: dict[tuple[str, tuple[int, int], str], list[Convolution]] = {}
    for item in convolutions:
        if not is_direct(item):
            found.setdefault((item.inputs[0], item.stride, classes.find(item.output)), []).append(item)
    return list(found.values())


def _reach(shape: Shape, taps: list[Tap], row: int) -> tuple[int, int]:
    """Return the least and the largest position that an output of ``shape`` reads."""
    last = (shape[1] - 1) * row + shape[2] - 1
    distances = [tap.distance for tap in taps]
    return min(distances), last + max(distances)


def _rows(
    classes: _Classes, convolutions: list[Convolution], spatial: Mapping[str, Shape]
) -> dict[str, Rows]:
    members: dict[str, list[str]] = {}
    for name in spatial:
        members.setdefault(classes.find(name), []).append(name)
    found: dict[str, Rows] = {}
    for root, names in members.items():
        readers = [item for item in convolutions if classes.find(item.output) == root]
        widths = {spatial[name][2] for name in names}
        if len(widths) == 1 and _can_shift(readers, spatial, width := widths.pop()):
            found[root] = Rows(width, shifted=True)
            continue
        row = max(spatial[name][2] for name in names)
        for item in readers:
            row = max(row, _row_of(item, spatial))
        found[root] = Rows(row, shifted=False)
    return found


def _can_shift(readers: list[Convolution], spatial: Mapping[str, Shape], width: int) -> bool:
    """Return whether copies shifted by one serve all convolutions, and are worth their place."""
    if width > WIDEST_SHIFTED:
        return False
    for item in readers:
        if is_direct(item):
            columns = window(item)[1]
            if min(columns) < -1 or max(columns) > 1 or spatial[item.inputs[0]][2] != width:
                return False
    return True


def _row_of(convolution: Convolution, spatial: Mapping[str, Shape]) -> int:
    """Return how long rows must be for windows to find zeros beyond both ends."""
    width, outputs = spatial[convolution.inputs[0]][2], spatial[convolution.output][2]
    step = convolution.stride[1]
    columns = [column // step for column in window(convolution)[1]]
    columns_each = -(-width // step)
    return max(columns_each + max(0, -min(columns)), outputs + max(0, *columns), columns_each)
