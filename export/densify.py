"""Turn a compact ONNX model into a dense one: for tools that cannot fold constants, and to check weights."""

from collections import Counter
from typing import cast

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from robustcompress.errors import ExportError
from robustcompress.export.expansion import LARGEST_DECODED, Array, made_bytes

_MADE_BY_DECODERS = """
    Add Cast Concat ConstantOfShape CumSum Div Gather MatMul
    Mod Mul Range Reshape ScatterElements Slice Split Sub
"""
_OPERATORS = frozenset(_MADE_BY_DECODERS.split())


def dense_model(model: ModelProto, *, most: int = LARGEST_DECODED) -> ModelProto:
    """Return a copy of ``model`` with every value that its decoders make as a dense initializer.

    Nodes that depend on constants alone and have an operator that decoders of compact weights use are
    replaced by what ONNX's reference implementation computes for them; nothing else changes.

    Args:
        model: Compact or not. It is not changed.
        most: Bytes that decoded values may take at once.

    Raises:
        ExportError: If a decoder is damaged, or makes more than that.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    known: dict[str, Array] = {tensor.name: _stored(tensor) for tensor in graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    waiting = Counter(name for node in graph.node for name in node.input)
    waiting.update(value.name for value in graph.output)
    made: set[str] = set()
    held = 0
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.op_type not in _OPERATORS or not all(name in known for name in node.input):
            kept.append(node)
            continue
        results = _computed(node, [known[name] for name in node.input], opsets, most - held)
        known.update(zip(node.output, results, strict=True))
        made.update(node.output)
        held += sum(result.nbytes for result in results)
        waiting.subtract(node.input)
        for name in {name for name in node.input if not waiting[name] and name in made}:
            held -= known.pop(name).nbytes  # nobody reads it any more
            made.remove(name)
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


def _computed(node: NodeProto, inputs: list[Array], opsets: dict[str, int], room: int) -> list[Array]:
    try:
        needed = made_bytes(node, inputs, opsets)
        if needed > room:
            raise ValueError(f"it makes {needed:,} bytes, {room:,} are left")
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
    made = [np.asarray(result) for result in cast("list[object]", results)]
    if len(made) != len(node.output):
        raise ExportError(
            f"the decoder of {node.output[0]!r} is damaged: {node.op_type} makes {len(made)} values, not "
            f"{len(node.output)}. Export it again."
        )
    return made
