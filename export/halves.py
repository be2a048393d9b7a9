"""Many small float16 arrays in one constant: one node makes them float32 and one cuts them apart."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from robustcompress.export.graph_writer import GraphWriter

Halves: TypeAlias = npt.NDArray[np.float16]


def write_halves(
    arrays: Mapping[str, Halves], writer: GraphWriter, *, unit: float = 1.0, outputs: bool = False
) -> dict[str, str]:
    """Return by key the name of a float32 value that holds each array, bit for bit.

    Arrays of biases and scales are so small that a constant and a node of its own would cost a fifth of
    one. Those that differ in their first dimension alone lie one behind the other.

    Args:
        arrays: float16, of one dimension or more.
        writer: Gets the nodes.
        unit: A power of two that the float32 values are multiplied with.
        outputs: Whether the keys are the names that the values must have; else they get short ones.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for key, array in arrays.items():
        alike.setdefault(array.shape[1:], []).append(key)
    found: dict[str, str] = {}
    for keys in alike.values():
        stored = writer.constant(np.concatenate([arrays[key] for key in keys]))
        only = keys[0] if outputs and len(keys) == 1 else None
        whole = writer.node("Cast", stored, output=only if unit == 1 else None, to=TensorProto.FLOAT)
        if unit != 1:
            whole = writer.node("Mul", whole, writer.constant(np.array(unit, dtype=np.float32)), output=only)
        sizes = [len(arrays[key]) for key in keys]
        found |= zip(keys, writer.split(whole, sizes, names=keys if outputs else None), strict=True)
    return found
