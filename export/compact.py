"""Store the sparse weights of an ONNX model as codes that the model itself decodes when it is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, numpy_helper

from robustcompress.export import rice
from robustcompress.export.decoder import EXACT, Decoder, Floats
from robustcompress.export.graph_writer import GraphWriter, ShortNames, names_in
from robustcompress.export.zeros import is_nonzero

Group: TypeAlias = Literal["layer", "net"]

# What nodes and names add to a file, measured on files: a decoder of its own, and one more weight in it.
_DECODER_BYTES = 550
_WEIGHT_BYTES = 50
_PARAMETERS = 25  # a gap is below 2**24


@dataclass(frozen=True, eq=False)
class _Weight:
    """A float32 initializer that is smaller as a code.

    Attributes:
        name: Of the initializer.
        array: Its values.
        value_bytes: Of the values that are not zero.
        position_bytes: Of the positions: as a bitmask, then for each Rice parameter from 1.
    """

    name: str
    array: npt.NDArray[np.float32]
    value_bytes: int
    position_bytes: npt.NDArray[np.int64]


class _Group:
    """Weights that share a decoder.

    Attributes:
        weights: In the order in which they are coded.
        gain: Bytes that this saves over dense weights; may be negative.
    """

    def __init__(self, weights: list[_Weight]) -> None:
        self.weights = weights
        positions = np.sum([weight.position_bytes for weight in weights], axis=0).min()
        values = sum(weight.value_bytes + _WEIGHT_BYTES for weight in weights)
        dense = sum(weight.array.nbytes for weight in weights)
        self.gain = dense - values - int(positions) - _DECODER_BYTES


def compact(model: ModelProto, *, group: Group, longest: int = EXACT) -> ModelProto:
    """Return a copy of ``model`` whose sparse float32 initializers are decoded by nodes.

    Each keeps its name, now that of a node's output, and its values bit for bit, but +0.0 for -0.0. An
    initializer stays dense where that is smaller. Equal input gives equal output.

    Args:
        model: With dense initializers. It is not changed.
        group: ``layer`` gives every weight a decoder of its own, which needs the least memory when the
            file is loaded; ``net`` has as few decoders as pays, which is smallest.
        longest: Most values that one piece of a decoder holds; for tests.

    Returns:
        The model; where there is nothing to gain, an equal one.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept_dense = {value.name for value in (*graph.input, *graph.output)}
    weights = [
        weight
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept_dense
        if (weight := _weighed(tensor)) is not None
    ]
    groups = [_Group([weight]) for weight in weights] if group == "layer" else _merged(weights)
    groups = [members for members in groups if members.gain > 0]
    coded = {weight.name for members in groups for weight in members.weights}
    if not coded:
        return copy
    writer = GraphWriter(ShortNames(names_in(graph)))
    decoder = Decoder(writer, longest=longest)
    for members in groups:
        for part in _parts(members.weights, longest):
            _write(part, writer, decoder)
    dense = [tensor for tensor in graph.initializer if tensor.name not in coded]
    nodes = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*dense, *writer.constants])
    graph.node.extend([*writer.nodes, *nodes])
    return copy


def _weighed(tensor: TensorProto) -> _Weight | None:
    """Return what ``tensor`` would need as a code; ``None`` if it could gain nothing."""
    array: Floats = numpy_helper.to_array(tensor)
    positions = np.flatnonzero(is_nonzero(array.reshape(-1)))
    gaps = rice.gaps_of(positions)
    sizes = [
        (array.size + 7) // 8,
        *(rice.coded_bytes(gaps, parameter) for parameter in range(1, _PARAMETERS)),
    ]
    weight = _Weight(tensor.name, array, 4 * len(positions), np.array(sizes, dtype=np.int64))
    return weight if _Group([weight]).gain + _DECODER_BYTES > 0 else None


def _merged(weights: list[_Weight]) -> list[_Group]:
    """Put weights of like density together as long as that saves bytes; a group has one parameter."""
    by_parameter: dict[int, list[_Weight]] = {}
    for weight in weights:
        by_parameter.setdefault(int(weight.position_bytes.argmin()), []).append(weight)
    groups = [_Group(members) for _, members in sorted(by_parameter.items())]
    while len(groups) > 1:
        joined = [_Group(a.weights + b.weights) for a, b in pairwise(groups)]
        saved = [both.gain - a.gain - b.gain for both, (a, b) in zip(joined, pairwise(groups), strict=True)]
        best = int(np.argmax(saved))
        if saved[best] <= 0:
            break
        groups[best : best + 2] = [joined[best]]
    return groups


def _parts(weights: list[_Weight], longest: int) -> Iterator[list[_Weight]]:
    """Cut a group where it outgrows ``longest`` values; one weight may be longer."""
    part: list[_Weight] = []
    for weight in weights:
        if part and sum(other.array.size for other in part) + weight.array.size > longest:
            yield part
            part = []
        part.append(weight)
    yield part


def _write(weights: list[_Weight], writer: GraphWriter, decoder: Decoder) -> None:
    """Write one decoder and cut what it makes into ``weights``."""
    flat = decoder.flat(np.concatenate([weight.array.reshape(-1) for weight in weights]))
    pieces = writer.split(flat, [weight.array.size for weight in weights])
    for piece, weight in zip(pieces, weights, strict=True):
        shape = writer.constant(np.array(weight.array.shape, dtype=np.int64))
        writer.node("Reshape", piece, shape, output=weight.name)
