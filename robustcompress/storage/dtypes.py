"""Tensors as flat arrays of their exact bits, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.storage.codecs import Values


@dataclass(frozen=True)
class StoredDtype:
    """One dtype that files may hold.

    Attributes:
        torch: The tensor's.
        name: In our metadata, such as ``float32``.
        code: In a safetensors header, such as ``F32``.
        numpy: The array's; bfloat16, which NumPy lacks, travels as its bits in uint16.
    """

    torch: torch.dtype
    name: str
    code: str
    numpy: np.dtype[Any]


DTYPES = (
    StoredDtype(torch.float64, "float64", "F64", np.dtype(np.float64)),
    StoredDtype(torch.float32, "float32", "F32", np.dtype(np.float32)),
    StoredDtype(torch.float16, "float16", "F16", np.dtype(np.float16)),
    StoredDtype(torch.bfloat16, "bfloat16", "BF16", np.dtype(np.uint16)),
    StoredDtype(torch.int64, "int64", "I64", np.dtype(np.int64)),
    StoredDtype(torch.int32, "int32", "I32", np.dtype(np.int32)),
    StoredDtype(torch.int16, "int16", "I16", np.dtype(np.int16)),
    StoredDtype(torch.int8, "int8", "I8", np.dtype(np.int8)),
    StoredDtype(torch.uint64, "uint64", "U64", np.dtype(np.uint64)),
    StoredDtype(torch.uint32, "uint32", "U32", np.dtype(np.uint32)),
    StoredDtype(torch.uint16, "uint16", "U16", np.dtype(np.uint16)),
    StoredDtype(torch.uint8, "uint8", "U8", np.dtype(np.uint8)),
    StoredDtype(torch.bool, "bool", "BOOL", np.dtype(np.bool_)),
)


def to_array(name: str, tensor: Tensor) -> tuple[StoredDtype, Values]:
    """Return the dtype and the values (1-D, C order) of ``tensor``, bit for bit.

    Whatever its device and memory format; the array may share the tensor's memory.

    Raises:
        StorageError: If the tensor is sparse, quantised, without data or of a dtype that files cannot hold.
    """
    dtype = next((known for known in DTYPES if known.torch == tensor.dtype), None)
    if dtype is None or tensor.layout != torch.strided or tensor.device.type == "meta":
        known = ", ".join(known.name for known in DTYPES)
        raise StorageError(
            f"tensor {name!r}: expected a dense tensor with data, of {known}; "
            f"got {tensor.dtype}, {tensor.layout}, on {tensor.device}. Convert it first."
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if dtype.torch == torch.bfloat16:
        flat = flat.view(torch.uint16)
    return dtype, flat.numpy()


def to_tensor(values: Values, dtype: StoredDtype, shape: Sequence[int]) -> Tensor:
    """Return ``values`` (1-D, writable) as a tensor, which takes over their memory."""
    flat = torch.from_numpy(values)
    if dtype.torch == torch.bfloat16:
        flat = flat.view(torch.bfloat16)
    return flat.reshape(tuple(shape))
