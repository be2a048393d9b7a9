"""Turn a network into the steps of a C function, with the tables that they read."""

from dataclasses import dataclass, field

import numpy as np

from robustcompress.export.c import choosing, tables
from robustcompress.export.c.arena import lives, place
from robustcompress.export.c.geometry import Gathering, Geometry, lay_out
from robustcompress.export.c.network import (
    UNBOUNDED,
    Add,
    Affine,
    Clamp,
    Concatenation,
    Convolution,
    Flatten,
    Floats,
    Linear,
    MaxPool,
    Mean,
    Network,
    Operation,
)
from robustcompress.export.c.planes import MOST_LANES, Planes, rounded
from robustcompress.export.c.storing import stored_weights
from robustcompress.export.c.taps import offsets
from robustcompress.export.c.weights import Sparse, packed, sparse_convolution, sparse_linear
from robustcompress.export.values import ValueType

IMAGE = "image"
LOGITS = "logits"


@dataclass(frozen=True)
class Step:
    """One call in the C function.

    Attributes:
        call: With ``{value}`` where the address of a value goes.
        reads: Values that it reads, by their keys.
        writes: Values that it makes.
        label: Of the operation, for reports.
    """

    call: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class LayerCost:
    """What one layer with weights costs.

    Attributes:
        name: Of its weight in the graph.
        step: That computes it, counted from 0.
        weights: Of the layer.
        kept: Weights that are not zero.
        macs: Multiply-adds of the dense layer for one image.
        sparse_macs: Of the weights that are kept.
        is_dense: Whether the file multiplies with every weight.
    """

    name: str
    step: int
    weights: int
    kept: int
    macs: int
    sparse_macs: int
    is_dense: bool


@dataclass(frozen=True, eq=False)
class Program:
    """What a C file holds.

    Attributes:
        steps: In order.
        tables: C text of the constants.
        starts: Of each value in the workspace, floats.
        workspace: Floats.
        layers: With weights, in order.
        sparse_positions: Of planes that sums over kept weights make.
        dense_positions: Of planes that sums over all weights make.
    """

    steps: tuple[Step, ...]
    tables: tuple[str, ...]
    starts: dict[str, int]
    workspace: int
    layers: tuple[LayerCost, ...]
    sparse_positions: frozenset[int]
    dense_positions: frozenset[int]


def plan(network: Network, *, lanes: int, values: ValueType, sparse: bool | None = None) -> Program:
    """Return the program that computes ``network``.

    Args:
        network: As fused.
        lanes: Floats of the vectors that places are best for.
        values: How weights of layers are stored.
        sparse: Whether to sum over kept weights only; ``None`` chooses for each layer.
    """
    planner = _Planner(network, lay_out(network, lanes=lanes), values, sparse)
    for operation in network.operations:
        planner.add(operation)
    return planner.finish()


