"""A compact ONNX file as one that any tool reads: weights plain, or sparse initializers."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import torch
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper

from robustcompress.errors import ExportError
from robustcompress.export.claims import CLAIMS_KEY
from robustcompress.export.densify import dense_model
from robustcompress.export.onnx_file import STYLE_KEY, read_model
from robustcompress.export.session import OnnxSession
from robustcompress.export.zeros import is_nonzero
from robustcompress.storage.atomic import write_bytes

DenseStyle: TypeAlias = Literal["dense", "sparse-initializer"]

_ENTRY_BYTES = 12  # a float32 value and its int64 place
_IMAGES = 4


@dataclass(frozen=True)
class Densified:
    """A file that was made from another and computes the same.

    Attributes:
        path: The new file.
        style: How its weights lie in it.
        size_bytes: Of the new file.
        source_bytes: Of the file that it was made from.
        sha256: Of the new file, hexadecimal.
        images_compared: Random images on which both gave the same logits, bit for bit; 0 if the file leaves
            open which size it takes.
    """

    path: Path
    style: str
    size_bytes: int
    source_bytes: int
    sha256: str
    images_compared: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**asdict(self), "path": str(self.path)}


def densify(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, style: DenseStyle = "dense"
) -> Densified:
    """Write a copy of an ONNX file whose weights are no longer decoded by its own nodes.

    For tools that do not fold constants: converters, quantisers, other runtimes. Metadata stays, but for
    claims of robust accuracy: they are about the file that was attacked.

    Args:
        source: A compact file of this library; any other is copied with its constants computed.
        target: Written atomically, once both files gave the same logits in ONNX Runtime.
        style: ``dense`` is what every tool reads. ``sparse-initializer`` stores places and values of sparse
            weights as ONNX's own sparse tensors. ONNX Runtime loads those; ONNX's checker and reference
            implementation, quantisers, OpenVINO and MNN do not, and onnxscript's optimizer drops the
            weights without a word.

    Raises:
        StorageError: If a file cannot be read or written.
        ExportError: If it is no ONNX model, a decoder is damaged, or the new file computes something else.
    """
    source, target = Path(source), Path(target)
    model = dense_model(read_model(source))
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key != CLAIMS_KEY}
    onnx.helper.set_model_props(model, dict(sorted({**metadata, STYLE_KEY: style}.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker's, which have no common root
        raise ExportError(f"{source.name}: not valid once its weights are dense: {error}") from error
    if style == "sparse-initializer":
        _make_sparse(model)
    data: bytes = model.SerializeToString(deterministic=True)
    compared = _check_same(source, data, name=target.name)
    write_bytes(target, data)
    return Densified(
        target, style, len(data), source.stat().st_size, hashlib.sha256(data).hexdigest(), compared
    )


def _make_sparse(model: ModelProto) -> None:
    """Turn float32 initializers into sparse ones wherever those are smaller."""
    kept: list[TensorProto] = []
    for tensor in model.graph.initializer:
        sparse = _sparse(tensor) if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) else None
        if sparse is None:
            kept.append(tensor)
        else:
            model.graph.sparse_initializer.append(sparse)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _sparse(tensor: TensorProto) -> SparseTensorProto | None:
    """Return ``tensor`` by places in the flat array, and values; ``None`` where that is not smaller."""
    flat = numpy_helper.to_array(tensor).reshape(-1)
    places = np.flatnonzero(is_nonzero(flat))
    if _ENTRY_BYTES * len(places) >= flat.nbytes:
        return None
    values = numpy_helper.from_array(flat[places], tensor.name)
    return onnx.helper.make_sparse_tensor(
        values, numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}.places"), list(tensor.dims)
    )


def _check_same(source: Path, data: bytes, *, name: str) -> int:
    """Return on how many random images both files gave the same logits, bit for bit.

    Raises:
        ExportError: If they differ.
    """
    before, after = OnnxSession(source, threads=1), OnnxSession(data, threads=1, name=name)
    batch, *sizes = before.input_shape
    if any(size is None for size in sizes):
        return 0
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch or _IMAGES, *(size or 1 for size in sizes), generator=generator)
    if not torch.equal(before(images), after(images)):
        raise ExportError(
            f"{name}: it does not compute what {source.name} computes. Nothing was written. Report the file."
        )
    return len(images)
