"""Store the sparse weights of an ONNX model as codes that the model itself decodes when it is loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, numpy_helper

from robustcompress.export import rice
from robustcompress.export.decoder import EXACT, Codes, Decoder
from robustcompress.export.graph_writer import GraphWriter, ShortNames, names_in
from robustcompress.export.halves import write_halves
from robustcompress.export.values import BITS, SCALE_UNIT, Coded, ValueType, is_kept

Group: TypeAlias = Literal["layer", "net"]

# What nodes and names add to a file, measured on files: a decoder of its own, and one more weight in it.
_DECODER_BYTES = 550
_WEIGHT_BYTES = 50
_PARAMETERS = 25  # a gap is below 2**24


@dataclass(frozen=True, eq=False)
class _Weight:
    """An initializer that is smaller as a code.

    Attributes:
        name: Of the initializer.
        codes: Its values as they are stored: float32, float16 or whole numbers.
        kind: How they are stored.
        factors: That whole numbers are multiplied with, shaped so that they can be.
        halves: The same in float16 and in units, where that is exact.
        value_bytes: Of the values that are not zero.
        dense_bytes: Of all values.
        position_bytes: Of the positions: as a bitmask, then for each Rice parameter from 1.
    """

    name: str
    codes: Codes
    kind: ValueType
    factors: npt.NDArray[np.float32] | None
    halves: npt.NDArray[np.float16] | None
    value_bytes: int
    dense_bytes: int
    position_bytes: npt.NDArray[np.int64]


class _Group:
    """Weights of one kind that share a decoder.

    Attributes:
        weights: In the order in which they are coded.
        gain: Bytes that this saves over dense weights of the kind; may be negative.
    """

    def __init__(self, weights: list[_Weight]) -> None:
        self.weights = weights
        positions = np.sum([weight.position_bytes for weight in weights], axis=0).min()
        values = sum(weight.value_bytes + _WEIGHT_BYTES for weight in weights)
        dense = sum(weight.dense_bytes for weight in weights)
        self.gain = dense - values - int(positions) - _DECODER_BYTES


def compact(
    model: ModelProto,
    *,
    group: Group,
    coded: Mapping[str, Coded] = MappingProxyType({}),
    longest: int = EXACT,
) -> ModelProto:
    """Return a copy of ``model`` whose sparse initializers are decoded by nodes.

    Each keeps its name, now that of a node's output, and its values bit for bit, but +0.0 for -0.0. An
    initializer stays dense where that is smaller. Equal input gives equal output.

    Args:
        model: With dense float32 initializers. It is not changed.
        group: ``layer`` gives every weight a decoder of its own, which needs the least memory when the
            file is loaded; ``net`` has as few decoders as pays, which is smallest.
        coded: By initializer, its values in fewer bits; they must give back exactly what ``model`` holds.
        longest: Most values that one piece of a decoder holds; for tests.

    Returns:
        The model; where there is nothing to gain, an equal one.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept_dense = {value.name for value in (*graph.input, *graph.output)}
    weights = [
        _weighed(tensor, coded.get(tensor.name))
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept_dense
    ]
    gaining = [weight for weight in weights if _Group([weight]).gain + _DECODER_BYTES > 0]
    groups = [_Group([weight]) for weight in gaining] if group == "layer" else _merged(gaining)
    groups = [members for members in groups if members.gain > 0]
    sparse = {weight.name for members in groups for weight in members.weights}
    plain = [weight for weight in weights if weight.kind != "float32" and weight.name not in sparse]
    if not sparse and not plain:
        return copy
    writer = GraphWriter(ShortNames(names_in(graph)))
    decoder = Decoder(writer, longest=longest)
    scaled = (*(weight for members in groups for weight in members.weights), *plain)
    halves = {weight.name: weight.halves for weight in scaled if weight.halves is not None}
    factors = write_halves(halves, writer, unit=SCALE_UNIT)
    for members in groups:
        for part in _parts(members.weights, longest):
            _write(part, writer, decoder, factors)
    short = {
        weight.name: weight.codes for weight in plain if weight.kind == "float16" and weight.codes.ndim == 1
    }
    write_halves(short, writer, outputs=True)
    for weight in plain:
        if weight.name not in short:
            _finish(weight, decoder.dense(weight.codes, weight.kind), writer, factors)
    gone = sparse | {weight.name for weight in plain}
    dense = [tensor for tensor in graph.initializer if tensor.name not in gone]
    nodes = list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*dense, *writer.constants])
    graph.node.extend([*writer.nodes, *nodes])
    return copy