@dataclass
class _Planner:
    network: Network
    geometry: Geometry
    values: ValueType
    sparse: bool | None
    steps: list[Step] = field(default_factory=list[Step])
    tables: list[str] = field(default_factory=list[str])
    lengths: dict[str, int] = field(default_factory=dict[str, int])
    layers: list[LayerCost] = field(default_factory=list[LayerCost])
    _keys: dict[str, str] = field(default_factory=dict[str, str])
    _positions: dict[bool, set[int]] = field(default_factory=lambda: {True: set(), False: set()})
    _shared: dict[object, str] = field(default_factory=dict[object, str])
    _gathered: dict[Gathering, str] = field(default_factory=dict[Gathering, str])

    def add(self, operation: Operation) -> None:
        """Add the steps of one operation."""
        match operation:
            case Convolution():
                self._convolution(operation)
            case Linear():
                self._linear(operation)
            case MaxPool():
                self._max_pool(operation)
            case Mean():
                self._mean(operation)
            case Flatten():
                self._flatten(operation)
            case Concatenation():
                self._concatenation(operation)
            case Affine() if operation.inputs[0] == self.network.input and self._is_spatial(operation.output):
                self._load(operation.output, operation.scale, operation.shift)
            case Affine() | Add() | Clamp():
                self._features(operation)
            case _:
                raise AssertionError(f"no step for {type(operation).__name__}")

    def finish(self) -> Program:
        """Return the program, everything in its place."""
        logits = self.network.output
        count = self.network.shapes[logits][0]
        self._step(
            f"memcpy({LOGITS}, {{{self._key(logits)}}}, {count} * sizeof(float));", (logits,), (), "logits"
        )
        writes = [step.writes for step in self.steps]
        reads = [step.reads for step in self.steps]
        starts, length = place(lives(self.lengths, writes, reads))
        return Program(
            tuple(self.steps),
            tuple(self.tables),
            starts,
            length,
            tuple(self.layers),
            frozenset(self._positions[False]),
            frozenset(self._positions[True]),
        )

    # ---- values and tables ----

    def _is_spatial(self, name: str) -> bool:
        return len(self.network.shapes[name]) == 3

    def _key(self, name: str) -> str:
        """Return the key of a value in the workspace."""
        return self._keys.setdefault(name, f"v{len(self._keys)}")

    def _value(self, name: str) -> str:
        """Return the key of a value that is to be made, and note its length."""
        key = self._key(name)
        if name in self.geometry.planes:
            self.lengths[key] = self.geometry.planes[name].length
        else:
            self.lengths[key] = rounded(self.network.shapes[name][0], MOST_LANES)
        return key

    def _read(self, name: str) -> str:
        """Return the key of a value that is there; the image is loaded when it is first read."""
        if name == self.network.input and name not in self._keys:
            if self._is_spatial(name):
                self._load(name, None, None)
            else:
                count = self.network.shapes[name][0]
                key = self._value(name)
                self._step(f"memcpy({{{key}}}, {IMAGE}, {count} * sizeof(float));", (), (name,), "load")
        return self._key(name)

    def _step(self, call: str, reads: tuple[str, ...], writes: tuple[str, ...], label: str) -> None:
        keys = tuple(self._key(name) for name in reads), tuple(self._key(name) for name in writes)
        self.steps.append(Step(call, *keys, label))

    def _table(self, name: str, text: str, *, shared: object = None) -> str:
        """Add a table of constants; one that is shared is written once. Return its name."""
        if shared is not None and shared in self._shared:
            return self._shared[shared]
        self.tables.append(text)
        if shared is not None:
            self._shared[shared] = name
        return name

    def _floats(self, kind: str, values: Floats) -> str:
        name = f"NAME_{kind}{len(self.tables)}"
        return self._table(name, tables.floats(name, values))

    def _planes(self, item: Planes) -> str:
        name = f"NAME_planes{len(self.tables)}"
        numbers = (
            item.origin,
            item.channel,
            item.copy,
            item.copies,
            item.channels,
            item.height,
            item.width,
            item.row,
            item.lead,
            item.body - item.positions,
        )
        text = f"static const NAME_planes {name} = {{{', '.join(map(str, numbers))}}};\n"
        return self._table(name, text, shared=item)

    def _masks(self, item: Planes) -> tuple[str, int]:
        """Return the name of the masks of a value's positions, and the length of each."""
        length = rounded(item.positions, MOST_LANES)
        position = np.arange(length)
        row, column = position // item.row, position % item.row
        inside = (row < item.height) & (column < item.width)
        kinds = [inside]
        if item.copies == 3:
            kinds += [inside & (column < item.width - 1), inside & (column > 0)]
        bits = np.where(np.concatenate(kinds), np.uint32(0xFFFFFFFF), np.uint32(0))
        name = f"NAME_masks{len(self.tables)}"
        shared = ("masks", item.height, item.width, item.row, item.copies)
        return self._table(name, tables.integers("uint32_t", name, bits), shared=shared), length

    # ---- steps ----

    def _load(self, output: str, scale: Floats | None, shift: Floats | None) -> None:
        key, where = self._value(output), self._planes(self.geometry.planes[output])
        factors = "NULL, NULL"
        if scale is not None and shift is not None:
            factors = f"{self._floats('scale', scale)}, {self._floats('shift', shift)}"
        self._step(f"NAME_load({IMAGE}, {factors}, &{where}, {{{key}}});", (), (output,), "load")

    def _gather(self, gathering: Gathering) -> str:
        """Return the name of gathered planes, made if they are not yet there."""
        if gathering in self._gathered:
            return self._gathered[gathering]
        source = self._read(gathering.source)
        name = f"{gathering.source} gathered {len(self._gathered)}"
        self._gathered[gathering] = name
        key = self._key(name)
        self.lengths[key] = gathering.planes.length
        table = f"NAME_phases{len(self.tables)}"
        rows = ", ".join(f"{{{phase.top}, {phase.left}}}" for phase in gathering.phases)
        self._table(table, f"static const NAME_phase {table}[{len(gathering.phases)}] = {{{rows}}};\n")
        places = self._planes(self.geometry.planes[gathering.source]), self._planes(gathering.planes)
        self._step(
            f"NAME_gather(&{places[0]}, {{{source}}}, {table}, {len(gathering.phases)}, "
            f"{gathering.stride[0]}, {gathering.stride[1]}, &{places[1]}, {{{key}}});",
            (gathering.source,),
            (name,),
            "gather",
        )
        return name

    def _convolution(self, item: Convolution) -> None:
        first, *others_read = item.inputs
        residual = others_read[0] if others_read else None
        for name in item.inputs:
            self._read(name)
        gathering = self.geometry.gatherings.get(item.output)
        source = first if gathering is None else self._gather(gathering)
        below = self.geometry.planes[source] if gathering is None else gathering.planes
        each = 1 if gathering is None else len(gathering.phases)
        above = self.geometry.planes[item.output]
        taps = self.geometry.taps[item.output]
        channels = item.weight.shape[1] * item.groups
        distances = offsets(taps, below, channels=channels, planes_each=each)
        sizes = self.network.shapes[item.output]
        positions = (sizes[1] - 1) * above.row + sizes[2]
        use_dense = choosing.is_dense(item, positions) if self.sparse is None else not self.sparse
        self._positions[use_dense].add(positions)
        number = len(self.tables)
        bias = self._floats("bias", item.bias)
        masks, mask_length = self._masks(above)
        if use_dense:
            group = distances[: item.weight.shape[1]].reshape(-1).astype(np.int32)
            weights, scratch = self._weights(item, packed(item), None)
            starts, blocks, taps_each = "NULL", item.groups, len(group)
            offset_values = group
        else:
            tile = (min(positions, 12 * 8) + 2 * above.row) * 4 * len({tap.phase for tap in taps})
            listed = sparse_convolution(item, distances, tile_bytes=tile)
            weights, scratch = self._weights(item, listed.weights, listed)
            starts = f"NAME_starts{number}"
            self._table(starts, tables.integers("uint32_t", starts, listed.starts))
            blocks, taps_each, offset_values = listed.blocks, 0, listed.offsets
        offset_table = f"NAME_offsets{number}"
        self._table(offset_table, tables.integers("int32_t", offset_table, offset_values))
        low, high = (tables.number(end) for end in (item.low, item.high))
        others = f"&{self._planes(self.geometry.planes[residual])}" if residual else "NULL"
        places = f"&{self._planes(below)}, &{self._planes(above)}, {others}"
        layer = f"NAME_layer{number}"
        self.tables.append(
            f"static const NAME_convolution {layer} = {{{offset_table}, {weights}, {starts}, {bias}, "
            f"{masks}, {places}, {below.origin}, {sizes[0]}, {blocks}, {taps_each}, {positions}, "
            f"{item.weight.shape[1] * each * below.channel}, {mask_length}, {low}, {high}}};\n"
        )
        key = self._value(item.output)
        reads = (source, *([residual] if residual else []), *([scratch] if scratch else []))
        function = "NAME_dense" if use_dense else "NAME_sparse"
        other = f"{{{self._key(residual)}}}" if residual else "NULL"
        scratch_key = f"{{{self._key(scratch)}}}" if scratch else "NULL"
        self._step(
            f"{function}(&{layer}, {scratch_key}, {{{self._key(source)}}}, {other}, {{{key}}});",
            reads,
            (item.output,),
            item.output,
        )
        if item.is_layer:
            self._note(item.label, item.weight, sizes[1] * sizes[2], use_dense)

    def _weights(
        self, layer: Convolution | Linear, weights: Floats, listed: Sparse | None
    ) -> tuple[str, str | None]:
        """Return the name of a layer's weights, and of the value that they are decoded to, if they are."""
        number = len(self.tables)
        is_layer = isinstance(layer, Linear) or layer.is_layer
        values: ValueType = self.values if is_layer else "float32"
        stored = stored_weights(layer, weights, listed, values, f"NAME_weights{number}")
        self.tables += stored.tables
        if stored.decoder is None:
            return stored.name, None
        scratch = f"decoded {number}"
        key = self._key(scratch)
        self.lengths[key] = rounded(weights.size, MOST_LANES)
        self._step(stored.decoder.format(out=f"{{{key}}}"), (), (scratch,), "decode")
        return "NULL", scratch

    def _linear(self, item: Linear) -> None:
        source = self._read(item.inputs[0])
        outputs, inputs = item.weight.shape
        use_dense = choosing.is_dense(item) if self.sparse is None else not self.sparse
        bias, key = self._floats("bias", item.bias), self._value(item.output)
        ends = f"{tables.number(item.low)}, {tables.number(item.high)}"
        if use_dense:
            weights, scratch = self._weights(item, item.weight, None)
            given = f"{{{self._key(scratch)}}}" if scratch else weights
            call = f"NAME_linear({{{source}}}, {inputs}, {given}, {bias}, {outputs}, {ends}, {{{key}}});"
        else:
            listed = sparse_linear(item)
            weights, scratch = self._weights(item, listed.weights, listed)
            given = f"{{{self._key(scratch)}}}" if scratch else weights
            number = len(self.tables)
            names = f"NAME_offsets{number}", f"NAME_starts{number}"
            self._table(names[0], tables.integers("int32_t", names[0], listed.offsets))
            self._table(names[1], tables.integers("uint32_t", names[1], listed.starts))
            call = (
                f"NAME_sparse_linear({{{source}}}, {names[0]}, {given}, {names[1]}, {bias}, {outputs}, "
                f"{ends}, {{{key}}});"
            )
        reads = (item.inputs[0], *([scratch] if scratch else []))
        self._step(call, reads, (item.output,), item.output)
        self._note(item.label, item.weight, 1, use_dense)

    def _note(self, name: str, weight: Floats, positions: int, use_dense: bool) -> None:
        """Note what the layer costs whose step was added last."""
        count = int(np.count_nonzero(weight))
        macs = weight.size * positions
        step = len(self.steps) - 1
        self.layers.append(LayerCost(name, step, weight.size, count, macs, count * positions, use_dense))

    def _max_pool(self, item: MaxPool) -> None:
        source = self._read(item.inputs[0])
        places = [self.geometry.planes[name] for name in (item.inputs[0], item.output)]
        below, above = (self._planes(place) for place in places)
        key = self._value(item.output)
        numbers = ", ".join(map(str, (*item.window, *item.stride, *item.pads[:2])))
        self._step(
            f"NAME_max_pool(&{below}, {{{source}}}, {numbers}, &{above}, {{{key}}});",
            item.inputs,
            (item.output,),
            item.output,
        )

    def _mean(self, item: Mean) -> None:
        source, below = self._read(item.inputs[0]), self._planes(self.geometry.planes[item.inputs[0]])
        key, step, start, spread = self._value(item.output), 1, 0, ""
        if self._is_spatial(item.output):
            above = self.geometry.planes[item.output]
            step, start = above.channel, above.origin
            spread = f" NAME_spread(&{self._planes(above)}, {{{key}}});"
        call = f"NAME_mean(&{below}, {{{source}}}, {step}, {{{key}}} + {start});{spread}"
        self._step(call, item.inputs, (item.output,), item.output)

    def _flatten(self, item: Flatten) -> None:
        source, below = self._read(item.inputs[0]), self._planes(self.geometry.planes[item.inputs[0]])
        key = self._value(item.output)
        call = f"NAME_flatten(&{below}, {{{source}}}, {{{key}}});"
        self._step(call, item.inputs, (item.output,), item.output)

    def _concatenation(self, item: Concatenation) -> None:
        first, key = 0, self._value(item.output)
        above = self._planes(self.geometry.planes[item.output]) if self._is_spatial(item.output) else ""
        for name in item.inputs:
            source, channels = self._read(name), self.network.shapes[name][0]
            if above:
                below = self._planes(self.geometry.planes[name])
                call = f"NAME_join(&{below}, {{{source}}}, {first}, &{above}, {{{key}}});"
                if first + channels == self.network.shapes[item.output][0]:
                    call += f" NAME_spread(&{above}, {{{key}}});"
            else:
                call = f"memcpy({{{key}}} + {first}, {{{source}}}, {channels} * sizeof(float));"
            self._step(call, (name,), (item.output,), item.output)
            first += channels

    def _features(self, item: Affine | Add | Clamp) -> None:
        source = self._read(item.inputs[0])
        other = f"{{{self._read(item.inputs[1])}}}" if isinstance(item, Add) else "NULL"
        factors, low, high = "NULL, NULL", -UNBOUNDED, UNBOUNDED
        if isinstance(item, Affine):
            factors = f"{self._floats('scale', item.scale)}, {self._floats('shift', item.shift)}"
        if isinstance(item, Clamp):
            low, high = item.low, item.high
        key, count = self._value(item.output), self.network.shapes[item.output][0]
        self._step(
            f"NAME_features({{{source}}}, {factors}, {other}, {count}, {tables.number(low)}, "
            f"{tables.number(high)}, {{{key}}});",
            item.inputs,
            (item.output,),
            item.output,
        )
