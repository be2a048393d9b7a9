"""Add nodes and constants to an ONNX graph under short names that nothing else has."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SHARED_BYTES = 64
_SMALL_BYTES = 4096


class ShortNames:
    """Names that are short and not taken: ``0`` to ``z``, ``00``, and so on."""

    def __init__(self, taken: Iterable[str]) -> None:
        """Never give out a name in ``taken``."""
        self._taken = set(taken)
        self._count = 0

    def fresh(self) -> str:
        """Return the next name; it is taken from then on."""
        while True:
            name, rest = "", self._count
            while not name or rest >= 0:
                name = _DIGITS[rest % len(_DIGITS)] + name
                rest = rest // len(_DIGITS) - 1
            self._count += 1
            if name not in self._taken:
                self._taken.add(name)
                return name


class GraphWriter:
    """Collects nodes and constants.

    Attributes:
        nodes: In an order in which they can run.
        constants: Initializers that the nodes read.
    """

    def __init__(self, names: ShortNames) -> None:
        """Name every value by ``names``."""
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._names = names
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        """Return the name of a constant that holds ``array``; small equal arrays share one."""
        array = np.ascontiguousarray(array).reshape(array.shape)  # 0-d arrays stay 0-d
        key = (array.dtype.str, array.shape, array.tobytes() if array.nbytes <= _SHARED_BYTES else b"")
        if array.nbytes <= _SHARED_BYTES and key in self._shared:
            return self._shared[key]
        name = self._names.fresh()
        self.constants.append(small_tensor(array, name))
        if array.nbytes <= _SHARED_BYTES:
            self._shared[key] = name
        return name

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: int) -> str:
        """Add a node of one output and return the output's name."""
        name = output or self._names.fresh()
        node = helper.make_node(kind, inputs, [name])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def split(self, source: str, sizes: list[int], *, names: list[str] | None = None) -> list[str]:
        """Cut the value ``source`` along its first axis into parts of these ``sizes``.

        Returns:
            The parts' names: ``names``, or short ones. One part is ``source`` itself.
        """
        if len(sizes) == 1:
            return [source]
        names = names or [self._names.fresh() for _ in sizes]
        cuts = self.constant(np.array(sizes, dtype=np.int64))
        self.nodes.append(helper.make_node("Split", [source, cuts], names))
        return names


def small_tensor(array: npt.NDArray[np.generic], name: str) -> TensorProto:
    """Return ``array`` as a tensor in the smaller of two ways: raw, or, for integers, as varints."""
    raw = numpy_helper.from_array(array, name)
    if array.dtype not in (np.dtype(np.int32), np.dtype(np.int64)) or array.nbytes > _SMALL_BYTES:
        return raw
    varints = helper.make_tensor(name, raw.data_type, array.shape, array.reshape(-1).tolist())
    return varints if varints.ByteSize() < raw.ByteSize() else raw


def inner_graphs(node: NodeProto) -> list[GraphProto]:
    """Return the graphs that ``node`` holds, such as the branches of an If."""
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node]


def names_in(graph: GraphProto) -> set[str]:
    """Return every name of a value in ``graph`` and in the graphs that its nodes hold."""
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names |= {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names |= {tensor.name for tensor in graph.initializer}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    return names.union(*(names_in(inner) for node in graph.node for inner in inner_graphs(node)))
