"""Turn a compact ONNX model into a dense one: for tools that cannot fold constants, and to check weights."""

from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from robustcompress.errors import ExportError

Array: TypeAlias = npt.NDArray[Any]

_MADE_BY_DECODERS = """
    Add Cast Concat ConstantOfShape CumSum Div Gather MatMul
    Mod Mul Range Reshape ScatterElements Slice Split Sub
"""
_OPERATORS = frozenset(_MADE_BY_DECODERS.split())


def dense_model(model: ModelProto) -> ModelProto:
    """Return a copy of ``model`` with every value that its decoders make as a dense initializer.

    Nodes that depend on constants alone and have an operator that decoders of compact weights use are
    replaced by what ONNX's reference implementation computes for them; nothing else changes.

    Args:
        model: Compact or not. It is not changed.

    Raises:
        ExportError: If a decoder is damaged.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    known: dict[str, Array] = {tensor.name: _stored(tensor) for tensor in graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    made: set[str] = set()
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.op_type in _OPERATORS and all(name in known for name in node.input):
            results = _computed(node, [known[name] for name in node.input], opsets)
            known.update(zip(node.output, results, strict=True))
            made.update(node.output)
        else:
            kept.append(node)
    read = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    was_read = {name for node in graph.node for name in node.input}
    stored = [item for item in graph.initializer if item.name in read or item.name not in was_read]
    stored += [numpy_helper.from_array(known[name], name) for name in sorted(made & read)]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(stored)
    graph.node.extend(kept)
    return copy


def _stored(tensor: TensorProto) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # sizes that do not fit, data in another file
        raise ExportError(f"constant {tensor.name!r} is damaged: {error}. Export it again.") from error


def _computed(node: NodeProto, inputs: list[Array], opsets: dict[str, int]) -> list[Array]:
    try:
        if node.op_type == "ScatterElements" and not node.attribute and inputs[0].ndim == 1:
            data, where, updates = inputs  # the reference walks over single elements, in Python
            result = data.copy()
            result[where] = updates
            return [result]
        feeds = dict(zip(node.input, inputs, strict=True))
        results = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
    except Exception as error:  # the reference raises whatever NumPy does
        raise ExportError(
            f"the decoder of {node.output[0]!r} is damaged: {node.op_type}: {error}. Export it again."
        ) from error
    return [np.asarray(result) for result in cast("list[object]", results)]
