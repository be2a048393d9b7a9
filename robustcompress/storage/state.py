"""Training states without pickle: exact bits of tensors, and plain values, in one file.

The state of an optimizer becomes such tensors and values, and back.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from robustcompress.errors import StorageError
from robustcompress.storage.atomic import read_bytes, write_bytes
from robustcompress.storage.container import Entry, pieces, unpack
from robustcompress.storage.dtypes import DTYPES, to_array, to_tensor
from robustcompress.storage.strict_json import dump, parse, shown, validated

METADATA_KEY = "robustcompress-state"
SCHEMA = 1
_NO_LIMIT = 2**63  # tensors are dense here: they take no more than their file
_BY_CODE = {dtype.code: dtype for dtype in DTYPES}


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    schema_version: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    values: str


class _OptimizerState(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    optimizer: str
    shapes: list[list[int]]
    state: dict[str, Any]
    param_groups: list[Any]


def save_state(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
    """Write a training state, atomically and durably.

    It is one file, which any safetensors library can read.

    Args:
        path: A state of that name is replaced; missing folders are made.
        tensors: Kept bit for bit, negative zeros too; devices and strides are not kept.
        values: Plain data with text keys; NaN and infinities are allowed, tuples come back as lists.

    Raises:
        StorageError: If a tensor or value cannot be stored or the file cannot be written. The old state,
            if any, is then untouched.
    """
    path = Path(path)
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        dtype, array = to_array(name, tensor)
        entries[name] = Entry(dtype.code, tuple(tensor.shape), array)
    text = dump(values, where="values", finite=False)
    metadata = {"schema_version": SCHEMA, "sha256": _digest(entries, text), "values": text}
    write_bytes(path, pieces(entries, {METADATA_KEY: dump(metadata, where=str(path))}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the tensors (on the CPU) and the values of a state.

    Raises:
        StorageError: If there is none or it is damaged; the message names the file and the field.
    """
    path = Path(path)
    entries, metadata = unpack(read_bytes(path, max_bytes=_NO_LIMIT), where=str(path))
    if set(metadata) != {METADATA_KEY}:
        raise StorageError(f"{path} is no training state: expected the one metadata key {METADATA_KEY!r}.")
    saved = validated(_Metadata, metadata[METADATA_KEY], where=f"{path}, metadata", schema=SCHEMA)
    digest = _digest(entries, saved.values)
    if digest != saved.sha256:
        raise StorageError(f"{path}: expected SHA-256 {saved.sha256}; got {digest}. The file was damaged.")
    tensors = {
        name: to_tensor(entry.values.copy(), _BY_CODE[entry.code], entry.shape)
        for name, entry in entries.items()
    }
    return tensors, parse(saved.values, where=f"{path}, values", finite=False)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return what ``restore_optimizer`` needs to make another optimizer continue as this one would.

    Works for every optimizer whose state is made of tensors, numbers, text, and lists, tuples and
    dictionaries of them: all of torch.optim.

    Returns:
        The state's tensors by name, not copied: the optimizer's next step changes them. And the rest
        (hyper-parameters, numbers, and where each tensor belongs) as plain data.

    Raises:
        StorageError: If the state holds anything else.
    """
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    state: dict[str, object] = {}
    for index, entry in saved["state"].items():
        if not isinstance(index, int):
            raise StorageError(f"optimizer state: expected the index of a parameter; got {shown(index)}.")
        state[str(index)] = _encoded(entry, f"state.{index}", tensors)
    groups = [_encoded(group, f"group.{i}", tensors) for i, group in enumerate(saved["param_groups"])]
    values: dict[str, object] = {
        "optimizer": type(optimizer).__qualname__,
        "shapes": _parameter_shapes(optimizer),
        "state": state,
        "param_groups": groups,
    }
    return tensors, values


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, object]
) -> None:
    """Put a flattened state into ``optimizer``, hyper-parameters such as the learning rate included.

    Args:
        optimizer: Of the same class, over parameters of the same shapes in the same order.
        tensors: From ``flatten_optimizer``; copied, other names are ignored.
        values: From ``flatten_optimizer``.

    Raises:
        StorageError: If the state is of another optimizer or other parameters, or is incomplete.
    """
    try:
        saved = _OptimizerState.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in fault["loc"])
        raise StorageError(
            f"optimizer state: {path}: {fault['msg']}; got {shown(fault['input'])}."
        ) from error
    ours = type(optimizer).__qualname__
    if saved.optimizer != ours:
        raise StorageError(
            f"optimizer state: expected that of {ours}; got that of {saved.optimizer}. "
            "Resume with the optimizer that the run began with."
        )
    if saved.shapes != _parameter_shapes(optimizer):
        raise StorageError(
            "optimizer state: its parameters have other shapes or another order than these. "
            "Resume with the network that the run began with."
        )
    try:
        optimizer.load_state_dict(
            {
                "state": {int(index): _decoded(entry, tensors) for index, entry in saved.state.items()},
                "param_groups": [_decoded(group, tensors) for group in saved.param_groups],
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"optimizer state does not fit {ours}: {error}.") from error


def _digest(entries: Mapping[str, Entry], values: str) -> str:
    """Return the SHA-256 over everything that counts: names, dtypes, shapes, bits and values."""
    digest = hashlib.sha256(values.encode())
    for name in sorted(entries):
        entry = entries[name]
        digest.update(f"\0{name}\0{entry.code}\0{list(entry.shape)}\0".encode(errors="surrogatepass"))
        digest.update(np.ascontiguousarray(entry.values).view(np.uint8).data)
    return digest.hexdigest()


def _parameter_shapes(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [list(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]


def _encoded(value: object, path: str, tensors: dict[str, Tensor]) -> object:
    """Return ``value`` as plain data; its tensors go to ``tensors`` under their path."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encoded(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encoded(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StorageError(
        f"optimizer state: {path}: expected tensors, numbers, text and containers of them; "
        f"got {type(value).__name__}."
    )


def _decoded(value: object, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(name), **rest} if not rest:
            if name not in tensors:
                raise StorageError(f"optimizer state: tensor {shown(name)} is missing.")
            return tensors[name].to("cpu", copy=True)  # torch moves it to where it belongs
        case {"tuple": list(items), **rest} if not rest:
            return tuple(_decoded(item, tensors) for item in items)
        case {"dict": dict(items), **rest} if not rest:
            return {key: _decoded(item, tensors) for key, item in items.items()}
        case _:
            raise StorageError(
                f"optimizer state: expected one of 'tensor', 'tuple', 'dict'; got {shown(value)}."
            )
