"""Read other people's checkpoints without running their code: pickles by torch's restricted reader only."""

import re
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.families import suggestion
from robustcompress.storage.sparse_file import METADATA_KEY, read_tensors

USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "last_model_state_dict")
"""Where checkpoints that hold more than tensors keep them, the first of these that is there."""

_FORMATS = {
    "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint.

    Attributes:
        tensors: Dense, on the CPU, by the names that the checkpoint gives them.
        key: Under which of the checkpoint's entries they were; empty if they are the whole of it.
    """

    tensors: dict[str, Tensor]
    key: str


def read_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Return the tensors of a file written by ``torch.save`` or as safetensors.

    A pickle may hold tensors, plain Python data, and NumPy's scalars, which are read as plain numbers by
    our own code. Anything else is refused, and nothing that the file names is imported or called.

    Args:
        path: ``.safetensors``; any other name is read as a file of ``torch.save``.
        key: The entry that holds the tensors, dotted if it lies deeper; ``None`` takes the first of
            :data:`USUAL_KEYS`, or the whole.

    Raises:
        StorageError: If the file cannot be read, holds something that only running code would restore, or
            there are no tensors at ``key``.
    """
    if not path.is_file():
        raise StorageError(f"{path}: expected a checkpoint file; there is none. Check the path.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _tensors_of(content, path, key)


def _read_safetensors(path: Path) -> object:
    try:
        with safe_open(path, framework="pt") as file:
            ours = METADATA_KEY in (file.metadata() or {})
        return read_tensors(path) if ours else load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: cannot be read as safetensors: {error}. Fetch the file again."
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        with _numpy_scalars():
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle makes its reader raise anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is not None:
            raise StorageError(
                f"{path}: is a pickle that would run {named.group(1)!r} when read, which is refused. "
                "Expected tensors, plain data and NumPy scalars. Where you trust it, load it where its code "
                "is and save torch.save(model.state_dict(), path)."
            ) from error
        raise StorageError(
            f"{path}: expected what torch.save writes; it cannot be read: {type(error).__name__}. It is "
            "damaged, of another format, or holds more than tensors and plain data."
        ) from error
    return loaded


class _NumpyType:
    """Stands in for ``numpy.dtype`` in a pickle: remembers which of the plain numbers it is."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = ">" if state[1] == ">" else "<"


def _number(kind: object, data: object = b"", *_: object) -> float | int | bool:
    """Stand in for NumPy's function that restores a scalar: return a plain number."""
    if not isinstance(kind, _NumpyType) or kind.code not in _FORMATS or not isinstance(data, bytes):
        raise ValueError("a NumPy scalar that is no plain number")
    (number,) = struct.unpack(kind.order + _FORMATS[str(kind.code)], data)
    return cast("float | int | bool", number)


def _numpy_scalars() -> AbstractContextManager[None]:
    """Let torch's restricted reader meet NumPy's scalars: none of NumPy's own code is reached."""
    stand_ins = [
        (_number, "numpy.core.multiarray.scalar"),
        (_number, "numpy._core.multiarray.scalar"),
        (_NumpyType, "numpy.dtype"),
    ]
    return cast("AbstractContextManager[None]", torch.serialization.safe_globals(stand_ins))  # type: ignore[arg-type]  # torch takes pairs, its annotation does not say so


def _tensors_of(content: object, path: Path, key: str | None) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise StorageError(f"{path}: expected tensors by name; got {type(content).__name__}.")
    found: object = content
    if key is None:
        key = next((name for name in USUAL_KEYS if isinstance(content.get(name), Mapping)), "")
    for part in filter(None, key.split(".")):
        known = [str(name) for name in found] if isinstance(found, Mapping) else []
        if not isinstance(found, Mapping) or part not in found:
            raise StorageError(
                f"{path}: has no entry {key!r}.{suggestion(part, known)} It has {', '.join(known[:12])}."
            )
        found = found[part]
    if not isinstance(found, Mapping):
        raise StorageError(f"{path}: {key!r}: expected tensors by name; got {type(found).__name__}.")
    tensors = {
        str(name): item.detach()
        for name, item in found.items()
        if isinstance(item, Tensor) and item.layout == torch.strided
    }
    other = [str(name) for name in found if str(name) not in tensors]
    if other or not tensors:
        hint = f" among them {other[0]!r}, which is no dense tensor" if other else ""
        raise StorageError(
            f"{path}: expected dense tensors by name{f' in {key!r}' if key else ''}; got "
            f"{len(found)} entries{hint}. Name the entry that holds the state_dict: --key (command line) or "
            "key= (Python)."
        )
    return Checkpoint(tensors, key)
