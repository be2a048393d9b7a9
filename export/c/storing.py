"""How the weights of a layer are stored: as they are, or in fewer bits that are decoded when it runs."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustcompress.errors import ExportError
from robustcompress.export.c import tables
from robustcompress.export.c.network import Convolution, Floats, Linear, Network, Operation
from robustcompress.export.c.weights import Sparse
from robustcompress.export.values import ValueType, code


@dataclass(frozen=True)
class Stored:
    """Weights in a C file.

    Attributes:
        name: Of their table.
        tables: C text.
        decoder: Call that decodes them to ``{out}``; ``None`` if they are used as they are.
    """

    name: str
    tables: tuple[str, ...]
    decoder: str | None


def round_layers(network: Network, values: ValueType) -> Network:
    """Return a network with the values that come back when weights of layers are stored in fewer bits.

    Raises:
        ExportError: If a weight is too large for float16 or not finite; names the layer.
    """
    if values == "float32":
        return network

    def rounded(item: Operation) -> Operation:
        if not isinstance(item, Linear) and not (isinstance(item, Convolution) and item.is_layer):
            return item
        try:
            found = code(item.weight, values).values
        except ExportError as error:
            raise ExportError(f"{item.output}: {error}") from error
        return replace(item, weight=found.reshape(item.weight.shape))

    return replace(network, operations=tuple(rounded(item) for item in network.operations))


def stored_weights(
    layer: Convolution | Linear, weights: Floats, listed: Sparse | None, values: ValueType, name: str
) -> Stored:
    """Return the tables that store weights.

    Args:
        layer: Whose weights are as :func:`round_layers` makes them.
        weights: In the order in which they are read: of the taps of ``listed``; of a dense convolution in
            fours of outputs; of a dense linear layer row after row.
        listed: The taps, if only they are stored.
        values: How.
        name: Of the table.
    """
    if values == "float32":
        return Stored(name, (tables.floats(name, weights),), None)
    if values == "float16":
        table = tables.integers("uint16_t", name, tables.half_codes(weights))
        return Stored(name, (table,), f"NAME_from_half({name}, {weights.size}, {{out}});")
    scale = code(layer.weight, "int8").scale
    assert scale is not None
    scales, outputs = f"{name}_scales", len(scale)
    if listed is None and isinstance(layer, Convolution):
        fours = _in_fours(scale, layer.groups)
        codes = np.rint(weights / fours[:, None, :])
        decoder = f"NAME_from_int8_fours({name}, {scales}, {len(fours)}, {weights.shape[1]}, {{out}});"
        made = (tables.floats(scales, fours), tables.integers("int8_t", name, codes.astype(np.int8)))
        return Stored(name, made, decoder)
    rows: NDArray[np.integer[Any]]
    starts: NDArray[np.integer[Any]]
    if listed is None:
        rows = np.repeat(np.arange(outputs), layer.weight.shape[1])
        starts, blocks = np.arange(outputs + 1) * layer.weight.shape[1], 1
    else:
        rows, starts, blocks = listed.rows, listed.starts, listed.blocks
    whole = np.rint(weights.reshape(-1) / scale[rows]).astype(np.int8)
    tables_made = (
        tables.floats(scales, scale),
        tables.integers("uint32_t", f"{name}_rows", starts),
        tables.integers("int8_t", name, whole),
    )
    return Stored(
        name, tables_made, f"NAME_from_int8({name}, {name}_rows, {blocks}, {scales}, {outputs}, {{out}});"
    )


def _in_fours(scale: Floats, groups: int) -> Floats:
    """Return scales ``[fours, 4]`` as the outputs of a dense convolution lie; 1 where there is none."""
    each = len(scale) // groups
    padding = np.ones((groups, -each % 4), np.float32)
    return np.concatenate([scale.reshape(groups, each), padding], axis=1).reshape(-1, 4)
