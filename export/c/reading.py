"""Read an ONNX graph as the operations that the C file is made of."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from robustcompress.errors import ExportError
from robustcompress.export.c.fusing import fuse
from robustcompress.export.c.network import Network, Operation, Shape
from robustcompress.export.c.operators import RULES, Call, UnsupportedError
from robustcompress.export.densify import dense_model

Array: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = Array | str
"""A constant, or the name of what depends on the images."""

_DOMAINS = ("", "ai.onnx")


def read(model: ModelProto, *, image_shape: Sequence[int] | None = None) -> Network:
    """Return what an ONNX model computes for one image, operations fused where that is exact.

    Compact weights are decoded, and whatever depends on constants (or on shapes) alone is computed once by
    ONNX's reference implementation. Batch normalisation and other scaling is folded into the layer before
    it; sums and clamps become part of the layer that ends in them.

    Args:
        model: One float32 input ``[batch, ...]``, one output ``[batch, classes]``. It is not changed.
        image_shape: Of one image, where the model leaves sizes open.

    Raises:
        ExportError: If the graph is damaged or holds an operator, or a use of one, that C files do not have;
            the operator and its node are named.
    """
    model = dense_model(model)
    try:
        reader = _Reader(model, image_shape)
        return fuse(reader.read())
    except UnsupportedError as error:
        raise ExportError(
            f"this graph cannot become a C file: {error}. Operators that can: {', '.join(sorted(RULES))}; "
            "anything may be done to constants."
        ) from error


class _Reader:
    """One pass over a graph."""

    def __init__(self, model: ModelProto, image_shape: Sequence[int] | None) -> None:
        self._graph = model.graph
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        for node in self._graph.node:
            if node.domain not in _DOMAINS:
                raise UnsupportedError(f"node {_name(node)} is of domain {node.domain!r}")
        if self._graph.sparse_initializer:
            raise UnsupportedError("it stores sparse initializers")
        self._values: dict[str, Value] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self._graph.initializer
        }
        self._shapes: dict[str, Shape] = {}
        self._operations: list[Operation] = []
        self._input = self._begin(image_shape)

    def _begin(self, image_shape: Sequence[int] | None) -> str:
        inputs = [entry for entry in self._graph.input if entry.name not in self._values]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise UnsupportedError(
                f"it has {len(inputs)} inputs and {len(self._graph.output)} outputs, not one of each"
            )
        kind = inputs[0].type.tensor_type
        if kind.elem_type != TensorProto.FLOAT:
            raise UnsupportedError(f"its input is {TensorProto.DataType.Name(kind.elem_type)}, not FLOAT")
        stored = [entry.dim_value for entry in kind.shape.dim][1:]  # 0 where the size is open
        given = tuple(int(size) for size in (image_shape or stored))
        agrees = len(given) == len(stored) and all(
            size in (0, got) for size, got in zip(stored, given, strict=True)
        )
        if not agrees or len(given) not in (1, 3) or min(given) < 1:
            wanted = ", ".join(str(size or "any") for size in stored)
            raise UnsupportedError(
                f"it takes images [{wanted}]; asked for {list(given)}. Say open sizes, and "
                "an image is [channels, height, width] or [features]"
            )
        name: str = inputs[0].name
        self._values[name] = name
        self._shapes[name] = given
        return name

    def read(self) -> Network:
        for node in self._graph.node:
            try:
                self._read_node(node)
            except UnsupportedError as error:
                raise UnsupportedError(f"node {_name(node)}: {error}") from error
        logits = self._values.get(self._graph.output[0].name)
        if not isinstance(logits, str):
            raise UnsupportedError("its output does not depend on the images")
        if len(self._shapes[logits]) != 1:
            raise UnsupportedError(f"its output is {[1, *self._shapes[logits]]}, not [batch, classes]")
        return Network(
            operations=tuple(self._operations), input=self._input, output=logits, shapes=self._shapes
        )

    def _read_node(self, node: NodeProto) -> None:
        unknown = [name for name in node.input if name and name not in self._values]
        if unknown:
            raise UnsupportedError(f"nothing makes its input {unknown[0]!r}")
        inputs = tuple(self._values[name] if name else None for name in node.input)
        if node.op_type == "Shape" and isinstance(inputs[0], str):
            sizes = np.array([1, *self._shapes[inputs[0]]], dtype=np.int64)
            self._values[node.output[0]] = self._computed(node, {node.input[0]: np.empty(sizes)})[0]
            return
        if not any(isinstance(value, str) for value in inputs):
            feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
            self._values.update(zip(node.output, self._computed(node, feeds), strict=True))
            return
        rule = RULES.get(node.op_type)
        if rule is None:
            raise UnsupportedError("this operator is not understood")
        if len([name for name in node.output if name]) != 1:
            raise UnsupportedError(f"it has {len(node.output)} outputs, not one")
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        shapes = tuple(self._shapes[value] if isinstance(value, str) else None for value in inputs)
        opset = self._opsets.get("", self._opsets.get("ai.onnx", 0))
        call = Call(node.op_type, inputs, tuple(node.input), shapes, attributes, node.output[0], opset)
        try:
            made = rule(call)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UnsupportedError(f"its arguments are not understood ({error})") from error
        if isinstance(made, str):  # nothing to do: another name for the same value
            self._values[node.output[0]] = made
            return
        operation, shape = made
        self._operations.append(operation)
        self._values[node.output[0]] = node.output[0]
        self._shapes[node.output[0]] = shape

    def _computed(self, node: NodeProto, feeds: dict[str, Any]) -> list[Any]:
        """Return what a node of constants alone makes."""
        if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            raise UnsupportedError("it holds a graph of its own")
        try:
            results = ReferenceEvaluator(node, opsets=self._opsets).run(None, feeds)
        except Exception as error:  # the reference raises whatever NumPy does
            raise UnsupportedError(f"it cannot be computed: {error}") from error
        assert isinstance(results, list)
        return results


def _name(node: NodeProto) -> str:
    return f"{node.name or node.output[0]!r} ({node.op_type})"
