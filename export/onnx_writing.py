"""What every writer of ONNX files does: look at what it was given, make bytes of a model, put them down."""

import copy
import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import onnx
from torch import Tensor, nn

from robustcompress.errors import ExportError
from robustcompress.export.onnx_file import STYLE_KEY
from robustcompress.storage.atomic import write_bytes

_LARGEST_FILE = 2**31 - 2**20  # protobuf's limit, less room for the graph


def checked_images(images: Tensor) -> Tensor:
    """Return the images to compare on as float32 on the CPU.

    Raises:
        ExportError: If there are none or they are not floating point.
    """
    if not images.is_floating_point() or images.ndim < 2 or len(images) == 0:
        raise ExportError(
            f"images to compare on must be floating point [batch, ...], at least one; "
            f"got {images.dtype} {list(images.shape)}."
        )
    return images.detach().cpu().float()


def reference_copy(network: nn.Module) -> nn.Module:
    """Return a float32 copy on the CPU, in eval mode.

    Raises:
        ExportError: If the network cannot be copied, or one protobuf message cannot hold it.
    """
    size = sum(4 * tensor.numel() for tensor in chain(network.parameters(), network.buffers()))
    if size > _LARGEST_FILE:
        raise ExportError(
            f"an ONNX file holds at most 2 GB; this network has {size / 1e9:.1f} GB of weights in float32. "
            "Compact it first (pattern: channel)."
        )
    try:
        return copy.deepcopy(network).cpu().float().eval()
    except Exception as error:  # whatever the user's modules do when copied
        raise ExportError(
            f"{type(network).__name__} cannot be copied to the CPU: {type(error).__name__}: {error}. "
            "Keep results of computations out of its attributes."
        ) from error


def serialized(model: onnx.ModelProto, metadata: Mapping[str, str], *, style: str, ir_version: int) -> bytes:
    """Return the bytes of ``model`` with its metadata; the same ones for the same input.

    Raises:
        ExportError: If the model is not valid.
    """
    model.ir_version = ir_version
    onnx.helper.set_model_props(model, dict(sorted({**metadata, STYLE_KEY: style}.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:  # the checker's and protobuf's, which have no common root
        raise ExportError(f"the {style} model is not valid ONNX: {error}") from error
    return data


def put(path: Path, data: bytes) -> str:
    """Write ``data`` to ``path`` atomically, read it back and return its SHA-256, hexadecimal.

    Raises:
        ExportError: If the disk gives back something else.
    """
    write_bytes(path, data)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != hashlib.sha256(data).hexdigest():
        path.unlink()
        raise ExportError(f"{path}: the disk gave back other bytes than were written. Check the disk.")
    return digest
