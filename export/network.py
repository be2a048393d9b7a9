"""Read an ONNX file back as a network: what ships, to differentiate and to look into."""

import os
from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator
from torch import fx, nn

from robustcompress.errors import ExportError
from robustcompress.export.densify import dense_model
from robustcompress.export.expansion import LARGEST_DECODED, check_expansion, made_bytes
from robustcompress.export.onnx_file import name_of, read_model
from robustcompress.export.operators import (
    OPERATORS,
    Array,
    Call,
    Target,
    UnsupportedError,
    Value,
    is_moving,
    translate,
)
from robustcompress.export.quantised import ROUNDING

_DOMAINS = ("", "ai.onnx")
_RULES = {**OPERATORS, **ROUNDING}


def read_network(source: str | os.PathLike[str] | bytes) -> fx.GraphModule:
    """Return the network that an ONNX file computes, made from the file's own graph.

    Compact weights are decoded and whatever depends on constants alone is computed once, by ONNX's reference
    implementation. The rest becomes plain functions of PyTorch, whose gradients reach the images, and which
    :mod:`robustcompress.robustness.bounds` can look into. Weights are buffers: they do not learn.

    The result computes what the file does up to rounding, where a runtime orders its sums in another way.
    Quantised files round as they say (:mod:`robustcompress.export.quantised`); what they keep in float16 is
    computed in float32.
    Nothing that the file names is imported or run.

    Args:
        source: The file, or its bytes.

    Returns:
        A module in eval mode, on the CPU: float32 images to logits.

    Raises:
        StorageError: If the file cannot be read.
        ExportError: If it is no ONNX model of one input and one output, is damaged, or uses an operator that
            is not understood, which is named.
    """
    stored = read_model(source)
    check_expansion(stored, name=name_of(source))
    model = dense_model(stored)
    try:
        return _Reader(model).read()
    except UnsupportedError as error:
        raise ExportError(
            f"this ONNX graph cannot be read as a network: {error}. Certify the network that it was exported "
            "from, or export it in plain operators."
        ) from error


class _Reader:
    """One pass over a file's graph."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        for node in model.graph.node:
            if node.domain not in _DOMAINS:
                raise UnsupportedError(f"node {_name(node)} is of domain {node.domain!r}")
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._ranks = _ranks(model)
        self._target = Target(fx.Graph(), nn.Module())
        self._values: dict[str, Value] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self._graph.initializer
        }
        if self._graph.sparse_initializer:
            raise UnsupportedError("it stores sparse initializers")

    def read(self) -> fx.GraphModule:
        inputs = [entry for entry in self._graph.input if entry.name not in self._values]
        if len(inputs) != 1 or len(self._graph.output) != 1:
            raise UnsupportedError(
                f"it has {len(inputs)} inputs and {len(self._graph.output)} outputs, not one of each"
            )
        self._values[inputs[0].name] = self._target.graph.placeholder("images")
        for node in self._graph.node:
            try:
                self._read_node(node)
            except UnsupportedError as error:
                raise UnsupportedError(f"node {_name(node)}: {error}") from error
        logits = self._values.get(self._graph.output[0].name)
        if not isinstance(logits, fx.Node):
            raise UnsupportedError("its output does not depend on the images")
        self._target.graph.output(logits)
        self._target.graph.eliminate_dead_code()
        self._target.graph.lint()
        return fx.GraphModule(self._target.root, self._target.graph).eval()

    def _read_node(self, node: NodeProto) -> None:
        unknown = [name for name in node.input if name and name not in self._values]
        if unknown:
            raise UnsupportedError(f"nothing makes its input {unknown[0]!r}")
        inputs = tuple(self._values[name] if name else None for name in node.input)
        if not any(is_moving(value) for value in inputs):
            self._values.update(self._computed(node))
            return
        if len([name for name in node.output if name]) != 1:
            raise UnsupportedError(f"it has {len(node.output)} outputs, not one")
        rank = self._ranks.get(node.input[0], 4)
        opset = self._opsets.get("", self._opsets.get("ai.onnx", 0))
        call = Call.of(node, inputs, rank=rank, opset=opset)
        self._values[node.output[0]] = translate(self._target, call, _RULES)

    def _computed(self, node: NodeProto) -> Mapping[str, Array]:
        """Return what a node of constants alone makes."""
        if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            raise UnsupportedError("it holds a graph of its own")
        feeds = {name: self._values[name] for name in node.input if name}
        try:
            needed = made_bytes(node, [np.asarray(feeds[name]) for name in node.input if name], self._opsets)
            if needed > LARGEST_DECODED:
                raise ValueError(f"it makes {needed:,} bytes, more than {LARGEST_DECODED:,}")
            results = ReferenceEvaluator(node, opsets=self._opsets).run(None, feeds)
        except Exception as error:  # the reference raises whatever NumPy does
            raise UnsupportedError(f"it cannot be computed: {error}") from error
        assert isinstance(results, list)
        return dict(zip(node.output, results, strict=True))


def _name(node: NodeProto) -> str:
    return f"{node.name or node.output[0]!r} ({node.op_type})"


def _ranks(model: ModelProto) -> dict[str, int]:
    """Return the number of dimensions of every value that has one."""
    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception as error:  # of the C++ library, without types
        raise UnsupportedError(f"its shapes contradict each other: {error}") from error
    found = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        if entry.type.tensor_type.HasField("shape"):
            found[entry.name] = len(entry.type.tensor_type.shape.dim)
    return found