def matching(model: ModelProto, coded: Mapping[str, Coded]) -> dict[str, Coded]:
    """Return those of ``coded`` that give back an initializer of ``model`` bit for bit, by its name.

    An exporter may have transposed a matrix, or renamed it: it is found by its values. What it joined with
    others or changed stays as it is.
    """
    by_content: dict[bytes, Coded] = {}
    for item in coded.values():
        for turned in (item, item.transposed()) if item.codes.ndim == 2 else (item,):
            by_content.setdefault(_content(turned.values), turned)
    found: dict[str, Coded] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        own, held = coded.get(tensor.name), _content(numpy_helper.to_array(tensor))
        same = own if own is not None and _content(own.values) == held else by_content.get(held)
        if same is not None:
            found[tensor.name] = same
    return found


def _content(values: npt.NDArray[np.float32]) -> bytes:
    """Return shape and bits, +0.0 for -0.0."""
    return repr(values.shape).encode() + (values + np.float32(0)).tobytes()


def _weighed(tensor: TensorProto, coded: Coded | None) -> _Weight:
    """Return what ``tensor`` would need as a code."""
    codes: npt.NDArray[Any] = numpy_helper.to_array(tensor) if coded is None else coded.codes
    kind: ValueType = "float32" if coded is None else coded.kind
    factors, half = (None, None) if coded is None else (coded.factors, coded.half_scale)
    bits = BITS.get(kind, 8 * codes.itemsize)
    positions = np.flatnonzero(is_kept(codes.reshape(-1)))
    gaps = rice.gaps_of(positions)
    sizes = [
        (codes.size + 7) // 8,
        *(rice.coded_bytes(gaps, parameter) for parameter in range(1, _PARAMETERS)),
    ]
    return _Weight(
        tensor.name,
        codes,
        kind,
        factors,
        None if factors is None or half is None else half.reshape(factors.shape),
        (len(positions) * bits + 7) // 8,
        (codes.size * bits + 7) // 8,
        np.array(sizes, dtype=np.int64),
    )


def _merged(weights: list[_Weight]) -> list[_Group]:
    """Put weights of one kind and like density together as long as that saves bytes.

    A group has one parameter.
    """
    found: list[_Group] = []
    for kind in dict.fromkeys(weight.kind for weight in weights):
        found += _merged_alike([weight for weight in weights if weight.kind == kind])
    return found


def _merged_alike(weights: list[_Weight]) -> list[_Group]:
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
        if part and sum(other.codes.size for other in part) + weight.codes.size > longest:
            yield part
            part = []
        part.append(weight)
    yield part


def _write(weights: list[_Weight], writer: GraphWriter, decoder: Decoder, factors: Mapping[str, str]) -> None:
    """Write one decoder and cut what it makes into ``weights``; ``factors`` are values by weight."""
    codes = np.concatenate([weight.codes.reshape(-1) for weight in weights])
    flat = decoder.flat(codes, weights[0].kind)
    pieces = writer.split(flat, [weight.codes.size for weight in weights])
    for piece, weight in zip(pieces, weights, strict=True):
        shape = writer.constant(np.array(weight.codes.shape, dtype=np.int64))
        if weight.factors is None:
            writer.node("Reshape", piece, shape, output=weight.name)
        else:
            _finish(weight, writer.node("Reshape", piece, shape), writer, factors)


def _finish(weight: _Weight, source: str, writer: GraphWriter, factors: Mapping[str, str]) -> None:
    """Give ``source`` the weight's name, scaled where it holds whole numbers."""
    if weight.factors is None:
        # Whatever made the source is the last node: its output gets the name.
        assert writer.nodes[-1].output[0] == source
        writer.nodes[-1].output[0] = weight.name
        return
    factor = factors.get(weight.name) or writer.constant(weight.factors)
    writer.node("Mul", source, factor, output=weight.name)
