"""Look into an ONNX file without running it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx

from robustcompress.errors import ExportError
from robustcompress.export.soundness import LARGEST_FILE, check_sound
from robustcompress.storage.atomic import read_bytes

STYLE_KEY = "robustcompress.style"
"""Metadata key that says how weights lie in the file."""


@dataclass(frozen=True)
class Stored:
    """One constant of a file.

    Attributes:
        name: Of the weight; codes of compact weights have short names.
        dtype: ONNX's name for it, in small letters, such as ``float`` or ``uint8``.
        shape: Of the constant.
        size_bytes: That it takes in the file, its name included.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says of itself and where its bytes are.

    Attributes:
        name: Of the file.
        style: ``compact`` or ``dense`` as written by this library, ``unknown`` for files of others.
        opset: Version of the standard operators.
        ir_version: Of the file format.
        metadata: As stored.
        size_bytes: Of the whole file.
        constants: Every initializer, in the file's order.
    """

    name: str
    style: str
    opset: int
    ir_version: int
    metadata: Mapping[str, str]
    size_bytes: int
    constants: tuple[Stored, ...]

    @property
    def graph_bytes(self) -> int:
        """What the file needs beside constants: nodes and metadata."""
        return self.size_bytes - sum(constant.size_bytes for constant in self.constants)


def read_model(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> onnx.ModelProto:
    """Return the ONNX model in a file, or in its bytes; errors call it ``name``, if not its own.

    Nothing but these bytes is read: a model whose constants lie in other files is refused.

    Raises:
        StorageError: If the file cannot be read, or is larger than ONNX files can be.
        ExportError: If it is no ONNX model, or its parts contradict each other
            (:func:`~robustcompress.export.soundness.check_sound`).
    """
    name = name or name_of(source)
    data = source if isinstance(source, bytes) else read_bytes(Path(source), max_bytes=LARGEST_FILE)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's, which has no types
        raise ExportError(f"{name}: not an ONNX model: {error}. Export it again.") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ExportError(f"{name}: not an ONNX model: it holds no graph. Export it again.")
    check_sound(model, name=name)
    return model


def inspect_file(source: str | os.PathLike[str] | bytes) -> OnnxFile:
    """Return what an ONNX file says of itself.

    Raises:
        StorageError: If the file cannot be read.
        ExportError: If it is no ONNX model.
    """
    model = read_model(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return OnnxFile(
        name=name_of(source),
        style=metadata.get(STYLE_KEY, "unknown"),
        opset=opset,
        ir_version=model.ir_version,
        metadata=MappingProxyType(metadata),
        size_bytes=len(source) if isinstance(source, bytes) else Path(source).stat().st_size,
        constants=tuple(_stored(tensor) for tensor in model.graph.initializer),
    )


def _stored(tensor: onnx.TensorProto) -> Stored:
    shape = tuple(int(size) for size in tensor.dims)
    dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return Stored(tensor.name, dtype, shape, tensor.ByteSize())


def name_of(source: str | os.PathLike[str] | bytes) -> str:
    """Return what errors call a file."""
    return "(bytes)" if isinstance(source, bytes) else Path(source).name
