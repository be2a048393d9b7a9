"""Take from an ONNX model what a deployed file does not need, and give the rest stable names."""

from onnx import ModelProto, NodeProto, defs, numpy_helper

from robustcompress.export.graph_writer import ShortNames, inner_graphs, names_in, small_tensor
from robustcompress.export.zeros import with_positive_zeros

# What the specification puts along each axis where a window's attribute is missing; schemas do not say it.
_WINDOWS = ("Conv", "MaxPool", "AveragePool")
_WINDOW_DEFAULTS = {"strides": 1, "dilations": 1}


def tidy(model: ModelProto, *, prefix: str = "") -> ModelProto:
    """Return a copy of ``model`` without traces of the exporter, and +0.0 for -0.0 in its weights.

    Stack traces, metadata, node names and the shapes of inner values go; weights keep their names, less
    ``prefix`` where that collides with nothing; inner values get short ones. Inputs and outputs stay.

    Args:
        model: One input, one output. It is not changed.
        prefix: Of weights' names, such as ``network.``.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for part in (copy, graph, *graph.input, *graph.output, *graph.initializer, *graph.node):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    del graph.value_info[:]
    graph.name = "network"
    copy.producer_name, copy.producer_version = "robustcompress", ""
    opset = next(entry.version for entry in copy.opset_import if not entry.domain)
    for node in graph.node:
        node.ClearField("name")  # an empty text would be written, too
        _drop_defaults(node, opset)
    for tensor in graph.initializer:
        array = with_positive_zeros(numpy_helper.to_array(tensor))
        if array.dtype.kind in "fiu":
            tensor.CopyFrom(small_tensor(array, tensor.name))
    if not any(inner_graphs(node) for node in graph.node):  # inner graphs read outer names
        _rename(copy, prefix)
    return copy


def _drop_defaults(node: NodeProto, opset: int) -> None:
    """Remove attributes that say what the operator's definition says anyway."""
    if node.domain:
        return
    defined = defs.get_schema(node.op_type, opset).attributes
    windows = _WINDOW_DEFAULTS if node.op_type in _WINDOWS else {}
    needed = [
        attribute
        for attribute in node.attribute
        if (attribute.name not in defined or defined[attribute.name].default_value != attribute)
        and not (attribute.name in windows and set(attribute.ints) == {windows[attribute.name]})
    ]
    del node.attribute[:]
    node.attribute.extend(needed)


def _rename(model: ModelProto, prefix: str) -> None:
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    fixed.add("")  # an input that is left out
    weights = [tensor.name for tensor in graph.initializer]
    taken = names_in(graph) | fixed
    renamed: dict[str, str] = {}
    for name in weights:
        shorter = name.removeprefix(prefix)
        if name not in fixed and shorter and shorter not in taken:
            renamed[name] = shorter
            taken.add(shorter)
    names = ShortNames(taken)
    for node in graph.node:
        for name in node.output:
            if name not in fixed and name not in renamed:
                renamed[name] = names.fresh()
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
