"""Refuse ONNX models whose parts contradict each other, before anything is made of them.

What is allowed here takes no more memory than the file itself; what its nodes would make of it is
:mod:`robustcompress.export.expansion`'s business.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    numpy_helper,
)

from robustcompress.errors import ExportError

LARGEST_FILE = 2**31
"""Bytes; protobuf reads no larger message."""

_Holder: TypeAlias = GraphProto | FunctionProto
_T = TensorProto
_BITS: dict[int, int] = {
    _T.FLOAT: 32, _T.DOUBLE: 64, _T.FLOAT16: 16, _T.BFLOAT16: 16, _T.BOOL: 8,
    _T.INT8: 8, _T.INT16: 16, _T.INT32: 32, _T.INT64: 64,
    _T.UINT8: 8, _T.UINT16: 16, _T.UINT32: 32, _T.UINT64: 64,
    _T.FLOAT8E4M3FN: 8, _T.FLOAT8E4M3FNUZ: 8, _T.FLOAT8E5M2: 8, _T.FLOAT8E5M2FNUZ: 8,
    _T.INT4: 4, _T.UINT4: 4, _T.FLOAT4E2M1: 4, _T.COMPLEX64: 64, _T.COMPLEX128: 128,
}  # fmt: skip
"""Bits of one element in raw data; text has none."""
_NUMBERS: dict[int, int] = {_T.COMPLEX64: 2, _T.COMPLEX128: 2}
"""How many numbers of a field that is not raw make one element; 1 where it is not said."""


def check_sound(model: ModelProto, *, name: str) -> None:
    """Check that a model is whole: sizes of constants, names that occur once, nothing in other files.

    Raises:
        ExportError: If it is not; says which part.
    """
    _refuse_twice((entry.key for entry in model.metadata_props), "metadata key", name)
    _refuse_twice((entry.domain for entry in model.opset_import), "operator set", name)
    for holder in _holders(model):
        _check_holder(holder, name)
    for entry in model.graph.input:
        for size in entry.type.tensor_type.shape.dim:
            if size.dim_value < 0:
                raise _refused(name, f"input {_short(entry.name)} has a size of {size.dim_value}")


def stored_bytes(tensor: TensorProto) -> int:
    """Return what a constant takes in memory, by its shape and type; text counts as nothing."""
    return -(-int(math.prod(tensor.dims)) * _BITS.get(tensor.data_type, 0) // 8)


def _check_holder(holder: _Holder, name: str) -> None:
    made = [output for node in holder.node for output in node.output if output]
    if isinstance(holder, GraphProto):
        stored = [tensor.name for tensor in holder.initializer]
        stored += [tensor.values.name for tensor in holder.sparse_initializer]
        _refuse_twice([*stored, *made], "value", name)
        _refuse_twice((entry.name for entry in holder.input), "input", name)
        for tensor in holder.initializer:
            _check_tensor(tensor, name)
        for sparse in holder.sparse_initializer:
            _check_sparse(sparse, name)
    else:
        _refuse_twice(made, "value", name)
    for node in holder.node:
        _check_attributes(node, name)


def _check_attributes(node: NodeProto, name: str) -> None:
    _refuse_twice((entry.name for entry in node.attribute), f"attribute of {node.op_type!r}:", name)
    for entry in node.attribute:
        for tensor in (*([entry.t] if entry.HasField("t") else []), *entry.tensors):
            _check_tensor(tensor, name)
        for sparse in (
            *([entry.sparse_tensor] if entry.HasField("sparse_tensor") else []),
            *entry.sparse_tensors,
        ):
            _check_sparse(sparse, name)


def _check_tensor(tensor: TensorProto, name: str) -> None:
    what = f"constant {_short(tensor.name)}"
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ExportError(
            f"{name}: {what} lies in another file, and none but the model itself is ever opened. Save the "
            "model as one file."
        )
    if any(size < 0 for size in tensor.dims):
        raise _refused(name, f"{what} has the shape {_shape(tensor.dims)}")
    elements = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        expected, found = elements, len(tensor.string_data)
    elif tensor.data_type not in _BITS:
        raise _refused(name, f"{what} is of the unknown type {tensor.data_type}")
    elif tensor.raw_data:
        expected, found = stored_bytes(tensor), len(tensor.raw_data)
    else:
        packed = 8 // _BITS[tensor.data_type] if _BITS[tensor.data_type] < 8 else 1
        expected = -(-elements * _NUMBERS.get(tensor.data_type, 1) // packed)
        found = sum(map(len, _fields(tensor)))
    if expected != found:
        raise _refused(
            name, f"{what} of shape {_shape(tensor.dims)} needs {expected} entries and holds {found}"
        )


def _fields(tensor: TensorProto) -> Iterator[Sequence[float]]:
    yield from (
        tensor.float_data,
        tensor.double_data,
        tensor.int32_data,
        tensor.int64_data,
        tensor.uint64_data,
    )


def _check_sparse(sparse: SparseTensorProto, name: str) -> None:
    _check_tensor(sparse.values, name)
    _check_tensor(sparse.indices, name)
    what = f"sparse constant {_short(sparse.values.name)}"
    dense = math.prod(sparse.dims) * _BITS.get(sparse.values.data_type, 0) // 8
    if any(size < 0 for size in sparse.dims) or dense > LARGEST_FILE:
        raise _refused(name, f"{what} of shape {_shape(sparse.dims)} would take {dense} bytes once dense")
    if list(sparse.indices.dims[:1]) != list(sparse.values.dims[:1]):
        raise _refused(name, f"{what} has other numbers of places and values")
    if not _within(sparse):
        raise _refused(name, f"{what} names places outside of its shape {_shape(sparse.dims)}")


def _within(sparse: SparseTensorProto) -> bool:
    """Return whether places, flat ``[count]`` or by axis ``[count, rank]``, lie in the shape."""
    if sparse.indices.data_type != TensorProto.INT64:
        return False
    places = numpy_helper.to_array(sparse.indices)
    limits: list[int] = [math.prod(sparse.dims)] if places.ndim == 1 else list(sparse.dims)
    if places.ndim > 2 or places.reshape(len(places), -1).shape[1] != len(limits):
        return len(places) == 0
    return bool(((places.reshape(len(places), -1) >= 0) & (places.reshape(len(places), -1) < limits)).all())


def _holders(model: ModelProto) -> Iterator[_Holder]:
    """Yield the model's graph, its functions, and all graphs inside of their nodes."""
    waiting: list[_Holder] = [model.graph, *model.functions]
    while waiting:
        holder = waiting.pop()
        yield holder
        for node in holder.node:
            for entry in node.attribute:
                waiting.extend([entry.g] if entry.HasField("g") else [])
                waiting.extend(entry.graphs)


def _refuse_twice(names: Iterable[str], what: str, name: str) -> None:
    seen: set[str] = set()
    for item in names:
        if item in seen:
            raise _refused(name, f"the {what} {_short(item)} occurs twice")
        seen.add(item)


def _refused(name: str, fault: str) -> ExportError:
    return ExportError(f"{name}: the model is damaged: {fault}. Export it again.")


def _shape(sizes: Sequence[int]) -> str:
    return f"[{', '.join(str(size) for size in sizes[:8])}{', ...' if len(sizes) > 8 else ''}]"


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
