"""How much memory a model's values take: a small file may decode to any number of gigabytes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)
from onnx.reference import ReferenceEvaluator

from robustcompress.errors import ExportError, first_line
from robustcompress.export.soundness import stored_bytes

LARGEST_DECODED = 8 * 2**30
"""Bytes that the values of one model may take at once, for one image, before it is refused."""

Array: TypeAlias = npt.NDArray[Any]

_SMALL = 1024
"""Elements of a constant whose values may say a shape."""
_FOLDED = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "Div",
        "Gather",
        "Mul",
        "Neg",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    }
)
"""Operators that compute shapes and make little of little."""
_WIDE = 8
_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.INT32: 4, TensorProto.UINT32: 4, TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2, TensorProto.INT16: 2, TensorProto.UINT16: 2, TensorProto.BOOL: 1,
    TensorProto.INT8: 1, TensorProto.UINT8: 1,
}  # fmt: skip
"""Bytes of an element in memory; 8 where it is not said."""


def check_expansion(model: ModelProto, *, name: str, most: int = LARGEST_DECODED) -> None:
    """Check, by the shapes that follow from a file alone, that its values fit into memory.

    Sizes that the file leaves open, such as the batch, count as 1, and a value whose shape ONNX's shape
    inference cannot tell counts as nothing: this stops files that burst as far as that can be seen without
    running them.

    Args:
        model: Sound (:func:`~robustcompress.export.soundness.check_sound`).
        name: Of the file, for the error.
        most: Bytes that values may take at once.

    Raises:
        ExportError: If they take more, or shapes contradict each other.
    """
    graph = model.graph
    try:
        sizes = _sizes(graph, model)
    except ValueError as error:
        raise ExportError(f"{name}: the model is damaged: {error} Export it again.") from error
    last = {text: place for place, node in enumerate(graph.node) for text in node.input}
    kept = {entry.name for entry in graph.output}
    alive = sum(stored_bytes(tensor) for tensor in graph.initializer) + sum(
        math.prod(sparse.dims) * _BYTES.get(sparse.values.data_type, _WIDE)
        for sparse in graph.sparse_initializer
    )
    peak = alive
    for place, node in enumerate(graph.node):
        alive += sum(sizes.get(text, 0) for text in node.output)
        peak = max(peak, alive)
        gone = {text for text in (*node.input, *node.output) if last.get(text, place) == place}
        alive -= sum(sizes.get(text, 0) for text in gone - kept)
    if peak > most:
        raise ExportError(
            f"{name}: its values would take {peak:,} bytes at once, of which the file holds "
            f"{model.ByteSize():,}; at most {most:,} are decoded. It is damaged, or made to fill memory."
        )


def made_bytes(node: NodeProto, inputs: Sequence[Array], opsets: Mapping[str, int]) -> int:
    """Return how many bytes a node of constants makes, before it is computed.

    Args:
        node: Reads nothing but ``inputs``.
        inputs: Its inputs that are not left out, in order.
        opsets: Version by operator set.

    Raises:
        ValueError: If no shapes can be inferred for the node.
    """
    graph = GraphProto(node=[node])
    for text, array in dict(zip(filter(None, node.input), inputs, strict=True)).items():
        if array.size <= _SMALL:
            graph.initializer.append(numpy_helper.from_array(array, text))
        else:
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(text, dtype, array.shape))
    model = ModelProto(ir_version=10)
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    made = sum(_sizes(graph, model).values())
    # What inference does not look at, or where it runs over.
    if node.op_type == "OneHot" and len(inputs) > 1:
        made = max(made, _WIDE * inputs[0].size * abs(int(inputs[1].reshape(-1)[0])))
    if node.op_type == "Range" and len(inputs) == 3:
        start, limit, step = (float(array.reshape(-1)[0]) for array in inputs)
        if not math.isfinite((limit - start) / (step or math.nan)):
            raise ValueError(f"a range from {start:g} to {limit:g} by {step:g} never ends.")
        made = max(made, math.ceil((limit - start) / step) * inputs[0].itemsize)
    return made


def _sizes(graph: GraphProto, model: ModelProto) -> dict[str, int]:
    """Return the bytes of each value that nodes of ``graph`` make, of those whose shape follows from it.

    Raises:
        ValueError: If shapes contradict each other.
    """
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    imported = {entry.domain for entry in model.opset_import}
    strange = sorted({node.domain for node in graph.node} - {*imported, "", "ai.onnx"})
    light.opset_import.extend(helper.make_opsetid(domain, 1) for domain in strange)  # others refuse those
    light.functions.extend(model.functions)
    light.graph.output.extend(graph.output)
    stored = {tensor.name for tensor in graph.initializer}
    light.graph.input.extend(entry for entry in graph.input if entry.name not in stored)
    for tensor in graph.initializer:  # the values of large ones say nothing about shapes: they stay behind
        if math.prod(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for sparse in graph.sparse_initializer:
        entry = helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, sparse.dims)
        light.graph.input.append(entry)
    _fold_shapes(graph, light)
    try:
        # Without data_prop, which makes an object for each element of every list of numbers.
        found = shape_inference.infer_shapes(light).graph
    except Exception as error:  # the C++ library's, without types
        raise ValueError(f"its shapes contradict each other: {first_line(error)}") from error
    made = {text for node in graph.node for text in node.output}
    entries: Iterable[ValueInfoProto] = (*found.value_info, *found.output)
    return {entry.name: _bytes(entry) for entry in entries if entry.name in made}


def _fold_shapes(graph: GraphProto, light: ModelProto) -> None:
    """Put into ``light`` the nodes of ``graph``; those that compute few numbers from few, as constants."""
    opsets = {entry.domain: entry.version for entry in light.opset_import}
    known: dict[str, Array] = {}
    for tensor in light.graph.initializer:
        with suppress(Exception):  # a damaged one is not known; whoever needs it says so
            known[tensor.name] = numpy_helper.to_array(tensor)
    for node in graph.node:
        inputs = [text for text in node.input if text]
        result: object = None
        if node.op_type in _FOLDED and len(node.output) == 1 and all(text in known for text in inputs):
            with suppress(Exception):  # the reference raises whatever NumPy does; inference looks at it then
                feeds = {text: known[text] for text in inputs}
                (result,) = cast("list[object]", ReferenceEvaluator(node, opsets=opsets).run(None, feeds))
        if isinstance(result, np.ndarray | np.generic) and result.size <= _SMALL:
            known[node.output[0]] = np.asarray(result)
            light.graph.initializer.append(numpy_helper.from_array(known[node.output[0]], node.output[0]))
        else:
            light.graph.node.append(node)


def _bytes(entry: ValueInfoProto) -> int:
    """Return the bytes of a value, open sizes taken for 1; 0 if not even its rank is known.

    Raises:
        ValueError: If a size is negative.
    """
    tensor = entry.type.tensor_type
    if not tensor.HasField("shape"):
        return 0
    sizes = [size.dim_value for size in tensor.shape.dim if size.HasField("dim_value")]
    if any(size < 0 for size in sizes):
        raise ValueError(f"its shapes contradict each other: a size of {min(sizes)}.")
    return int(math.prod(sizes)) * _BYTES.get(tensor.elem_type, _WIDE)
