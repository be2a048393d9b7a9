"""Store a quantised ONNX model small: sparse whole numbers as codes, and nothing that follows from others."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from robustcompress.export.compact import Group, compact
from robustcompress.export.graph_writer import GraphWriter, ShortNames, names_in
from robustcompress.export.values import Coded

Array: TypeAlias = npt.NDArray[Any]

_SCALE, _ZERO_POINT = 1, 2
_NODE_BYTES = 60
"""What one more node adds to a file, its output's name included."""


def compact_quantised(model: ModelProto, *, group: Group) -> ModelProto:
    """Return a copy of a quantised ``model`` whose constants are made by nodes when a file is loaded.

    Those are int8 weights with enough zeros, zero points that are all zero, and scales of biases, which are
    the products of their input's and their weight's. What is made has the same bits, so that a runtime which
    folds constants computes what it computes of ``model``. Equal input gives equal output.

    Args:
        model: With DequantizeLinear nodes that read initializers. It is not changed.
        group: As for :func:`robustcompress.export.compact.compact`.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    _derive(copy)
    return _decode(copy, group)


def _derive(model: ModelProto) -> None:
    """Have zero points and biases' scales made by nodes where that is smaller, in place."""
    graph = model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    writer = GraphWriter(ShortNames(names_in(graph)))
    zeros: dict[tuple[str, int], str] = {}
    for node in _stored(graph.node, arrays):
        array = arrays.get(node.input[_ZERO_POINT]) if len(node.input) > _ZERO_POINT else None
        if array is None or array.ndim != 1 or array.nbytes <= _NODE_BYTES or array.any():
            continue
        key = (array.dtype.str, len(array))
        if key not in zeros:
            zeros[key] = _zeros(writer, array)
        node.input[_ZERO_POINT] = zeros[key]
    for node, factors in _biases(graph.node, arrays):
        scale, product = arrays[node.input[_SCALE]], arrays[factors[0]] * arrays[factors[1]]
        if scale.nbytes > _NODE_BYTES and _same(scale, product):
            node.input[_SCALE] = writer.node("Mul", *factors)
    nodes = list(graph.node)
    read = {name for node in (*nodes, *writer.nodes) for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*constants, *writer.constants])
    graph.node.extend([*writer.nodes, *nodes])


def _decode(model: ModelProto, group: Group) -> ModelProto:
    """Return ``model`` with sparse int8 weights as codes.

    Each becomes a float32 weight, which can be a code, and a Cast of it; that of a weight which stays dense
    is taken back.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    names = ShortNames(names_in(graph))
    coded: dict[str, Coded] = {}
    casts: list[NodeProto] = []
    floats: list[TensorProto] = []
    for name, tensor in weights.items():
        wide = names.fresh()
        coded[wide] = Coded("int8", numpy_helper.to_array(tensor), None)
        floats.append(numpy_helper.from_array(coded[wide].values, wide))
        casts.append(helper.make_node("Cast", [wide], [name], to=TensorProto.INT8))
    changed = ModelProto()
    changed.CopyFrom(model)
    others = [tensor for tensor in graph.initializer if tensor.name not in weights]
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.initializer.extend([*others, *floats])
    changed.graph.node.extend([*casts, *graph.node])
    found = compact(changed, group=group, coded=coded)
    dense = {
        node.output[0]: node.input[0]
        for node in found.graph.node
        if node.op_type == "Cast" and node.output[0] in coded
    }
    back = {cast.output[0]: dense[cast.input[0]] for cast in casts if cast.input[0] in dense}
    gone = {*dense, *back}
    nodes = [node for node in found.graph.node if node.output[0] not in gone]
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in found.graph.initializer if tensor.name in read]
    del found.graph.initializer[:], found.graph.node[:]
    found.graph.initializer.extend([*constants, *(weights[name] for name in back)])
    found.graph.node.extend(nodes)
    return found


def _stored(nodes: Iterable[NodeProto], arrays: Mapping[str, Array]) -> Iterator[NodeProto]:
    """Yield the nodes that dequantise a constant."""
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            yield node


def _biases(
    nodes: Iterable[NodeProto], arrays: Mapping[str, Array]
) -> Iterator[tuple[NodeProto, tuple[str, str]]]:
    """Yield each node that dequantises a layer's bias, with the scales of the layer's input and weight."""
    listed = list(nodes)
    made_by = {node.output[0]: node for node in listed if node.op_type == "DequantizeLinear"}
    for layer in listed:
        if layer.op_type not in ("Conv", "Gemm") or len(layer.input) < 3:
            continue
        moving, weight, bias = (made_by.get(name) for name in layer.input[:3])
        if moving is not None and weight is not None and bias is not None:
            factors = (moving.input[_SCALE], weight.input[_SCALE])
            if all(name in arrays for name in (*factors, bias.input[_SCALE])):
                yield bias, factors


def _zeros(writer: GraphWriter, like: Array) -> str:
    """Return the name of zeros of the shape and type of ``like``."""
    made = writer.node("ConstantOfShape", writer.constant(np.array(like.shape, dtype=np.int64)))
    value = numpy_helper.from_array(np.zeros(1, dtype=like.dtype))
    writer.nodes[-1].attribute.append(helper.make_attribute("value", value))
    return made


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()
